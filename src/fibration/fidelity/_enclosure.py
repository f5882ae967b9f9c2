"""A two-sided bound of the distance to the true flow, from an accurate solution that is validated."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..curvature import hvp
from ..errors import CertificateError, PrecisionError
from ..flows import GradientFlow
from ..problem import AbstractProblem
from ..solvers import Options, Trajectory, integrate
from ..trees import PyTree
from ._assumptions import Assumption, Kind, kind_of
from ._constants import choose_checks, curvature_along
from ._growth import MAX_FIXED_POINT, phi1
from ._measured import DENSE_LIMIT, Spectrum
from ._states import check_real, saved_matrix, state_at, unit_roundoff
from ._tube import Tube

PARTS, MOST_PARTS = 4, 64  # of an interval between saved times: at first, and at most
MOST_STEPS = 100_000  # of the solved flow; a kink along which a flow slides takes any number
POINTS = np.linspace(0.0, 1.0, 11)[1:-1]  # of a part, at which the defect is sampled
MARGIN = 1.5
ORDER = 5  # the defect of a quintic interpolant is of fifth order in its length


@dataclass(frozen=True)
class Enclosure:
    """Two bounds between which the distance from the true flow lies.

    - `times` (T,), `distance` (T,): the measured distance from the solved flow; `error` (T,): a bound of that
      solution's own error, infinite after `valid_until`; `lower`, `upper` (T,): distance ∓ error, not below 0.
    - `valid_until`, `kind`, `assumptions`: as for `Certificate`; `defect`: the largest defect of the solution found.
    """

    times: Float[np.ndarray, " T"]
    distance: Float[np.ndarray, " T"]
    error: Float[np.ndarray, " T"]
    valid_until: float
    kind: Kind
    assumptions: tuple[Assumption, ...]
    defect: float

    @property
    def lower(self) -> Float[np.ndarray, " T"]:
        """The distance from the true flow is at least this, (T,)."""
        return np.maximum(self.distance - self.error, 0.0)

    @property
    def upper(self) -> Float[np.ndarray, " T"]:
        """The distance from the true flow is at most this, (T,)."""
        return self.distance + self.error

    @property
    def message(self) -> str:
        """What is enclosed, in a sentence."""
        last = int(np.flatnonzero(np.isfinite(self.error))[-1])
        told = f"{self.distance[last]:.4g} ± {self.error[last]:.1e} from the flow at t = {self.valid_until:.6g}"
        beyond = "" if last == len(self.times) - 1 else f"; no guarantee beyond t = {self.valid_until:.6g}"
        return f"{told} ({self.kind}){beyond}"

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  {assumption}" for assumption in self.assumptions)])


def enclose(
    problem: AbstractProblem,
    run: Trajectory,
    curvature: str | Callable[[PyTree, float], Any] = "path",
    *,
    hessian_lipschitz: float | None = None,
    checks: int = 101,
    dense_limit: int = DENSE_LIMIT,
    tolerance: float = 1e-3,
    rtol: float = 1e-12,
    atol: float = 1e-14,
) -> Enclosure:
    """Enclose the distance between a run and the true gradient flow of the same start, from above and from below.

    The flow is solved to tight tolerances and made a smooth curve y(t) by quintic interpolation of its values,
    velocities −∇C and accelerations ∇²C ∇C. Its own distance E from the true flow obeys the inequality of `certify`,
    with the tiny defect |y' + ∇C(y)| in the place of that of descent's polygon, so that

        | |θ_run − θ_flow| − |θ_run − y| | ≤ E.

    It holds out longer than `certify`, and is all but exact while it does (derived; Hairer, Nørsett and Wanner I.10.6).

    **Arguments:** `run`: a descent along the gradient, or any trajectory that starts where the flow does and saved its
    start. `rtol`, `atol`: of the solution. The others are those of `certify`.

    **Returns:** an `Enclosure`; its `kind` is "conditional", since the defect is sampled, at 9 points of each part of
    the curve, and multiplied by 1.5.

    **Raises:** `PrecisionError` in less than float64; `CertificateError` for a run whose first saved time is not its
    start; `DivergedError` if the flow cannot be solved; `ParameterError`, `UnknownNameError`, `MemoryBudgetError`.

    Saves the flow at 4 to 64 times for each saved time of the run.

    ```python
    >>> import jax, jax.numpy as jnp
    >>> import fibration as fb
    >>> with jax.enable_x64(True):
    ...     problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([0.0]))
    ...     descent = fb.descend(problem, fb.GradientFlow(), jnp.array(1.0), step_size=0.25, steps=4)
    ...     found = fb.fidelity.enclose(problem, descent)
    >>> print(found.distance[-1].round(6), bool(found.error[-1] < 1e-8))  # e⁻¹ − 0.75⁴
    0.051473 True

    ```
    """
    matrix = saved_matrix(run)
    check_real(matrix, "a run")
    start = state_at(run, 0)
    if unit_roundoff(start) > 1e-12:
        raise PrecisionError(
            f"parameters in {matrix.dtype}",
            "float64, in which a flow can be solved to a validated accuracy",
            'enable it with `jax.config.update("jax_enable_x64", True)` before making arrays',
        )
    if run.times[0] != 0 or len(run.times) < 2 or run.stats.get("method") == "optax":
        raise CertificateError(
            f"a run of the method {run.stats.get('method')}, saved {len(run.times)} times from t = {run.times[0]:g}",
            "a run in the flow's own time from its start at t = 0, and at least one more saved time",
            "pass a descent along a flow, which saves its start",
        )
    parts = np.full(len(run.times) - 1, PARTS)
    flow, defects = _solve(problem, start, run.times, parts, rtol, atol)
    # Where the defect is larger than rounding leaves it, shorter parts make it smaller.
    worst = np.maximum.reduceat(defects, np.concatenate([[0], np.cumsum(parts)[:-1]]))
    speed = float(np.max(np.linalg.norm(np.diff(matrix, axis=0), axis=1) / np.diff(run.times)))
    finer = np.ceil(PARTS * (worst / max(1e-9 * speed, np.finfo(float).tiny)) ** (1 / ORDER))
    finer = np.clip(np.nan_to_num(finer, nan=PARTS), PARTS, MOST_PARTS).astype(int)
    if np.any(finer > PARTS):
        parts = finer
        flow, defects = _solve(problem, start, run.times, parts, rtol, atol)
    nodes = saved_matrix(flow)
    places = np.concatenate([[0], np.cumsum(parts)])
    checked = choose_checks(nodes, flow.times, checks)
    states = [state_at(flow, index) for index in checked]
    known, spectrum = curvature_along(problem, curvature, states, hessian_lipschitz, dense_limit, tolerance)
    errors, assumption = _errors(flow.times, nodes, defects, checked, states, known, spectrum)
    error = errors[places]
    last = int(np.flatnonzero(np.isfinite(error))[-1])
    listed = [assumption] if spectrum is None else [spectrum.assumption, assumption]
    note = f"{MARGIN} times the largest found at {len(POINTS)} points of each of {len(defects)} parts"
    listed.append(Assumption("defect of the solved flow", float(np.max(defects)), "sampled", note))
    return Enclosure(
        times=run.times,
        distance=np.linalg.norm(matrix - nodes[places], axis=1),
        error=error,
        valid_until=float(run.times[last]),
        kind=kind_of(listed),
        assumptions=tuple(listed),
        defect=float(np.max(defects)),
    )


def _solve(
    problem: AbstractProblem, start: PyTree, times: np.ndarray, parts: np.ndarray, rtol: float, atol: float
) -> tuple[Trajectory, np.ndarray]:
    """Solve the flow, saved at so many parts of each interval, and sample the defect of its interpolant on each."""
    pieces = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(times[:-1], times[1:], parts, strict=True)]
    grid = np.append(np.concatenate(pieces), times[-1])
    options = Options(max_steps=MOST_STEPS)
    flow = integrate(
        problem, GradientFlow(), start, float(times[-1]), rtol=rtol, atol=atol, times=grid, options=options
    )
    if flow.result.code in ("max_steps", "step_underflow"):
        raise CertificateError(
            f"the flow could be solved at rtol {rtol:g} up to t = {flow.result.time:.4g} of {times[-1]:g} only, "
            f"in {flow.stats['steps']:,} steps",
            "a smooth flow",
            "take a descent that ends before, or a larger rtol; where a ReLU network slides along a kink there is no "
            "enclosure: measure the distance to a flow solved at rtol 1e-6 by `fb.fidelity.distance`",
        )
    flow.raise_if_failed()
    states = [state_at(flow, index) for index in range(len(grid))]
    lengths = np.diff(flow.times)
    found = [
        float(_defect(problem, left, right, jnp.asarray(length), jnp.asarray(POINTS)))
        for left, right, length in zip(states[:-1], states[1:], lengths, strict=True)
    ]
    return flow, MARGIN * np.array(found)


@eqx.filter_jit
def _defect(
    problem: AbstractProblem,
    left: PyTree,
    right: PyTree,
    length: Float[Array, ""],
    points: Float[Array, " p"],
) -> Float[Array, ""]:
    """Find the largest |y' + ∇C(y)| at some points of the quintic through two states of a gradient flow."""
    _, constant = eqx.partition(left, eqx.is_inexact_array)
    unravel = ravel_pytree(eqx.filter(left, eqx.is_inexact_array))[1]

    def jet(params: PyTree) -> tuple[Array, Array, Array]:
        """Give the state, its velocity −∇C and its acceleration ∇²C ∇C, raveled and in the unit of the part."""
        gradient = eqx.filter(problem.gradient(params), eqx.is_inexact_array)
        value = ravel_pytree(eqx.filter(params, eqx.is_inexact_array))[0]
        turn = ravel_pytree(eqx.filter(hvp(problem, params, gradient), eqx.is_inexact_array))[0]
        return value, -length * ravel_pytree(gradient)[0], length**2 * turn

    (y0, v0, a0), (y1, v1, a1) = jet(left), jet(right)
    rise, speed, turn = y1 - y0 - v0 - a0 / 2, v1 - v0 - a0, a1 - a0
    # y = y0 + v0 s + a0 s²/2 + c3 s³ + c4 s⁴ + c5 s⁵ with the values, velocities and accelerations of both ends.
    c3 = 10 * rise - 4 * speed + turn / 2
    c4 = -15 * rise + 7 * speed - turn
    c5 = 6 * rise - 3 * speed + turn / 2

    def size(s: Array) -> Array:
        y = y0 + s * (v0 + s * (a0 / 2 + s * (c3 + s * (c4 + s * c5))))
        slope = (v0 + s * (a0 + s * (3 * c3 + s * (4 * c4 + s * 5 * c5)))) / length
        gradient = eqx.filter(problem.gradient(eqx.combine(unravel(y), constant)), eqx.is_inexact_array)
        return jnp.linalg.norm(slope + ravel_pytree(gradient)[0])

    return jnp.max(jax.lax.map(size, points))


