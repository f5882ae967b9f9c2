"""Distances between trajectories in parameter space."""

import jax
import numpy as np
from jaxtyping import Float

from ..errors import ParameterError, TimeMismatchError
from ..solvers import Trajectory
from ..solvers._trajectory import is_saved
from ._states import saved_matrix


def distance(descent: Trajectory, flow: Trajectory) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Compute |θ_descent(t) − θ_flow(t)| at every time that both trajectories saved.

    Solve the flow with the descent's times: `fb.integrate(..., times=descent.times)`. A flow may be interpolated at any
    time; a descent is defined only at its steps, so nothing is interpolated here.

    **Returns:** the common times (T,) and the Euclidean distances (T,).

    **Raises:** `TimeMismatchError` without common times; `ParameterError` for other parameters, or saved with
    `Options(save="last")`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([0.0]))
    >>> descent = fb.descend(problem, fb.GradientFlow(), jnp.array(1.0), step_size=0.5, steps=2)
    >>> flow = fb.integrate(problem, fb.GradientFlow(), jnp.array(1.0), t1=1.0, rtol=1e-5, times=descent.times)
    >>> print(fb.fidelity.distance(descent, flow)[1].round(3))  # |0.5^{2t} − e^{−t}|
    [0.    0.107 0.118]

    ```
    """
    # Times kη and the same times by another sum may differ by rounding, relative to the span, and by no more.
    slack = 1e-9 * min(np.max(np.abs(descent.times)), np.max(np.abs(flow.times)))
    nearest = np.clip(np.searchsorted(flow.times, descent.times - slack), 0, len(flow.times) - 1)
    shared = np.flatnonzero(np.abs(flow.times[nearest] - descent.times) <= slack)
    if not len(shared):
        raise TimeMismatchError(
            f"the descent saved {len(descent.times)} times and the flow {len(flow.times)}, none of them the same",
            "at least one common time",
            "solve the flow with `times=descent.times`",
        )
    shapes = [[leaf.shape[1:] for leaf in jax.tree.leaves(t.params) if is_saved(leaf)] for t in (descent, flow)]
    if shapes[0] != shapes[1]:
        raise ParameterError(
            f"parameters of shapes {shapes[0]} in one trajectory and {shapes[1]} in the other",
            "trajectories of the same parameters",
            "compare runs that start from the same params",
        )
    a, b = saved_matrix(descent), saved_matrix(flow)
    return descent.times[shared], np.linalg.norm(a[shared] - b[nearest[shared]], axis=1)


def distance_from_start(trajectory: Trajectory) -> Float[np.ndarray, " T"]:
    """Compute |θ(t) − θ(t₀)| at every saved time, (T,).

    **Raises:** `ParameterError` for a trajectory saved with `Options(save="last")`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([0.0]))
    >>> run = fb.descend(problem, fb.GradientFlow(), jnp.array(1.0), step_size=0.5, steps=2)
    >>> print(fb.fidelity.distance_from_start(run))
    [0.   0.5  0.75]

    ```
    """
    matrix = saved_matrix(trajectory)
    return np.linalg.norm(matrix - matrix[0], axis=1)
