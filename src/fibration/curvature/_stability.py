"""The edge of stability: sharpness against 2/step size."""

from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from ..errors import ShapeError, StepSizeError
from ..problem import AbstractProblem
from ..trees import PyTree
from ._observers import Sharpness


class Stability(NamedTuple):
    """How gradient descent with step size η behaves in the direction of the sharpness λ, at each of T times.

    - `ratio` (T,): η λ.
    - `states` (T,): "stable" below one, where that direction contracts without changing sign; "oscillating" from one to
      two, where it contracts with alternating sign; "unstable" from two on, where it grows; "unknown" for NaN.
    - `crossing`: the first time at which η λ reaches two, linear between the times; `None` if it never does.
    """

    ratio: Float[np.ndarray, " T"]
    states: np.ndarray
    crossing: float | None


def stability(sharpness: Any, step_size: float, times: Any = None) -> Stability:
    """Compare the sharpness along a run with the limit 2/step size of gradient descent.

    **Arguments:** `sharpness` (T,): the largest Hessian eigenvalues, of the flow or of the descent; `step_size` η;
    `times` (T,): increasing, the numbers 0, 1, … by default.

    In the direction of an eigenvalue λ a step multiplies the distance from the minimum of a quadratic by 1 − η λ. Where
    the *flow's* sharpness passes 2/η, descent leaves it; its own sharpness then hovers just above 2/η (Cohen, Kaur, Li,
    Kolter and Talwalkar, arXiv 2103.00065). `crossing` is the natural horizon of comparing the two.

    **Raises:** `StepSizeError` for a step size that is not positive; `ShapeError` for arrays that are not (T,).

    ```python
    >>> import fibration as fb
    >>> seen = fb.curvature.stability([1.0, 3.0, 5.0], step_size=0.5, times=[0.0, 1.0, 2.0])
    >>> print(seen.ratio, seen.states, seen.crossing)
    [0.5 1.5 2.5] ['stable' 'oscillating' 'unstable'] 1.5

    ```
    """
    _check_step_size(step_size)
    values = np.asarray(sharpness, float)
    clock = np.arange(len(values), dtype=float) if times is None and values.ndim == 1 else np.asarray(times, float)
    if values.ndim != 1 or clock.shape != values.shape:
        raise ShapeError(
            f"sharpness has shape {values.shape} and times {clock.shape}",
            "two arrays (T,), one entry for each saved time",
            'pass `run.observed["sharpness"]` and `run.times`',
        )
    ratio = step_size * values
    labels = np.array(["stable", "oscillating", "unstable", "unknown"])
    states = labels[np.where(np.isnan(ratio), 3, (ratio >= 1).astype(int) + (ratio >= 2))]
    over = np.flatnonzero(ratio >= 2)
    if not len(over):
        return Stability(ratio, states, None)
    last = int(over[0])
    if last == 0 or not np.isfinite(ratio[last - 1 : last + 1]).all():
        return Stability(ratio, states, float(clock[last]))
    fraction = (2 - ratio[last - 1]) / (ratio[last] - ratio[last - 1])
    return Stability(ratio, states, float(clock[last - 1] + fraction * (clock[last] - clock[last - 1])))


class EdgeOfStability(eqx.Module):
    """An observer of step size times sharpness: gradient descent is linearly stable while it is below two.

    On a flow it tells where descent with that step size will leave it; on a descent, how far past the edge it runs.
    Each evaluation starts from the eigenvector of the last saved time, as in `Sharpness`.

    **Raises:** `StepSizeError` for a step size that is not positive.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([2.0]), jnp.array([0.0]))
    >>> observe = {"edge": fb.curvature.EdgeOfStability(0.25)}
    >>> run = fb.integrate(problem, fb.GradientFlow(), jnp.array(1.0), t1=1.0, times=[0.0, 1.0], observe=observe)
    >>> print(run.observed["edge"])
    [1. 1.]

    ```
    """

    step_size: float = eqx.field(static=True)
    sharpness: Sharpness = eqx.field(default_factory=Sharpness)

    def __check_init__(self) -> None:
        _check_step_size(self.step_size)

    def init(self, problem: AbstractProblem, params: PyTree) -> PyTree:
        """Make the state before the first saved time."""
        return self.sharpness.init(problem, params)

    def update(
        self, problem: AbstractProblem, params: PyTree, time: float, state: PyTree
    ) -> tuple[Float[Array, ""], PyTree]:
        """Compute η λ and the vector that the next evaluation starts from."""
        value, state = self.sharpness.update(problem, params, time, state)
        return self.step_size * value, state


def _check_step_size(step_size: float) -> None:
    if not 0 < step_size < np.inf:
        raise StepSizeError(f"step_size = {step_size}", "a positive number", "pass the step size of the descent")
