"""The first-order error field: how far descent parts from its flow, per unit of step size."""

from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from .. import trees
from ..curvature import hvp
from ..problem import AbstractProblem
from ..solvers import Trajectory, solve
from ..solvers._trajectory import is_saved
from ..trees import PyTree
from ._states import check_real, saved_matrix, state_at


class FirstOrderError(NamedTuple):
    """The field v(t) with θ_descent(kη) = θ_flow(kη) + η v(kη) + O(η²).

    `times` (T,): those of the flow; `vectors`: v, a pytree like the trajectory's `params`, with a leading axis T on its
    floating-point leaves; `norms` (T,): |v|, so that η·norms estimates the distance of a descent from its flow.
    """

    times: Float[np.ndarray, " T"]
    vectors: PyTree
    norms: Float[np.ndarray, " T"]


class _Variation(eqx.Module):
    """The gradient flow and its first-order error together, as a field for `solve`."""

    problem: AbstractProblem
    constant: PyTree
    gradient_evaluations: int = eqx.field(static=True, default=3)

    def __call__(self, time: Float[Array, ""], state: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:  # noqa: ARG002
        params, error = state
        whole = eqx.combine(params, self.constant)
        gradient = eqx.filter(self.problem.gradient(whole), eqx.is_inexact_array)
        change = eqx.filter(hvp(self.problem, whole, trees.axpy(0.5, gradient, error)), eqx.is_inexact_array)
        return jax.tree.map(lambda x: -x, gradient), jax.tree.map(lambda x: -x, change)


def first_order_error(
    problem: AbstractProblem,
    flow: Trajectory,
    *,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    method: str | diffrax.AbstractERK = "auto",
) -> FirstOrderError:
    """Compute the field v with θ_descent(kη) = θ_flow(kη) + η v(kη) + O(η²), along a solved gradient flow.

    It solves v' = −∇²C(θ) (v + ½ ∇C(θ)), v = 0 at the start, together with the flow: the derivative in η, at η = 0, of
    the modified flow of backward error analysis (derived; see `ModifiedFlow`). One field serves every step size. It is
    an estimate and bounds nothing.

    **Arguments:** `flow`: a trajectory of `integrate` with `GradientFlow`, whose first saved time is its start; only
    its start and its times are used. `rtol`, `atol`, `method`: see `integrate`.

    **Returns:** a `FirstOrderError`.

    **Raises:** `ParameterError` for complex parameters or a trajectory that kept its last parameters only, and what
    `solve` raises; `DivergedError` if the flow cannot be solved to its last time.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([0.0]))  # θ = e^{−t}, v = −(t/2) e^{−t}
    >>> flow = fb.integrate(problem, fb.GradientFlow(), jnp.array(1.0), t1=2.0, rtol=1e-4, times=[0.0, 1.0, 2.0])
    >>> print(fb.fidelity.first_order_error(problem, flow, rtol=1e-4).norms.round(3))
    [0.    0.184 0.135]

    ```
    """
    check_real(saved_matrix(flow), "a flow")
    params = state_at(flow, 0)
    variable, constant = eqx.partition(params, eqx.is_inexact_array)
    start = (variable, jax.tree.map(lambda leaf: 0 * leaf, variable))
    field = _Variation(problem, constant)
    first, last = float(flow.times[0]), float(flow.times[-1])
    solution = solve(field, start, last, t0=first, rtol=rtol, atol=atol, times=flow.times, method=method)
    solution.raise_if_failed()
    vectors = solution.params[1]
    flat = [leaf.reshape(len(flow.times), -1) for leaf in jax.tree.leaves(vectors) if is_saved(leaf)]
    return FirstOrderError(flow.times, vectors, np.linalg.norm(np.concatenate(flat, axis=1), axis=1))