def _errors(
    times: np.ndarray,
    nodes: np.ndarray,
    defects: np.ndarray,
    checked: list[int],
    states: list[PyTree],
    known: Tube | Assumption,
    spectrum: Spectrum | None,
) -> tuple[np.ndarray, Assumption]:
    """Carry the bound of the solution's error along, part by part; and say which Lipschitz constant it used."""
    errors = np.full(len(times), np.inf)
    errors[0] = 0.0
    used = 0.0
    lengths = np.diff(times)
    # The quintic hardly leaves the chord; half of it more is room enough for the curve between two nodes.
    room = 0.5 * np.linalg.norm(np.diff(nodes, axis=0), axis=1)
    for place in range(len(checked) - 1):
        first, last = checked[place], checked[place + 1]
        apart = np.linalg.norm(nodes[first : last + 1, None] - nodes[[first, last]], axis=2)
        reach = np.maximum(apart[:-1], apart[1:]) + room[first:last, None]
        floor, radius = -np.inf, np.inf
        if isinstance(known, Assumption):
            lipschitz = known.value
        else:
            radius = float(
                1.01 * np.max(reach[:, 0]) + 1e3 * errors[first] + np.sum(defects[first:last] * lengths[first:last])
            )
            constants = known(states[place], radius)
            floor, lipschitz = constants.floor, constants.lipschitz
        lower = np.full(2, -np.inf)
        if spectrum is not None:
            lower = np.array([spectrum.look(place)[0], spectrum.look(place + 1)[0]])
        used = max(used, lipschitz)
        if not (np.isfinite(lipschitz) and (np.isfinite(floor) or np.all(np.isfinite(lower)))):
            break
        for index in range(first, last):
            lowest = float(np.max(lower - lipschitz * reach[index - first]))
            error, highest = _one(errors[index], float(defects[index]), float(lengths[index]), lowest, floor, lipschitz)
            if not np.isfinite(error) or reach[index - first, 0] + highest > radius:
                return errors, _lipschitz(known, used)
            errors[index + 1] = error
    return errors, _lipschitz(known, used)


def _one(
    error: float, defect: float, length: float, lowest: float, floor: float, lipschitz: float
) -> tuple[float, float]:
    """Carry an error bound over one part with a constant defect; its end and its largest value, or infinity."""
    highest = error + length * defect
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(MAX_FIXED_POINT):
            rate = -max(floor, lowest - 0.5 * lipschitz * highest)
            image = max(1.0, float(np.exp(length * rate))) * (error + length * defect)
            if image <= highest:
                z = np.asarray(length * rate)
                return float(np.exp(z) * error + defect * length * phi1(z)), highest
            highest = image * (1 + 1e-6)
    return np.inf, np.inf


def _lipschitz(known: Tube | Assumption, used: float) -> Assumption:
    if isinstance(known, Assumption):
        return known
    return Assumption("Lipschitz constant of the Hessian", used, known.status, known.note)
