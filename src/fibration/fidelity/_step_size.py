"""From a solved flow to a step size: how large may steps be for descent to stay within a distance of the flow?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from .. import trees
from ..errors import CertificateError, ParameterError
from ..problem import AbstractProblem
from ..solvers import Trajectory
from ..trees import PyTree
from ._assumptions import Assumption, Kind, kind_of
from ._constants import choose_checks, curvature_along
from ._first_order import first_order_error
from ._growth import phi1, phi2
from ._measured import DENSE_LIMIT, Spectrum
from ._states import check_real, saved_matrix, state_at, unit_roundoff
from ._tube import Tube

TUBES = np.logspace(0, -3, 10)  # tubes thinner than the distance asked for, which may allow larger steps
SMALLEST = 1e-13  # of the time span, as a step size


@dataclass(frozen=True)
class StepSize:
    """The largest step size found for which descent stays within `epsilon` of the flow.

    - `step_size`: guaranteed, or `None` if none could be; `kind`: "theorem" or "conditional", see
      `Certificate`; `assumptions`: what the guarantee rests on.
    - `argmin_time`: when the bound is largest: where the step size is decided.
    - `amplification`: how much an error may grow along the flow, at most.
    - `times` (C,), `bound` (C,): the distance guaranteed at that step size, where the Hessian was looked at.
    - `estimate`: the step size by the first-order error, `epsilon`/max|v|, or the limit of stability if that is less:
      no guarantee; `estimate_time`: when |v| is largest.
    - `stable_step_size`: 2 over the largest Hessian eigenvalue found along the flow.
    - `reason`: why there is no guaranteed step size, and until when there is one ("" if there is).
    """

    epsilon: float
    step_size: float | None
    kind: Kind
    assumptions: tuple[Assumption, ...]
    argmin_time: float
    amplification: float
    times: Float[np.ndarray, " C"]
    bound: Float[np.ndarray, " C"]
    estimate: float
    estimate_time: float
    stable_step_size: float
    reason: str

    @property
    def message(self) -> str:
        """The answer, in a sentence."""
        guess = f"the first-order estimate is {self.estimate:.3g}"
        if self.step_size is None:
            return f"no guaranteed step size: {self.reason}; {guess}, which guarantees nothing"
        steps = int(np.ceil(self.times[-1] / self.step_size))
        return (
            f"step size {self.step_size:.3g}, {steps:,} steps, stays within {self.epsilon:g} of the flow up to "
            f"t = {self.times[-1]:g} ({self.kind}); {guess}"
        )

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  {assumption}" for assumption in self.assumptions)])


def step_size_for(
    problem: AbstractProblem,
    trajectory: Trajectory,
    epsilon: float,
    curvature: str | Callable[[PyTree, float], Any] = "path",
    *,
    initial_error: float = 0.0,
    hessian_lipschitz: float | None = None,
    checks: int = 101,
    dense_limit: int = DENSE_LIMIT,
    tolerance: float = 1e-3,
) -> StepSize:
    """Compute a step size for which gradient descent stays within ε of a solved gradient flow, up to its last time.

    Let m(t) ≥ −λ_min(∇²C) + ρε/2 at θ(t), and b(t) ≥ ‖∇²C‖·|∇C| on everything within ε of the flow during the steps
    around t. As long as descent is within ε, its distance from the flow is at most the solution of
    e' = m e + η r b, where r = φ₂(−z)/φ₁(−z) with z = η max(−m, 0): ½ where m ≥ 0, and below 1 elsewhere. The largest η
    whose solution stays below ε is found by bisection, also for tubes thinner than ε, where m and b are smaller.

    The theorem is that of Elkabetz and Cohen (arXiv 2107.06608, Theorem 2), which has the largest ‖∇²C‖ and |∇C| of the
    whole tube for b and 1 for r. The local b, the factor r (Chebyshev's sum inequality, step by step: on each step b is
    a constant, while the defect grows in proportion to the time since its start) and the ½ in m are derived. Between
    saved times the flow moves by at most √(Δt (C(t) − C(t + Δt))), and its Hessian by ρ times that.

    **Arguments:**

    - `trajectory`: a solved gradient flow (`integrate` with `GradientFlow`), its start among the saved times. Many
      saved times make the guarantee sharper; up to `checks` of them are used.
    - `epsilon`: the distance ε, positive. `initial_error`: how far descent may start from the flow's start.
    - the others: see `certify`.

    **Returns:** a `StepSize`. Where no step size can be guaranteed, its `step_size` is `None` and its `reason` says
    until when one could. The solved states are taken to be the flow's.

    **Raises:** `CertificateError` for a descent instead of a flow; `DivergedError` for a flow that failed;
    `ParameterError`, `UnknownNameError` for other arguments that do not fit.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([0.0]))  # |v| = (t/2) e^{−t}
    >>> flow = fb.integrate(problem, fb.GradientFlow(), jnp.array(1.0), t1=3.0, rtol=1e-4)
    >>> found = fb.fidelity.step_size_for(problem, flow, 0.01)
    >>> print(f"{found.step_size:.3f} guaranteed, {found.estimate:.3f} by the estimate")
    0.049 guaranteed, 0.054 by the estimate

    ```
    """
    _check(trajectory, epsilon, initial_error)
    matrix = saved_matrix(trajectory)
    check_real(matrix, "a flow")
    checked = choose_checks(matrix, trajectory.times, checks)
    states = [state_at(trajectory, index) for index in checked]
    known, spectrum = curvature_along(problem, curvature, states, hessian_lipschitz, dense_limit, tolerance)
    if spectrum is not None:
        spectrum.look_everywhere()
    along = _Along(
        times=trajectory.times[checked],
        lengths=_lengths(trajectory, matrix, checked),
        gradients=np.array([float(trees.norm(problem.gradient(state))) for state in states]),
        states=states,
        spectrum=spectrum,
        known=known,
        rounding=2 * unit_roundoff(states[0]) * _larger(np.linalg.norm(matrix[checked], axis=1)),
    )
    first_order = first_order_error(problem, trajectory)
    worst = int(np.argmax(first_order.norms))
    sharpest = float(np.max(along.bounds(0.0).ceiling if spectrum is None else spectrum.upper))
    stable = 2 / max(sharpest, np.finfo(float).tiny)
    estimate = min(epsilon / max(float(first_order.norms[worst]), np.finfo(float).tiny), stable)
    found = [_largest_step(along, epsilon * fraction, initial_error, len(states)) for fraction in TUBES]
    best = max(found, key=lambda one: one.step_size)
    feasible = best.step_size > 0
    growth = along.bounds(best.tube if feasible else epsilon)
    return StepSize(
        epsilon=epsilon,
        step_size=best.step_size if feasible else None,
        kind=kind_of(along.assumptions(best.tube)),
        assumptions=along.assumptions(best.tube),
        argmin_time=float(along.times[int(np.argmax(best.bound))]),
        amplification=_amplification(growth.rate, np.diff(along.times)),
        times=along.times,
        bound=best.bound,
        estimate=estimate,
        estimate_time=float(trajectory.times[worst]),
        stable_step_size=stable,
        reason="" if feasible else _reason(along, epsilon, initial_error),
    )


class _Bounds(NamedTuple):
    """What holds on each interval of time, within a tube: rate m, ceiling of ‖∇²C‖, and of |∇C|."""

    rate: Float[np.ndarray, " n"]
    ceiling: Float[np.ndarray, " n"]
    slope: Float[np.ndarray, " n"]


class _Step(NamedTuple):
    step_size: float
    tube: float
    bound: Float[np.ndarray, " n"]


class _Along:
    """What was measured along the flow, and what follows from it within a tube."""

    def __init__(
        self,
        *,
        times: np.ndarray,
        lengths: np.ndarray,
        gradients: np.ndarray,
        states: list[PyTree],
        spectrum: Spectrum | None,
        known: Tube | Assumption,
        rounding: np.ndarray,
    ) -> None:
        self.times, self.lengths, self.gradients, self.states = times, lengths, gradients, states
        self.spectrum, self.known, self.rounding = spectrum, known, rounding
        self._cache: dict[float, tuple[_Bounds, float]] = {}

    def bounds(self, radius: float) -> _Bounds:
        """Bound the curvature and the gradient within `radius` of the flow, interval by interval."""
        if radius not in self._cache:
            self._cache[radius] = self._bounds(radius)
        return self._cache[radius][0]

    def _bounds(self, radius: float) -> tuple[_Bounds, float]:
        n = len(self.lengths)
        floor, ceiling, slope = np.full(n, -np.inf), np.full(n, np.inf), np.full(n, np.inf)
        if isinstance(self.known, Assumption):
            lipschitz = np.full(n, self.known.value)
        else:
            tubes = [self.known(self.states[i], float(self.lengths[i]) + radius) for i in range(n)]
            floor, ceiling, lipschitz, slope = np.array(tubes, float).T
        rate = -floor
        norm = np.maximum(ceiling, -floor)
        low, high = -np.inf * np.ones(n), np.inf * np.ones(n)
        if self.spectrum is not None:
            # A point of the flow is s from one end of its interval and at most ℓ − s from the other.
            lower, upper = self.spectrum.lower, self.spectrum.upper
            low = (lower[:-1] + lower[1:] - lipschitz * self.lengths) / 2
            high = (upper[:-1] + upper[1:] + lipschitz * self.lengths) / 2
            rate = np.minimum(rate, -low + lipschitz * radius / 2)
            norm = np.minimum(norm, np.maximum(high, -low) + lipschitz * radius)
        # |∇C| along the flow: from the nearer end, or from its own growth d|∇C|/dt ≤ m|∇C|; then off the flow.
        nearer = _larger(self.gradients) + norm * self.lengths / 2
        with np.errstate(over="ignore"):
            grown = self.gradients[:-1] * np.exp(np.maximum(rate, 0) * np.diff(self.times))
        slope = np.minimum(slope, np.minimum(nearer, grown) + norm * radius)
        return _Bounds(rate, norm, slope), float(np.max(lipschitz))

    def assumptions(self, radius: float) -> tuple[Assumption, ...]:
        """List what the guarantee rests on."""
        known = [] if self.spectrum is None else [self.spectrum.assumption]
        if isinstance(self.known, Assumption):
            return (*known, self.known)
        self.bounds(radius)
        note = f"{self.known.note}, within {radius:.2g} of the flow"
        return (
            *known,
            Assumption("Lipschitz constant of the Hessian", self._cache[radius][1], self.known.status, note),
        )


def _largest_step(along: _Along, radius: float, initial: float, count: int) -> _Step:
    """Find the largest step size whose bound stays below `radius` at the first `count` times; 0 if there is none."""
    bounds = along.bounds(radius)
    times = along.times[:count]
    bounds = _Bounds(*(values[: count - 1] for values in bounds))
    span = float(times[-1] - times[0])

    def bound(step: float) -> np.ndarray:
        return _errors(times, bounds, along.rounding[: count - 1], initial, step)

    def holds(step: float) -> bool:
        return bool(np.max(bound(step)) < radius)  # False for NaN

    steps = span * np.logspace(0, np.log10(SMALLEST), 53)
    works = next((k for k, step in enumerate(steps) if holds(step)), None)
    if works is None:
        return _Step(0.0, radius, np.full(count, np.inf))
    low, high = steps[works], steps[max(works - 1, 0)]
    for _ in range(40):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return _Step(float(low), radius, bound(low))


def _errors(times: np.ndarray, bounds: _Bounds, rounding: np.ndarray, initial: float, step: float) -> np.ndarray:
    """Solve e' = m e + η r b with constants on each interval; b and r are the worst of the steps around it."""
    starts, stops, lengths = times[:-1], times[1:], np.diff(times)
    near = (stops[None, :] >= starts[:, None] - step) & (starts[None, :] <= stops[:, None] + step)

    def worst(values: np.ndarray) -> np.ndarray:
        return np.max(np.where(near, values[None, :], -np.inf), axis=1)

    with np.errstate(over="ignore", invalid="ignore"):
        z = -step * np.maximum(worst(-bounds.rate), 0.0)
        source = step * phi2(z) / phi1(z) * worst(bounds.ceiling) * worst(bounds.slope) + rounding / step
        growth, weight = np.exp(bounds.rate * lengths), lengths * phi1(bounds.rate * lengths)
        errors = [initial]
        for factor, added in zip(growth, weight * source, strict=True):
            errors.append(factor * errors[-1] + added)
    errors = np.array(errors)
    return np.where(np.isnan(errors), np.inf, errors)


def _amplification(rates: np.ndarray, lengths: np.ndarray) -> float:
    """Find by how much an error at any time may have grown at any later time."""
    worst = total = 0.0
    for grown in rates * lengths:
        total = max(total + grown, 0.0)
        worst = max(worst, total)
    return float(np.exp(min(worst, 700.0)))


def _reason(along: _Along, epsilon: float, initial: float) -> str:
    """Say why there is no step size, and until when there is one."""
    rates, lengths = along.bounds(epsilon).rate, np.diff(along.times)
    if initial > 0:
        with np.errstate(over="ignore"):
            grown = initial * np.exp(np.concatenate([[0.0], np.cumsum(rates * lengths)]))
        over = np.flatnonzero(~(grown < epsilon))
        if len(over):
            return (
                f"the initial error {initial:.3g} may have grown to {grown[over[0]]:.3g}, not below {epsilon:g}, at "
                f"t = {along.times[over[0]]:.6g}"
            )
    low, high = 1, len(along.times)  # one time needs no step; all of them have none
    while high - low > 1:
        middle = (low + high) // 2
        found = any(_largest_step(along, epsilon * fraction, initial, middle).step_size > 0 for fraction in TUBES)
        low, high = (middle, high) if found else (low, middle)
    amplification = _amplification(rates, lengths)
    return (
        f"none is known beyond t = {along.times[low - 1]:.6g}, since errors, of rounding for one, may grow by up to "
        f"{amplification:.1e}, as far as is known from {len(along.times)} times"
    )


def _lengths(trajectory: Trajectory, matrix: np.ndarray, checked: list[int]) -> np.ndarray:
    """Bound the length of the flow between checked times: |θ'|² = −dC/dt, and the Cauchy–Schwarz inequality."""
    chords = np.linalg.norm(np.diff(matrix[checked], axis=0), axis=1)
    if trajectory.costs is None:
        raise CertificateError(
            "a trajectory without costs", "a gradient flow solved by `integrate`", "solve it with its problem"
        )
    falls = np.maximum(-np.diff(trajectory.costs[checked]), 0.0)
    return np.maximum(np.sqrt(np.diff(trajectory.times[checked]) * falls), chords)


def _larger(values: np.ndarray) -> np.ndarray:
    """Give the larger value of the two ends of each interval."""
    return np.maximum(values[:-1], values[1:])


def _check(trajectory: Trajectory, epsilon: float, initial: float) -> None:
    for name, value, fine in (("epsilon", epsilon, epsilon > 0), ("initial_error", initial, initial >= 0)):
        if not (np.isfinite(value) and fine):
            raise ParameterError(
                f"{name} = {value}", "a finite positive distance", "pass a distance between parameters"
            )
    if trajectory.stats.get("method") in ("Euler", "optax"):
        raise CertificateError(
            f"a run of the method {trajectory.stats['method']}",
            "a solved gradient flow, `integrate(problem, fb.GradientFlow(), …)`",
            "solve the flow; for a descent that was run use `certify`",
        )
    trajectory.raise_if_failed()
    if len(trajectory.times) < 2:
        raise CertificateError("a flow with one saved time", "its start and at least one more", "leave out `times=`")
