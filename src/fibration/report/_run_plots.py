"""The plots of one run, or of two laid over each other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..plots import Line, Plot, Series
from ..plots._numbers import listed, number
from ..study import RunRecord
from ._fidelity_plots import CUT, largest, shown_range
from ._records import FAMILIES, FAMILY_LABELS, FAMILY_TITLES, curve, family, legend, runs_of, value

MOST_PLOTS = 14
MOST_CURVES = 200


@dataclass(frozen=True)
class View:
    """A run's record as plots show it: what its names in legends begin with, and how its lines are drawn."""

    record: RunRecord
    prefix: str = ""
    dash: Literal["solid", "dashed"] = "solid"


@dataclass(frozen=True)
class _Quantity:
    """A quantity along runs: the end of its curves' names, its title, and a sentence for the caption."""

    suffix: str
    title: str
    caption: str
    label: str
    log: bool = True


_ALONG = (
    _Quantity("cost", "Cost", "The cost along each run", "cost"),
    _Quantity("sharpness", "Sharpness", "The largest eigenvalue of the Hessian along each run", "sharpness", log=False),
    _Quantity(
        "imbalance",
        "Imbalance of the layers",
        "|μ|/|W|² along each run, μ the moment map of the rescalings of hidden units, which gradient flow conserves",
        "imbalance",
        log=False,
    ),
    _Quantity(
        "stall",
        "Stall index",
        "How much of the cost's gradient in canonical coordinates the parameters feel along each run: 0 is a stall",
        "stall index",
        log=False,
    ),
    _Quantity(
        "data_sigma_min",
        "Smallest singular value at the data",
        "The smallest singular value of the differential at the data along each run, over the root of their number",
        "σ_min at the data",
    ),
    _Quantity(
        "pl_ratio",
        "Ratio of Polyak and Łojasiewicz",
        "|∇C|²/(2 σ_min² C) along each run: how much faster than σ_min promises the cost falls, at least 1",
        "ratio",
    ),
)


def run_plots(views: Sequence[View]) -> list[Plot]:
    """Describe the plots of one run, or of several over one another, at most fourteen: the first matter most."""
    made: list[Plot] = [*_along(views, _ALONG[0]), *_distances(views), *_along(views, _ALONG[1]), *_spectra(views)]
    for quantity in _ALONG[2:]:
        made += _along(views, quantity)
    return made[:MOST_PLOTS]


def _along(views: Sequence[View], quantity: _Quantity) -> list[Plot]:
    """Describe a quantity over time, one plot for each family of runs that share their time."""
    present = {
        one: series
        for one in FAMILIES
        if (series := _series(views, one, quantity.suffix)) and any(np.isfinite(s.y).any() for s in series)
    }
    made: list[Plot] = []
    for one, series in present.items():
        title = quantity.title if len(present) == 1 else f"{quantity.title}: {FAMILY_TITLES[one]}"
        compared = ", compared at the same time" if one == "gradient" and len(series) > 1 else ""
        plot = Plot(title, f"{quantity.caption}{compared}.", FAMILY_LABELS[one], quantity.label, tuple(series))
        if quantity.suffix == "cost":
            plot = _with_envelope(plot, views, one)
        if quantity.suffix == "sharpness":
            plot = _with_limits(plot, views, one)
        elif quantity.log:
            plot = replace(plot, y_log=_spread([s.y for s in series]))
        if quantity.suffix == "cost" and not made:
            plot = _with_minimizer(plot, views)
        made.append(_held(plot))
    return made


def _spread(values: Sequence[np.ndarray]) -> bool:
    """Tell whether values are for a logarithmic axis: positive, and so far apart that it has ticks."""
    finite = np.concatenate(list(values))
    finite = finite[np.isfinite(finite) & (finite > 0)]
    return bool(len(finite) and finite.max() > 4 * finite.min())


def _series(views: Sequence[View], of: str, suffix: str, told: str = "") -> list[Series]:
    """Collect the curves of a family: the first gradient flow broad and grey, the others by colour.

    `told`: what a curve is, after its run's name, in place of the run's kind and step size.
    """
    names = list(dict.fromkeys(name for view in views for name in runs_of(view.record)))
    found: list[Series] = []
    for view in views:
        for name, run in runs_of(view.record).items():
            points = curve(view.record, f"{name}.{suffix}")
            if family(run) != of or points is None:
                continue
            grey = names.index(name) == 0 and run.get("kind") == "flow"
            found.append(
                Series(
                    view.prefix + (f"{name}: {told}" if told else legend(view.record, name)),
                    *points,
                    colour_of(names, name, grey=grey),
                    dash=view.dash,
                    wide=grey and len(views) == 1,
                )
            )
    return found[:MOST_CURVES]


def colour_of(names: Sequence[str], name: str, *, grey: bool) -> int:
    """Give a run the same colour in every plot of a page; grey is for what others are compared with."""
    return 0 if grey else names.index(name) + 1


def _held(plot: Plot) -> Plot:
    """Cut off what a diverging run would make of the scale: beyond 100 times the largest value at a start."""
    starts = np.array([series.y[0] for series in plot.series if len(series.y)])
    if plot.y_range is not None or not np.any(starts > 0):
        return plot
    limits = shown_range(plot.series, 100 * largest(starts), log=plot.y_log)
    return plot if limits is None else replace(plot, y_range=limits, caption=f"{plot.caption[:-1]}{CUT}.")


