"""Several step sizes against one flow: measured, estimated and guaranteed distances side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import numpy as np

from ..errors import CertificateError, PrecisionError, StepSizeError
from ..flows import GradientFlow
from ..problem import AbstractProblem
from ..solvers import Trajectory, descend, integrate
from ..trees import PyTree
from ._certify import Certificate, certify
from ._comparison import Comparison, Run
from ._distance import distance
from ._first_order import first_order_error
from ._measured import Spectrum
from ._modified import ModifiedFlow
from ._states import state_at

SMALL = 300  # parameters, up to which the whole Hessian is the quickest way to its largest eigenvalue
SAME = 1e-9  # relative: step sizes in a whole ratio, and times that are the same


def compare(
    problem: AbstractProblem,
    params: PyTree,
    step_sizes: float | Sequence[float],
    t1: float,
    *,
    curvature: str | Callable[[PyTree, float], Any] | None = "path",
    hessian_lipschitz: float | None = None,
    checks: int = 41,
    n_times: int = 40,
    rtol: float = 1e-9,
    atol: float = 1e-11,
    method: str | diffrax.AbstractERK = "auto",
) -> Comparison:
    """Compare gradient descent at several step sizes with its gradient flow: how faithful is each?

    Descent with step size η takes K = ⌊t1/η⌋ steps and is compared at times kη, where the flow is solved; a descent is
    never interpolated. Beside the true distance |θ_k − θ(kη)| stand

    - the first-order estimate η|v|, see `first_order_error`;
    - Richardson's estimate |θ^η − θ^{η′}| η/|η − η′|, which needs descents alone: its partner is the finest other
      step size in a whole ratio with η. With several partners their estimates must agree; the spread says how far they
      do not, and beyond 5 % the step sizes are too large for any estimate of first order;
    - the distance from the modified flow, see `ModifiedFlow`: a flow that descent follows to second order;
    - the bound of `certify`;
    - η times the largest Hessian eigenvalue along the flow: beyond 2 descent cannot follow.

    **Arguments:**

    - `step_sizes`: one or several, positive, not above `t1`; a series such as η, η/2, η/5 serves Richardson best.
    - `curvature`, `hessian_lipschitz`, `checks`: see `certify`; `curvature=None` leaves the certificates out.
    - `n_times`: about how many times to compare at.
    - `rtol`, `atol`, `method`: of the flow, see `integrate`. It is solved a second time at ten times the tolerances, so
      that the difference shows the solver's own error.

    **Returns:** a `Comparison`, with `table()`, `figure()` and `to_xarray()`.

    **Raises:** `StepSizeError`, and what `integrate` and `descend` raise. A descent that diverges is compared until it
    does.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([0.0]))
    >>> found = fb.fidelity.compare(problem, jnp.array(1.0), [0.2, 0.1], t1=1.0, rtol=1e-5, curvature=None)
    >>> found.table()[["step_size", "distance", "first_order"]].round(3).values.tolist()  # e^{−1} − (1 − η)^{1/η}
    [[0.1, 0.019, 0.018], [0.2, 0.04, 0.037]]

    ```
    """
    sizes = _checked(step_sizes, t1)
    descents = _descents(problem, params, sizes, t1, n_times)
    times = _merged([run.times for run in descents])
    end = float(times[-1])
    flow, looser = (
        integrate(
            problem, GradientFlow(), params, end, rtol=factor * rtol, atol=factor * atol, times=times, method=method
        )
        for factor in (1.0, 10.0)
    )
    flow.raise_if_failed()
    solver_error = float(np.max(distance(flow, looser)[1]))
    first_order = first_order_error(problem, flow, rtol=max(rtol, 1e-8), atol=max(atol, 1e-10), method=method)
    sharpness = _sharpness(problem, flow)
    runs: list[Run] = []
    for size, descent in zip(sizes, descents, strict=True):
        modified = integrate(
            problem,
            ModifiedFlow(size),
            params,
            float(descent.times[-1]),
            rtol=rtol,
            atol=atol,
            times=descent.times,
            method=method,
        )
        certificate = _certificate(problem, descent, curvature, hessian_lipschitz, checks, size)
        shared, distances = distance(descent, flow)
        near = np.abs(times[None, :] - shared[:, None]).argmin(axis=1)
        estimate, spread = _richardson(sizes, descents, size)
        runs.append(
            Run(
                step_size=size,
                descent=descent,
                times=shared,
                distance=distances,
                first_order=size * first_order.norms[near],
                modified=_on(shared, *distance(descent, modified)),
                richardson=_on(shared, *estimate),
                richardson_spread=spread,
                certificate=certificate,
                stability=size * sharpness[near],
            )
        )
    return Comparison(flow=flow, runs=tuple(runs), solver_error=solver_error, t1=float(t1))


def _checked(step_sizes: float | Sequence[float], t1: float) -> list[float]:
    sizes = sorted({float(size) for size in np.atleast_1d(np.asarray(step_sizes, float)).ravel()})
    if not sizes or not all(np.isfinite(size) and 0 < size <= t1 * (1 + SAME) for size in sizes):
        raise StepSizeError(
            f"step sizes {step_sizes} for a time span of {t1}",
            "positive step sizes, each at most the span",
            "pass smaller step sizes or a longer time span",
        )
    return sizes


def _descents(
    problem: AbstractProblem, params: PyTree, sizes: list[float], t1: float, n_times: int
) -> list[Trajectory]:
    """Descend at every step size, saved at the times of the largest one wherever whole steps lead there."""
    largest = sizes[-1]
    stride = max(1, int(np.ceil(np.floor(t1 / largest * (1 + SAME)) / n_times)))
    descents: list[Trajectory] = []
    for size in sizes:
        steps = int(np.floor(t1 / size * (1 + SAME)))
        every = stride * round(largest / size) if _whole(largest, size) else max(1, int(np.ceil(steps / n_times)))
        descents.append(descend(problem, GradientFlow(), params, step_size=size, steps=steps, save_every=every))
    return descents


def _whole(large: float, small: float) -> bool:
    ratio = large / small
    return bool(abs(ratio - round(ratio)) <= SAME * ratio)


def _merged(grids: Sequence[np.ndarray]) -> np.ndarray:
    """Unite grids of times, those that differ by rounding only once."""
    times = np.unique(np.concatenate(grids))
    return times[np.concatenate([[True], np.diff(times) > 0.1 * SAME * times[-1]])]


def _richardson(
    sizes: list[float], descents: list[Trajectory], size: float
) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """Estimate a descent's distance from the flow by other descents; and how far their estimates differ at the end."""
    place = sizes.index(size)
    partners = [
        other
        for other, far in enumerate(sizes)
        if other != place and _whole(max(far, size), min(far, size)) and not descents[other].result.failed
    ]
    finer = [other for other in partners if sizes[other] < size]
    estimates: list[tuple[np.ndarray, np.ndarray]] = []
    for other in finer or partners[:1]:
        times, apart = distance(descents[place], descents[other])
        estimates.append((times, apart * size / abs(size - sizes[other])))
    if not estimates:
        return (np.zeros(0), np.zeros(0)), float("nan")
    ends = np.array([values[-1] for _, values in estimates])
    spread = float(ends.max() / ends.min() - 1) if len(ends) > 1 and ends.min() > 0 else float("nan")
    return estimates[0], spread


def _certificate(
    problem: AbstractProblem,
    descent: Trajectory,
    curvature: Any,
    hessian_lipschitz: float | None,
    checks: int,
    step_size: float,
) -> Certificate | str:
    """Certify a descent, or say why not."""
    if curvature is None:
        return "not asked for"
    try:
        return certify(
            problem, descent, curvature, hessian_lipschitz=hessian_lipschitz, checks=checks, step_size=step_size
        )
    except (CertificateError, PrecisionError) as error:
        return str(error)


def _sharpness(problem: AbstractProblem, flow: Trajectory) -> np.ndarray:
    """Bound the largest Hessian eigenvalue along the flow from above."""
    states = [state_at(flow, index) for index in range(len(flow.times))]
    spectrum = Spectrum(problem, states, dense_limit=SMALL, tolerance=1e-3)
    spectrum.look_everywhere()
    return spectrum.upper


def _on(times: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Place values known at some of the times among all of them, NaN elsewhere."""
    placed = np.full(len(times), np.nan)
    for time, value in zip(known, values, strict=True):
        placed[np.abs(times - time).argmin()] = value
    return placed
