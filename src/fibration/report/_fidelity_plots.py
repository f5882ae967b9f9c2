"""The plots of a fidelity study."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .. import fidelity
from ..errors import EmptyDataError
from ..plots import Line, Plot, Series, to_matplotlib
from ..plots._numbers import distinct, listed, number
from ..solvers import Trajectory
from ..study import FidelityStudy

if TYPE_CHECKING:
    import matplotlib.figure

TIME = "time (step size × steps)"
OVER = "; where curves coincide, the larger step size lies on top"
CUT = "; what lies above the frame is cut off"


def fidelity_plots(study: FidelityStudy) -> list[Plot]:
    """Describe the five plots of a study: cost, distance from the flow, distance travelled, sharpness, order.

    **Raises:** `EmptyDataError` for a study without descents.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([0.0]))
    >>> study = fb.study.fidelity_study(problem, jnp.array(1.0), t1=4.0, fractions=(0.1, 0.5), n_times=3, rtol=1e-4)
    >>> [plot.title for plot in fb.report.fidelity_plots(study)][0]
    'Cost against time'

    ```
    """
    return [
        cost_plot(study),
        distance_plot(study),
        travelled_plot(study),
        sharpness_plot(study),
        order_plot(study),
    ]


def summary_figure(study: FidelityStudy) -> "matplotlib.figure.Figure":
    """Draw the sharpness with the lines 2/step size beside the distance from the flow, 10 × 4 inches.

    **Raises:** `MissingExtraError` without matplotlib; `EmptyDataError` for a study without descents.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([0.0]))
    >>> study = fb.study.fidelity_study(problem, jnp.array(1.0), t1=4.0, fractions=(0.1,), n_times=3, rtol=1e-4)
    >>> len(fb.report.summary_figure(study).axes)
    2

    ```
    """
    return to_matplotlib([sharpness_plot(study), distance_plot(study)])


def cost_plot(study: FidelityStudy) -> Plot:
    """Describe the cost against time, flow and descents."""
    curves = _curves(study, [_costs(run) for run in (study.flow, *study.descents)])
    limits = shown_range(curves, 100 * largest(curves[0].y), log=True)
    return Plot(
        "Cost against time",
        "The cost along the gradient flow and along each descent, compared at the same time, which for a descent is "
        f"the step size times the number of steps{OVER}{CUT if limits else ''}.",
        TIME,
        "cost",
        curves,
        y_log=True,
        y_range=limits,
    )


def distance_plot(study: FidelityStudy) -> Plot:
    """Describe each descent's distance from the flow, relative to how far the flow has travelled."""
    curves = tuple(
        Series(name, *relative_distance(study, index), colour=index + 1) for index, name in enumerate(names(study)[1:])
    )
    limits = shown_range(curves, 100.0, log=True)
    return Plot(
        "Distance from the flow",
        "How far the parameters of each descent are from those of the gradient flow at the same time, divided by how "
        f"far the flow has travelled from the start: |θ_descent − θ_flow| / |θ_flow − θ_start|{CUT if limits else ''}.",
        TIME,
        "relative distance from the flow",
        curves,
        moments=_crossings(study),
        y_log=True,
        y_range=limits,
    )


def travelled_plot(study: FidelityStudy) -> Plot:
    """Describe the distance from the start against time, flow and descents."""
    curves = _curves(study, [travelled(run) for run in (study.flow, *study.descents)])
    limits = shown_range(curves, 4 * largest(curves[0].y), log=False)
    return Plot(
        "Distance from the start",
        "How far the gradient flow and each descent have travelled from their common start in parameter space, "
        f"|θ(t) − θ_start|{OVER}{CUT if limits else ''}.",
        TIME,
        "distance from start",
        curves,
        y_range=limits,
    )


def sharpness_plot(study: FidelityStudy) -> Plot:
    """Describe the sharpness along each run, with the lines 2/step size that are near."""
    curves = _curves(study, [run.observed["sharpness"] for run in (study.flow, *study.descents)])
    highest = largest(curves[0].y)
    lowest = min((c.y[np.isfinite(c.y)].min(initial=highest) for c in curves), default=highest)
    reach = highest + max(highest - lowest, 0.2 * abs(highest))
    all_levels = [
        Line(f"2/{text} = {number(2 / step)}", 2 / step, index + 1)
        for index, (step, text) in enumerate(zip(study.step_sizes, distinct(study.step_sizes), strict=True))
    ]
    levels = tuple(level for level in all_levels if lowest - 0.2 * (highest - lowest) <= level.value <= reach)
    others = [level.name for level in all_levels if level not in levels]
    limits = shown_range(curves, 1.5 * reach, log=False, levels=levels)
    left_out = f"; left out, too far away to show: {listed(others)}" if others else ""
    return Plot(
        "Sharpness",
        "The largest eigenvalue of the Hessian along each run: gradient descent is stable only where it is below "
        f"2/step size (dashed){left_out}{OVER}{CUT if limits else ''}.",
        TIME,
        "sharpness",
        curves,
        levels,
        _crossings(study),
        y_range=limits,
    )


