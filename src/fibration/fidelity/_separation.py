"""A cost whose gradient flow descent cannot follow unless its steps are exponentially small in time."""

import math
import warnings
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import ParameterError, PrecisionWarning, ShapeError, TimeSpanError
from ..flows import GradientFlow
from ..problem import AbstractProblem
from ..solvers import descend
from ..trees import PyTree

_TERMS = 60  # the series' terms fall by half at least


class CurvedSaddle(AbstractProblem):
    """The cost C(x, y) = x²/2 − (m/2) y² + c x² y, whose saddle at 0 has a curved stable manifold.

    Parameters are vectors (2,). It has no data and no bound from below, so that it is no sum of squares: `residuals`
    raises.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> saddle = fb.fidelity.CurvedSaddle(0.5, 1.0)
    >>> print(saddle.cost(jnp.array([1.0, 2.0])), saddle.gradient(jnp.array([1.0, 2.0])))
    1.5 [5. 0.]

    ```
    """

    expansion: Float[Array, ""]
    curvature: Float[Array, ""]

    def __init__(self, expansion: Any, curvature: Any) -> None:
        self.expansion, self.curvature = jnp.asarray(expansion, float), jnp.asarray(curvature, float)

    def outputs(self, params: PyTree) -> Float[Array, "1 2"]:
        """Give the point itself, (1, 2)."""
        return jnp.asarray(params)[None]

    def cost(self, params: PyTree) -> Float[Array, ""]:
        """Compute x²/2 − (m/2) y² + c x² y."""
        x, y = params
        return x**2 / 2 - self.expansion / 2 * y**2 + self.curvature * x**2 * y

    def residuals(self, params: PyTree) -> NoReturn:  # noqa: ARG002
        """Raise `ParameterError`: the cost is negative in places, and so no sum of squares."""
        raise ParameterError(
            "a cost without residuals", "a sum of squares", "use `cost` and `gradient`, which every problem has"
        )

    @property
    def n_residuals(self) -> int:
        """Zero: there are no residuals."""
        return 0

    def check(self, params: PyTree) -> None:
        """Raise `ShapeError` unless the parameters are a vector (2,)."""
        if jnp.shape(params) != (2,):
            raise ShapeError(f"parameters of shape {jnp.shape(params)}", "a vector (2,)", "pass the point (x, y)")


@dataclass(frozen=True)
class SeparationExample:
    """A cost, a start, the flow from it, and the step size that descent needs; made by `separation_example`.

    - `problem`: the cost, a `CurvedSaddle`; `start` (2,): a point of the saddle's stable manifold; `start_x`: its x₀.
    - `expansion` m, `curvature` c, `coefficients` (a₁, a₂, …) of the manifold y = Σ_k a_k x^{2k}.
    """

    problem: CurvedSaddle
    start: Float[Array, "2"]
    start_x: float
    expansion: float
    curvature: float
    coefficients: Float[np.ndarray, " k"] = field(repr=False)

    def manifold(self, x: Any) -> np.ndarray:
        """Evaluate y = Σ_k a_k x^{2k}, from where the flow goes to the saddle; of the shape of x."""
        return _series(self.coefficients, np.asarray(x, float))

    def flow(self, times: Any) -> Float[np.ndarray, "T 2"]:
        """Compute the flow's true points at times t ≥ 0, (T, 2), in float64.

        On the manifold x′ = −x (1 + 2c h(x)), so that t = ∫ₓ^{x₀} du/(u (1 + 2c h(u))), a logarithm and a power series;
        Newton's method inverts it. Solving for both coordinates would multiply every rounding error by e^{mt}.

        **Raises:** `TimeSpanError` for times that are negative or not finite.
        """
        times = np.atleast_1d(np.asarray(times, float))
        if not np.all(np.isfinite(times) & (times >= 0)):
            raise TimeSpanError(f"times {times!r}", "finite times of 0 or more", "start at t = 0, where the start is")
        inverse = _reciprocal(2 * self.curvature * self.coefficients)
        integral = inverse / (2 * np.arange(1, len(inverse) + 1))
        first = math.log(self.start_x)
        constant = first + _series(integral, np.asarray(self.start_x))
        log_x = first - times
        for _ in range(20):
            x = np.exp(log_x)
            log_x = log_x + (constant - log_x - _series(integral, x) - times) / (1 + _series(inverse, x))
        x = np.exp(log_x)
        return np.stack([x, self.manifold(x)], axis=1)

    def predicted_error(self, step_size: float, time: float) -> float:
        """Compute descent's distance from the flow at a time, to leading order.

        η c x₀² e^{mT}/(m + 2)², which e′ = −∇²C e − (η/2) ∇²C ∇C gives along the flow; left out are higher powers of η
        and c x₀, and what has died out, the distance (η/2) x₀ T e^{−T} across the unstable direction above all.
        """
        growth = math.exp(self.expansion * time)
        return step_size * abs(self.curvature) * self.start_x**2 * growth / (self.expansion + 2) ** 2

    def required_step_size(self, error: float, time: float) -> float:
        """Compute the step size at which descent's distance from the flow at a time is `error`, to the same order.

        ε (m + 2)² e^{−mT}/(c x₀²): exponentially small in T, though the flow stays bounded and tends to the saddle.
        """
        return error / self.predicted_error(1.0, time)

    def measured_error(self, steps: int, time: float) -> float:
        """Run descent with steps of size time/steps, and compute its distance from the flow at that time.

        Warns with `PrecisionWarning` if rounding would be seen: that of every step grows like descent's error itself.
        """
        step_size = time / steps
        eps = float(jnp.finfo(self.start.dtype).eps)
        # About 1/η independent roundings are made before the point is near the saddle.
        rounding = eps * abs(float(self.start[1])) * math.sqrt(1 + 1 / step_size) * math.exp(self.expansion * time)
        if rounding > 0.1 * self.predicted_error(step_size, time):
            warnings.warn(
                f"rounding grows to {rounding:.1e} by t = {time:g}, beside a predicted distance of "
                f"{self.predicted_error(step_size, time):.1e}; enable float64, or take a shorter time or larger steps",
                PrecisionWarning,
                stacklevel=2,
            )
        run = descend(self.problem, GradientFlow(), self.start, step_size=step_size, steps=steps, save_every=steps)
        end = np.asarray(run.raise_if_failed().final_params, float)
        return float(np.linalg.norm(end - self.flow([time])[0]))