def _with_envelope(plot: Plot, views: Sequence[View], of: str) -> Plot:
    """Add what the smallest singular values promise of the gradient flow, where they promise something."""
    flows = [name for name, run in runs_of(views[0].record).items() if (family(run), run.get("kind")) == (of, "flow")]
    points = curve(views[0].record, f"{flows[0]}.envelope") if of == "gradient" and flows and len(views) == 1 else None
    if points is None or not points[1][-1] < points[1][0]:
        return plot
    promise = Series(f"{flows[0]}: at most this, by σ_min at the data", *points, 0, "dotted")
    return replace(plot, series=(*plot.series, promise))


def _with_minimizer(plot: Plot, views: Sequence[View]) -> Plot:
    """Draw what the explicit minimiser costs, if that is near; otherwise say it."""
    cost = value(views[0].record, "minimizer.cost") if len(views) == 1 else None
    if cost is None:
        return plot
    shown = np.concatenate([series.y for series in plot.series])
    shown = shown[np.isfinite(shown) & (shown > 0)]
    if len(shown) and cost > shown.min() * 1e-3:
        return replace(plot, levels=(Line(f"explicit minimiser: {number(cost)}", cost, 0),))
    return replace(plot, caption=f"{plot.caption[:-1]}; an explicit minimiser of this data costs {number(cost)}.")


def _with_limits(plot: Plot, views: Sequence[View], of: str) -> Plot:
    """Add to gradient descents' sharpness the lines 2/step size above which they are unstable."""
    if of != "gradient":
        return plot
    highest = max(largest(series.y) for series in plot.series)
    lowest = min(float(series.y[np.isfinite(series.y)].min(initial=highest)) for series in plot.series)
    near = highest + max(highest - lowest, 0.2 * abs(highest))
    colours = {series.name: series.colour for series in plot.series}
    levels: list[Line] = []
    far: list[str] = []
    for view in views:
        for name, run in runs_of(view.record).items():
            step = value(view.record, f"{name}.step_size")
            if family(run) != "gradient" or not step or not step > 0:
                continue
            text = f"{view.prefix}{name}: 2/{number(step)} = {number(2 / step)}"
            shade = colours.get(f"{view.prefix}{legend(view.record, name)}", 0)
            if lowest - 0.2 * (highest - lowest) <= 2 / step <= near:
                levels.append(Line(text, 2 / step, shade))
            else:
                far.append(text)
    said = "; gradient descent is stable only where it is below 2/step size (dashed)" if levels or far else ""
    said += f"; left out, too far away to show: {listed(far)}" if far else ""
    limits = shown_range(plot.series, 1.5 * near, log=False, levels=levels)
    said += CUT if limits else ""
    return replace(plot, levels=tuple(levels), caption=f"{plot.caption[:-1]}{said}.", y_range=limits)


def _distances(views: Sequence[View]) -> list[Plot]:
    """Describe how far each descent is from the flow, with the bound that its certificate gives."""
    bound_dash = "dashed" if len(views) == 1 else "dotted"
    distances = _series(views, "gradient", "distance", "distance")
    bounds = [replace(one, dash=bound_dash) for one in _series(views, "gradient", "bound", "certified bound")]
    found = [*distances, *bounds]
    if not any(np.any(np.isfinite(series.y) & (series.y > 0)) for series in found):
        return []
    caption = "How far the parameters of each gradient descent are from those of the gradient flow at the same time"
    if bounds:
        caption += (
            ", and the bound of it that each certificate gives without knowing the flow; it ends where none holds"
        )
    plot = Plot(
        "Distance from the flow",
        f"{caption}.",
        FAMILY_LABELS["gradient"],
        "distance from the flow",
        tuple(found[:MOST_CURVES]),
        y_log=True,
    )
    # What lies a million times above another descent's distance has diverged.
    tops = [largest(one.y) for one in distances if np.any(np.isfinite(one.y) & (one.y > 0))]
    limits = shown_range(found, min(1e6 * min(tops), 100 * max(tops)), log=True) if tops else None
    return [plot if limits is None else replace(plot, y_range=limits, caption=f"{plot.caption[:-1]}{CUT}.")]


def _spectra(views: Sequence[View]) -> list[Plot]:
    """Describe the singular values of the differential where runs start and end."""
    found: list[Series] = []
    names = list(dict.fromkeys(name for view in views for name in runs_of(view.record)))
    for view in views:
        places = [("start", "start", 0)]
        places += [(f"{name}.end", f"end of {name}", names.index(name) + 1) for name in runs_of(view.record)]
        for place, text, shade in places:
            points = curve(view.record, f"{place}.singular_values")
            if points is not None:
                wide = place == "start" and len(views) == 1
                found.append(Series(f"{view.prefix}{text}", *points, shade, dash=view.dash, wide=wide))
    if not found:
        return []
    return [
        Plot(
            "Singular values of the differential",
            "The singular values of the derivative of all outputs by all parameters, largest first; what is zero in "
            "floating point is left out.",
            "number",
            "singular value",
            tuple(found[:MOST_CURVES]),
            y_log=_spread([series.y for series in found]),
        )
    ]
