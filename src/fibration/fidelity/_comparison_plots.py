"""The two plots of a comparison of step sizes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..plots import Plot, Series
from ..plots._numbers import distinct
from ..plots._plot import Dash, Marker


def time_plot(runs: Sequence[Any]) -> Plot:
    """Describe distances from the flow and their bounds against time, a colour for each step size."""
    series: list[Series] = []
    for place, (run, name) in enumerate(zip(runs, distinct([run.step_size for run in runs]), strict=True), 1):
        series.append(Series(f"step size {name}", run.times, run.distance, place))
        if np.any(np.isfinite(run.bound[1:])):
            series.append(Series(f"bound, {name}", run.times, run.bound, place, "dotted"))
    finite = np.concatenate([one.y[np.isfinite(one.y) & (one.y > 0)] for one in series])
    measured = np.concatenate([run.distance[run.distance > 0] for run in runs])
    limits = None
    if len(measured) and len(finite) and finite.max() > 1e4 * np.nanmax(measured):
        limits = (float(np.nanmin(measured)) / 2, 1e4 * float(np.nanmax(measured)))
    return Plot(
        "Distance from the flow",
        "How far the parameters of each descent are from those of the gradient flow at the same time (solid), and what "
        "is guaranteed (dotted); a bound that ends has nothing to say beyond.",
        "time (step size × steps)",
        "distance between parameters",
        tuple(series),
        y_log=True,
        y_range=limits,
    )


def end_plot(runs: Sequence[Any]) -> Plot:
    """Describe every kind of distance at the end of the descents against the step size."""
    sizes = np.array([run.step_size for run in runs])

    def at_end(name: str) -> np.ndarray:
        rows = [np.asarray(getattr(run, name), float) for run in runs]
        known = [row[~np.isnan(row)] for row in rows]
        return np.array([row[-1] if len(row) else np.nan for row in known])

    kinds: tuple[tuple[str, str, int, Dash, Marker, bool], ...] = (
        ("measured", "distance", 0, "solid", "circle", True),
        ("first-order estimate", "first_order", 1, "solid", "", False),
        ("Richardson's estimate", "richardson", 2, "dashed", "circle", False),
        ("from the modified flow", "modified", 5, "solid", "circle", False),
        ("bound", "bound", 4, "dotted", "circle", False),
    )
    series = [
        Series(name, sizes, at_end(field), colour, dash, marker, wide)
        for name, field, colour, dash, marker, wide in kinds
        if np.any(np.isfinite(at_end(field)))
    ]
    return Plot(
        "At the end, against the step size",
        "The distance of each descent from the flow at its end, measured, estimated and bounded, and its distance from "
        "the modified flow, which falls with the square of the step size.",
        "step size",
        "distance between parameters",
        tuple(series),
        x_log=True,
        y_log=True,
    )