def separation_example(m: float, c: float = 1.0, x0: float = 0.3) -> SeparationExample:
    """Build a cost and a start from which gradient descent leaves the gradient flow unless η = O(e^{−mT}).

    C(x, y) = x²/2 − (m/2) y² + c x² y from (x₀, h(x₀)) on the stable manifold of its saddle: the flow tends to 0, and
    descent with step size η is off by η c x₀² e^{mT}/(m + 2)² at time T, to leading order. The manifold
    is y = h(x) = Σ_k a_k x^{2k}, with

        (m + 2k) a_k = c [k = 1] − 4c Σ_{i+j=k} i a_i a_j.

    In one dimension there is no such cost: descent then only runs ahead of the flow or behind it.

    **Arguments:** `m` > 0: the saddle's expansion rate; `c` ≠ 0: how much the manifold bends; `x0` > 0: the start's
    first coordinate, with c² x₀² ≤ (m + 2)/8, where the series converges at least as fast as 2^{−k}.

    **Returns:** a `SeparationExample`.

    **Raises:** `ParameterError` for other numbers.

    **Source:** that such costs exist for every m: Elkabetz and Cohen (arXiv 2107.06608); this one is derived here.

    ```python
    >>> import fibration as fb
    >>> example = fb.fidelity.separation_example(1.0)
    >>> print(f"{example.required_step_size(1e-3, 5.0):.1e} {example.required_step_size(1e-3, 10.0):.1e}")
    6.7e-04 4.5e-06
    >>> bool(0.9 < example.measured_error(400, 5.0) / example.predicted_error(5.0 / 400, 5.0) < 1.1)
    True

    ```
    """
    numbers = [float(value) for value in (m, c, x0)]
    if not all(map(math.isfinite, numbers)) or m <= 0 or c == 0 or not 0 < x0 <= math.sqrt((m + 2) / 8) / abs(c):
        raise ParameterError(
            f"m = {m}, c = {c}, x0 = {x0}",
            "m > 0, c ≠ 0 and 0 < x0 ≤ √((m + 2)/8)/|c|",
            "start closer to the saddle, or bend the manifold less",
        )
    m, c, x0 = numbers
    coefficients = np.zeros(_TERMS + 1)
    for k in range(1, _TERMS + 1):
        order = np.arange(1, k)
        products = float(np.sum(order * coefficients[order] * coefficients[k - order]))
        coefficients[k] = (c * (k == 1) - 4 * c * products) / (m + 2 * k)
    start = jnp.asarray([x0, float(_series(coefficients[1:], np.asarray(x0)))])
    return SeparationExample(CurvedSaddle(m, c), start, x0, m, c, coefficients[1:])


def _series(coefficients: np.ndarray, x: np.ndarray) -> Any:
    """Evaluate Σ_k a_k x^{2k}, k ≥ 1, by Horner's scheme."""
    square, total = x**2, np.zeros_like(x)
    for coefficient in coefficients[::-1]:
        total = (total + coefficient) * square
    return total


def _reciprocal(coefficients: np.ndarray) -> Float[np.ndarray, " k"]:
    """Compute b with 1 + Σ b_k z^k = 1/(1 + Σ a_k z^k), k ≥ 1."""
    result = np.zeros_like(coefficients)
    for k in range(len(coefficients)):
        result[k] = -coefficients[k] - np.dot(coefficients[:k], result[:k][::-1])
    return result
