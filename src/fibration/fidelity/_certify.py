"""The certificate of a descent that was run: how far from its flow it can be, at most."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .. import trees
from ..errors import CertificateError, PrecisionError, StepSizeError
from ..problem import AbstractProblem
from ..solvers import Trajectory
from ..trees import PyTree
from ._assumptions import Assumption, Kind, kind_of
from ._constants import choose_checks, curvature_along
from ._measured import DENSE_LIMIT, Spectrum
from ._polygon import HOLDS, KINK, NONFINITE, OUT_OF_REACH, RUNAWAY, Bound, Curvature, advance
from ._states import check_real, saved_matrix, state_at, unit_roundoff
from ._tube import Tube

REASONS = {
    RUNAWAY: "the bound runs away: what the curvature may change within reach of it exceeds what is known of it",
    KINK: "the gradient turns faster than the Lipschitz constant of the Hessian allows: a kink of the network, or too "
    "small a constant",
    NONFINITE: "the gradient or the Hessian is not finite",
    OUT_OF_REACH: "the bound outgrows every tube: the constants on it grow faster than its radius",
}
NOISE = 2e4  # roundoffs, by which a gradient may be off
LARGEST = 1e12  # of the amplification beyond which a bound says nothing


@dataclass(frozen=True)
class Certificate:
    """A bound of the distance between a descent and the gradient flow from the same start.

    - `times` (T,), `bound` (T,): |θ_descent(t) − θ_flow(t)| ≤ bound at each time; infinite after `valid_until`.
    - `rounding` (T,): the part of the bound that pays for floating-point rounding in the descent.
    - `valid_until`, `reason`: the last time with a finite bound, and why there is none after it ("" if there is).
    - `kind`: "theorem" if every constant is proven or given, "conditional" if one is sampled; `assumptions`: them all.
    - `amplification`: how much an error at the start has grown by `valid_until`, at most.
    - `step_size`; `checked_times` (C,) and `smallest_eigenvalues` (C,): where the Hessian was looked at, and the lower
      bounds of its smallest eigenvalue found there (NaN where it was not needed); `lipschitz`: the largest Lipschitz
      constant of the Hessian used.
    """

    times: Float[np.ndarray, " T"]
    bound: Float[np.ndarray, " T"]
    rounding: Float[np.ndarray, " T"]
    valid_until: float
    reason: str
    kind: Kind
    assumptions: tuple[Assumption, ...]
    amplification: float
    step_size: float
    checked_times: Float[np.ndarray, " C"]
    smallest_eigenvalues: Float[np.ndarray, " C"]
    lipschitz: float

    @property
    def message(self) -> str:
        """What is guaranteed, in a sentence."""
        last = int(np.flatnonzero(np.isfinite(self.bound))[-1])
        rests = [f"{a.quantity} {a.value:.3g}" for a in self.assumptions if a.status == "sampled"]
        kind = f"{self.kind} on a sampled {' and '.join(rests)}" if rests else self.kind
        if last == 0:
            return f"no guarantee beyond the start: {self.reason}"
        told = f"within {self.bound[last]:.3g} of the flow up to t = {self.valid_until:.6g} ({kind})"
        if self.reason:
            told += f"; no guarantee beyond t = {self.valid_until:.6g}: {self.reason}"
        if self.amplification > LARGEST:
            told += f"; errors may have grown by {self.amplification:.1e}, which makes the bound vacuous"
        return told

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  {assumption}" for assumption in self.assumptions)])


def certify(
    problem: AbstractProblem,
    descent: Trajectory,
    curvature: str | Callable[[PyTree, float], Any] = "path",
    *,
    hessian_lipschitz: float | None = None,
    checks: int = 101,
    dense_limit: int = DENSE_LIMIT,
    tolerance: float = 1e-3,
    step_size: float | None = None,
) -> Certificate:
    """Bound how far a gradient descent that was run can be from the gradient flow of the same start.

    Descent is run again in compiled code, with two gradients a step, and must meet the saved states. On the polygon
    p(t) through its steps, e = |θ_flow − p| obeys, with ρ a Lipschitz constant of the Hessian and δ = |p' + ∇C(p)|,

        e' ≤ −λ_min(∇²C(p)) e + (ρ/2) e² + δ

    (Gronwall; Hairer, Nørsett and Wanner I.10.6, for gradients: Elkabetz and Cohen, arXiv 2107.06608, Theorem 1; the
    quadratic term with its factor ½, from |∫₀¹ ∇²C(p + s(θ−p)) ds − ∇²C(p)| ≤ ρe/2, is derived). The defect is zero at
    the start of a step and evaluated at its middle and end; in between it exceeds the straight line through these by
    no more than ρ|∇C|² u(h − u)/2 on a half step h. It is integrated in closed form against e^{−λt}.

    **Arguments:**

    - `descent`: a trajectory of `descend` with `GradientFlow` and a step size, saved with any `save_every`.
    - `curvature`: "path": λ_min at up to `checks` saved states, between which it may fall by ρ times the distance.
      "tube": ρ and a lower bound of λ_min in closed form on balls around the saved states, for deep linear networks
      with squared error (`curvature.deep_linear_tube`), joined with λ_min at the checked states where that is dense.
      Or a function like it, `(params, radius) -> constants` that hold within `radius` of the parameters, with the
      attributes of `curvature.DeepLinearTube`.
    - `hessian_lipschitz`: ρ for "path", if it is known; else it is sampled at 11 of the checked states, and doubled.
    - `dense_limit`: up to so many parameters λ_min is computed from the whole Hessian, K Hessian–vector products and K²
      numbers for each check; above it by Lanczos with `tolerance`, less the residual, which is sampled, not proven.
    - `step_size`: that of the descent, if its times do not tell.

    **Returns:** a `Certificate`. Where nothing can be guaranteed its bound is infinite, and `reason` says why.

    **Raises:** `CertificateError` for a run that is not gradient descent on this problem: of an optimiser, of a solver,
    of another flow or other data, with a gradient that changes from call to call, or beyond the limit of stability,
    where rounding alone makes a second run differ; `PrecisionError` if most of the bound is rounding;
    `ParameterError`, `StepSizeError`, `UnknownNameError` for other arguments that do not fit.

    The theorem needs a Hessian that is Lipschitz within the bound of the polygon. Networks with kinks (ReLU, max
    pooling) have none. A step across a kink ends the certificate if the gradient jumps by more than ρ allows on a step
    of that length; a kink beside the polygon goes unseen. The certificate of such a network is no guarantee.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([0.0]))  # C = w²/2
    >>> descent = fb.descend(problem, fb.GradientFlow(), jnp.array(1.0), step_size=0.25, steps=4)
    >>> certificate = fb.fidelity.certify(problem, descent)
    >>> print(certificate.bound.round(3), certificate.kind)  # e^{−t} − 0.75^{4t}
    [0.    0.029 0.044 0.05  0.051] conditional

    ```
    """
    matrix = saved_matrix(descent)
    check_real(matrix, "a descent")
    eta, counts = _steps(descent, step_size)
    states = [state_at(descent, index) for index in range(len(descent.times))]
    noise_unit = unit_roundoff(states[0])
    slope = _check_gradient(problem, states[0])
    checked = choose_checks(matrix, descent.times, checks)
    known, spectrum = curvature_along(
        problem, curvature, [states[i] for i in checked], hessian_lipschitz, dense_limit, tolerance
    )
    largest = 0.0 if spectrum is None else max(map(abs, spectrum.look(0)))
    walk = _Walk(
        problem=problem,
        matrix=matrix,
        states=states,
        counts=counts,
        step_size=eta,
        checked=checked,
        spectrum=spectrum,
        known=known,
        noise=NOISE * noise_unit * np.array([slope, 1.0, largest if np.isfinite(largest) else 0.0]),
        noise_unit=noise_unit,
    )
    code = walk.run()
    bound, rounding = walk.bound, walk.rounding
    last = int(np.flatnonzero(np.isfinite(bound))[-1])
    if last and rounding[last] > 0.5 * bound[last]:
        raise PrecisionError(
            f"the bound {bound[last]:.1e} at t = {descent.times[last]:g} is mostly rounding ({rounding[last]:.1e}) in "
            f"{matrix.dtype}",
            "a step size whose error stands out from rounding",
            'enable float64 with `jax.config.update("jax_enable_x64", True)` first, or take larger steps',
        )
    assumptions = walk.assumptions()
    return Certificate(
        times=descent.times,
        bound=bound,
        rounding=rounding,
        valid_until=float(descent.times[last]),
        reason=REASONS.get(code, ""),
        kind=kind_of(assumptions),
        assumptions=assumptions,
        amplification=float(np.exp(min(walk.growth, 700.0))),
        step_size=eta,
        checked_times=descent.times[checked],
        smallest_eigenvalues=np.full(len(checked), np.nan) if spectrum is None else spectrum.lower,
        lipschitz=walk.largest_lipschitz,
    )


class _Walk:
    """The way along the polygon, stretch by stretch between the states where the Hessian was looked at."""

    def __init__(
        self,
        *,
        problem: AbstractProblem,
        matrix: np.ndarray,
        states: list[PyTree],
        counts: list[int],
        step_size: float,
        checked: list[int],
        spectrum: Spectrum | None,
        known: Tube | Assumption,
        noise: np.ndarray,
        noise_unit: float,
    ) -> None:
        self.problem, self.matrix, self.states, self.counts = problem, matrix, states, counts
        self.step_size, self.checked, self.spectrum, self.known = step_size, checked, spectrum, known
        self.noise, self.noise_unit = noise, noise_unit
        self.bound = np.full(len(states), np.inf)
        self.rounding = np.full(len(states), np.inf)
        self.bound[0] = self.rounding[0] = self.growth = 0.0
        self.largest_lipschitz = known.value if isinstance(known, Assumption) else 0.0
        self.largest_radius, self.lowest_floor = 0.0, np.inf

    def run(self) -> int:
        """Walk to the end, or to where the bound ends; return the code of the reason."""
        for place in range(len(self.checked) - 1):
            code = self._stretch(place)
            if code != HOLDS:
                return code
        return HOLDS

    def _stretch(self, place: int) -> int:
        """Walk from one check to the next; on tubes, with radii that grow until they hold the bound."""
        first, last = self.checked[place], self.checked[place + 1]
        lowest = np.full(2, -np.inf)
        if self.spectrum is not None:
            lowest = np.array([self.spectrum.look(place)[0], self.spectrum.look(place + 1)[0]])
        if isinstance(self.known, Assumption):
            lipschitz = self.known.value
            if not np.all(np.isfinite(lowest)):
                return NONFINITE
            apart = np.linalg.norm(self.matrix[last] - self.matrix[first])
            if abs(lowest[1] - lowest[0]) > lipschitz * apart + self._slack(lowest):
                return KINK
            return self._try(first, last, self._curvature(lowest, -np.inf, lipschitz, np.inf))
        reach = float(np.max(np.linalg.norm(self.matrix[first : last + 1] - self.matrix[first], axis=1)))
        radius = 1.05 * reach + 1.5 * float(self.bound[first]) + 1e-3 * self.step_size
        for _ in range(40):
            constants = self.known(self.states[first], radius)
            if not constants.finite:
                return OUT_OF_REACH
            code = self._try(first, last, self._curvature(lowest, constants.floor, constants.lipschitz, radius))
            if code not in (OUT_OF_REACH, RUNAWAY):  # which a larger tube may hold
                self.largest_radius = max(self.largest_radius, radius)
                self.lowest_floor = min(self.lowest_floor, constants.floor)
                self.largest_lipschitz = max(self.largest_lipschitz, constants.lipschitz)
                return code
            radius *= 1.5
        return OUT_OF_REACH

    def _try(self, first: int, last: int, curvature: Curvature) -> int:
        scalar = jnp.asarray(self.bound[first], curvature.floor.dtype)
        rounding, growth = (jnp.asarray(x, scalar.dtype) for x in (self.rounding[first], self.growth))
        bound = Bound(scalar, rounding, growth, jnp.zeros_like(scalar), jnp.zeros((), jnp.int32))
        ends = (self.states[first], self.states[last])
        for index in range(first, last):
            steps = jnp.asarray(self.counts[index + 1] - self.counts[index])
            start = bound.path
            eta = jnp.asarray(self.step_size, scalar.dtype)
            state, bound = advance(self.problem, self.states[index], ends, curvature, bound, eta, steps)
            code = int(bound.code)
            if code != HOLDS:
                return code
            # The saved state is where the next steps start: what rounding did in between is part of the bound.
            jump = float(trees.norm(trees.subtract(state, self.states[index + 1])))
            scale = float(bound.path - start)
            noise = 1e3 * self.noise_unit * int(steps) * float(np.linalg.norm(self.matrix[index]))
            if not jump <= 1e-4 * scale + noise:
                raise _not_reproduced(self.counts[index + 1], jump, scale)
            bound = bound._replace(error=bound.error + jump, rounding=bound.rounding + jump)
            self.bound[index + 1], self.rounding[index + 1] = float(bound.error), float(bound.rounding)
        self.growth = float(bound.growth)
        return HOLDS

    def _curvature(self, lowest: np.ndarray, floor: float, lipschitz: float, radius: float) -> Curvature:
        return Curvature(
            *(jnp.asarray(x, jnp.result_type(float)) for x in (lowest, floor, lipschitz, radius, self.noise))
        )

    def _slack(self, lowest: np.ndarray) -> float:
        return 1e4 * self.noise_unit * float(np.max(np.abs(lowest)))

    def assumptions(self) -> tuple[Assumption, ...]:
        """List what the bound rests on."""
        known = [] if self.spectrum is None else [self.spectrum.assumption]
        if isinstance(self.known, Assumption):
            return (*known, self.known)
        note = f"{self.known.note}, within {self.largest_radius:.2g} of the saved states"
        status = self.known.status
        return (
            *known,
            Assumption("lower bound of the Hessian", self.lowest_floor, status, note),
            Assumption("Lipschitz constant of the Hessian", self.largest_lipschitz, status, note),
        )


def _steps(descent: Trajectory, step_size: float | None) -> tuple[float, list[int]]:
    """Find the step size of a descent and the number of steps before each saved time."""
    method = descent.stats.get("method")
    if method != "Euler":
        raise CertificateError(
            f"a run of the method {method}",
            "a gradient descent with a fixed step size, `descend(problem, fb.GradientFlow(), …, step_size=…)`",
            "certify speaks of descent along the gradient alone; compare other runs by `fb.fidelity.distance`",
        )
    if len(descent.times) < 2:
        raise CertificateError("a descent that saved its start only", "at least one step", "run it further")
    taken = int(descent.stats.get("steps", 0))
    eta = float(descent.times[-1]) / max(taken, 1) if step_size is None else float(step_size)
    if not (np.isfinite(eta) and eta > 0):
        raise StepSizeError(f"step_size = {eta}", "a positive step size", "pass the one the descent was run with")
    counts = np.rint(descent.times / eta).astype(int)
    off = np.max(np.abs(descent.times / eta - counts))
    if off > 0.25 or np.any(np.diff(counts) < 1):
        raise StepSizeError(
            f"saved times that are up to {off:.2g} steps of size {eta:g} away from whole ones",
            "the step size that the descent was run with",
            "pass `step_size=`",
        )
    return eta, counts.tolist()


def _check_gradient(problem: AbstractProblem, params: PyTree) -> float:
    """Compute the gradient twice: it must be the same, or no second run of the descent can be."""
    first, second = problem.gradient(params), problem.gradient(params)
    size = float(trees.norm(first))
    if np.isfinite(size) and float(trees.norm(trees.subtract(first, second))) > 0:
        raise CertificateError(
            "a gradient that changes from one call to the next",
            "the gradient of one cost over the whole data",
            "take the randomness out of `apply`: fix its key, turn dropout off",
        )
    return size


def _not_reproduced(step: int, jump: float, scale: float) -> CertificateError:
    return CertificateError(
        f"gradient descent on this problem misses the state saved after step {step} by {jump:.1e}, having moved by "
        f"{scale:.1e}",
        "a descent by `GradientFlow` on this very problem, below the limit of stability",
        "pass the problem that was descended; save more often; beyond step size 2/sharpness no two runs agree",
    )