def order_plot(study: FidelityStudy) -> Plot:
    """Describe the distance at the end against the step size, with a line of slope one."""
    ends = [
        (step, final_distance(study, index))
        for index, step in enumerate(study.step_sizes)
        if reached_end(study, study.descents[index])
    ]
    x, y = np.array(ends, float).reshape(-1, 2).T
    curves = [Series("descents", x, y, marker="circle")] if len(x) else []
    if len(x) and y[0] > 0 and np.isfinite(y[0]):
        x_line = np.array([x[0], x[-1]])
        curves.insert(0, Series("slope one", x_line, y[0] * x_line / x[0], 0, "dotted"))
    lost = [
        text
        for text, run in zip(distinct(study.step_sizes), study.descents, strict=True)
        if not reached_end(study, run)
    ]
    left_out = f"; left out, since the descent ended early: step size {listed(lost)}" if lost else ""
    return Plot(
        "Distance at the end against step size",
        f"|θ_descent − θ_flow| at t = {study.flow.times[-1]:.6g}: along the dotted line, drawn through the first "
        f"point, it is proportional to the step size, as it is while descents follow the flow{left_out}.",
        "step size",
        "distance from the flow at the end",
        tuple(curves),
        x_log=True,
        y_log=True,
    )


def names(study: FidelityStudy) -> list[str]:
    """Name the flow and the descents, as legends do.

    **Raises:** `EmptyDataError` for a study without descents.
    """
    if not study.descents:
        raise EmptyDataError(
            "a study without descents", "at least one descent to compare with the flow", "pass `fractions`"
        )
    return ["gradient flow", *(f"step size {text}" for text in distinct(study.step_sizes))]


def travelled(run: Trajectory) -> np.ndarray:
    """Compute |θ(t) − θ_start| (T,), infinite where a diverging descent overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(fidelity.distance_from_start(run), float)


def distance(study: FidelityStudy, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute a descent's times shared with the flow, its distances from it, and the flow's own from the start."""
    with np.errstate(over="ignore", invalid="ignore"):
        times, distances = fidelity.distance(study.descents[index], study.flow)
    nearest = np.abs(study.flow.times[None, :] - times[:, None]).argmin(axis=1)
    return times, np.asarray(distances, float), travelled(study.flow)[nearest]


def relative_distance(study: FidelityStudy, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute times, and distance from the flow over the flow's distance from the start; NaN where that is zero."""
    times, distances, own = distance(study, index)
    return times, np.divide(distances, own, out=np.full_like(distances, np.nan), where=own > 0)


def final_distance(study: FidelityStudy, index: int) -> float:
    """Compute a descent's distance from the flow at its last saved time."""
    return float(distance(study, index)[1][-1])


def reached_end(study: FidelityStudy, run: Trajectory) -> bool:
    """Tell whether a descent went on to the flow's last time without failing."""
    return not run.result.failed and bool(np.isclose(run.times[-1], study.flow.times[-1]))


def _curves(study: FidelityStudy, values: Sequence[np.ndarray]) -> tuple[Series, ...]:
    """Make one series for each run: the flow broad and grey, the descents over it."""
    runs = (study.flow, *study.descents)
    return tuple(
        Series(name, run.times, y, index, wide=index == 0)
        for index, (name, run, y) in enumerate(zip(names(study), runs, values, strict=True))
    )


def _costs(run: Trajectory) -> np.ndarray:
    return np.full(len(run.times), np.nan) if run.costs is None else run.costs


def _crossings(study: FidelityStudy) -> tuple[Line, ...]:
    """List the times at which the flow's sharpness climbs above 2/step size, for the largest step size only."""
    time = study.crossing_time(study.step_sizes[-1])
    if time is None or time <= study.flow.times[0]:
        return ()
    return (Line(f"flow's sharpness above 2/{distinct(study.step_sizes)[-1]} from here", time, len(study.step_sizes)),)


def largest(values: np.ndarray) -> float:
    """Find the largest finite value, or 1 if there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) else 1.0


def shown_range(
    curves: Sequence[Series], cap: float, *, log: bool, levels: Sequence[Line] = ()
) -> tuple[float, float] | None:
    """Choose what to show of y if a curve climbs above `cap`, or `None` to show everything."""
    y = np.concatenate([curve.y for curve in curves])
    if not np.any(y > cap):
        return None
    shown = y[np.isfinite(y) & (y <= cap) & ((y > 0) | (not log))]
    low = min([*shown, *(level.value for level in levels)], default=cap / 10 if log else 0.0)
    return (low / 2, cap) if log else (low - 0.05 * (cap - low), cap)
