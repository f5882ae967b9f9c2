"""Figures of many runs as data, and how they are drawn for the screen: heat maps and small multiples."""

from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import ShapeError
from ..plots import Plot, Series, to_plotly
from ..plots._numbers import number
from ..plots._plot import colour, drawable
from ..plots._plotly import GRID, INK

DECADES = 1.5  # spread of the values of a heat map beyond which its colours are logarithmic
_WRITTEN = 64  # cells of a heat map up to which values are written into them
_HOVER = 2_500  # cells up to which each has words of its own
FONT = {"family": "system-ui, sans-serif", "size": 13, "color": INK}
AXIS: dict[str, Any] = {"showline": True, "linecolor": INK, "zeroline": False, "ticks": "outside", "automargin": True}


@dataclass(frozen=True)
class HeatMap:
    """One number at each place of a grid.

    `values` (rows, columns), NaN where there is none; `x_names`, `y_names`: what the columns and rows are; `failed`
    (rows, columns): how many runs of a cell failed; `words`: for each cell what is told when a reader points at it.
    Colours are logarithmic if no value is negative and the positive ones spread over decades; then zero has the colour
    of the smallest. An infinite value has a mark instead of a colour.

    **Raises:** `ShapeError` unless the sizes agree.

    ```python
    >>> import numpy as np
    >>> from fibration.report import HeatMap
    >>> grid = np.array([[1e-6, 1.0]])
    >>> HeatMap("Cost", "At the end.", "width", "depth", ("4", "8"), ("1",), grid, np.zeros((1, 2))).log
    True

    ```
    """

    title: str
    caption: str
    x_label: str
    y_label: str
    x_names: tuple[str, ...]
    y_names: tuple[str, ...]
    values: Float[np.ndarray, "..."]
    failed: Float[np.ndarray, "..."]
    words: tuple[tuple[str, ...], ...] = ()
    span: bool = False

    def __post_init__(self) -> None:
        needed = (len(self.y_names), len(self.x_names))
        for name in ("values", "failed"):
            shape = np.shape(getattr(self, name))
            if shape != needed:
                raise ShapeError(f"heat map {self.title!r} has {name} of shape {shape}", f"{needed}", "name each")

    @property
    def log(self) -> bool:
        """Whether colours are logarithmic."""
        finite = self.values[np.isfinite(self.values)]
        positive = finite[finite > 0]
        return bool(len(positive) and not np.any(finite < 0) and positive.max() > positive.min() * 10**DECADES)


@dataclass(frozen=True)
class Panels:
    """Small multiples: plots of the same axes side by side, each under its own name.

    `panels`: names and their curves, in which the curves of one name share colour and place in the legend; `words`:
    what is told of each curve when a reader points at it, by the curve's number, panel after panel.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> curve = fb.plots.Series("seed 0", np.arange(3.0), np.exp(-np.arange(3.0)))
    >>> panels = fb.report.Panels("Cost", "By width.", "time", "cost", (("width 4", (curve,)),), y_log=True)
    >>> panels.span
    True

    ```
    """

    title: str
    caption: str
    x_label: str
    y_label: str
    panels: tuple[tuple[str, tuple[Series, ...]], ...]
    words: tuple[str, ...] = ()
    y_log: bool = False
    y_range: tuple[float, float] | None = None
    span: bool = True


Figure = Plot | HeatMap | Panels


def screen(figure: Figure) -> dict[str, Any]:
    """Draw a figure for plotly, as plain data and layout; the page has its title as a heading."""
    match figure:
        case HeatMap():
            drawn = _heat_map(figure)
        case Panels():
            drawn = _panels(figure)
        case _:
            interactive: Any = to_plotly(figure)
            interactive.update_layout(title=None, margin_t=44, autosize=True)
            drawn = interactive.to_plotly_json()
    return {**drawn, "title": text(figure.title), "heading": figure.title}


def text(words: str) -> str:
    """Escape what plotly would take for markup."""
    return escape(words, quote=False)


def _numbers(values: np.ndarray) -> list[float | None]:
    """Keep as many digits as a screen can show, and a gap for NaN."""
    return [None if np.isnan(value) else float(f"{value:.5g}") for value in values]


def _layout(**more: Any) -> dict[str, Any]:
    return {
        "font": FONT,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "autosize": True,
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "namelength": -1},
        **more,
    }


def _heat_map(figure: HeatMap) -> dict[str, Any]:
    log, values = figure.log, figure.values
    finite = np.isfinite(values)
    shades = np.where(finite, values, np.nan)
    if log:
        positive = values[finite & (values > 0)]
        shades = np.log10(np.where(finite, np.maximum(values, positive.min()), np.nan))
    columns, rows = (list(range(len(names))) for names in (figure.x_names, figure.y_names))
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": columns,
        "y": rows,
        "z": [_numbers(row) for row in shades],
        "colorscale": "Viridis",
        "xgap": 2 if len(columns) <= 40 else 0,
        "ygap": 2 if len(rows) <= 40 else 0,
        "hoverongaps": bool(figure.words),
        "colorbar": {"thickness": 12, "outlinewidth": 0, "xpad": 6, "ticks": "outside", **_shade_ticks(shades, log)},
    }
    if values.size <= _WRITTEN:
        trace["text"] = [[number(value, 2) if np.isfinite(value) else "" for value in row] for row in values]
        trace["texttemplate"] = "%{text}"
    if figure.words and values.size <= _HOVER:
        trace["customdata"] = [[text(words).replace("\n", "<br>") for words in row] for row in figure.words]
        trace["hovertemplate"] = "%{customdata}<extra></extra>"
    infinite = np.isinf(values)
    marks = [_marks("not finite", "triangle-up", "#cc79a7", infinite, finite, 14)]
    marks.append(_marks("failed", "x", "#d55e00", figure.failed > 0, finite | infinite, 11))
    axis = {"tickmode": "array", **AXIS, "showgrid": False, "showline": False, "ticks": ""}
    ends = [_axis(axis, figure.x_label, figure.x_names), _axis(axis, figure.y_label, figure.y_names)]
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    layout = _layout(
        xaxis=ends[0], yaxis=ends[1], margin={"l": 62, "r": 10, "t": 34, "b": 56}, legend=legend, showlegend=True
    )
    return {"data": [trace, *(mark for mark in marks if mark["x"])], "layout": layout}


def _axis(axis: dict[str, Any], label: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Name each column or row, or every so many where there is no room."""
    every = int(np.ceil(len(names) / 24))
    places = list(range(0, len(names), every))
    names = tuple(name if len(name) <= 18 else f"{name[:17]}…" for name in names)
    title = {"text": text(label), "standoff": 8}
    return {**axis, "title": title, "tickvals": places, "ticktext": [text(names[place]) for place in places]}


def _marks(name: str, symbol: str, shade: str, where: Any, finite: Any, size: int) -> dict[str, Any]:
    """Mark cells: small in a corner of those that have a value, large in the others."""
    rows, columns = np.nonzero(where)
    beside = [bool(finite[row, column]) for row, column in zip(rows, columns, strict=True)]
    size = size if max(np.shape(where)) <= 20 else 6
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [float(c) + (0.34 if b else 0) for c, b in zip(columns, beside, strict=True)],
        "y": [float(r) + (0.3 if b else 0) for r, b in zip(rows, beside, strict=True)],
        "marker": {
            "symbol": symbol,
            "color": shade,
            "size": [size * 2 // 3 if b else size for b in beside],
            "line": {"color": "white", "width": 1},
            "opacity": 1,
        },
        "hoverinfo": "skip",
    }


def _shade_ticks(shades: np.ndarray, log: bool) -> dict[str, Any]:
    """Write plain numbers beside the colours of a logarithmic scale."""
    if not log:
        return {"exponentformat": "power"}
    low, high = np.nanmin(shades), np.nanmax(shades)
    every = max(1, int(np.ceil((high - low) / 6)))
    powers = [float(p) for p in range(int(np.ceil(low)), int(np.floor(high)) + 1, every)]
    return {"tickmode": "array", "tickvals": powers, "ticktext": [number(10**power) for power in powers]}


def _panels(figure: Panels) -> dict[str, Any]:
    as_plot = Plot("", "", "", "", (), y_log=figure.y_log)
    data: list[dict[str, Any]] = []
    layout = _layout(margin={"l": 64, "r": 12, "t": 34, "b": 84}, annotations=[], showlegend=True)
    layout["legend"] = {
        "orientation": "h",
        "x": 0,
        "y": 0,
        "yref": "container",
        "yanchor": "bottom",
        "tracegroupgap": 0,
    }
    named: set[str] = set()
    scale = _scale(figure)
    for index, (name, curves) in enumerate(figure.panels):
        suffix = str(index + 1) if index else ""
        for curve in curves:
            x, y = drawable(as_plot, curve)
            trace = {
                "type": "scatter",
                "mode": "lines",
                "x": _numbers(x),
                "y": _numbers(y),
                "xaxis": f"x{suffix}",
                "yaxis": f"y{suffix}",
                "name": text(curve.name),
                "legendgroup": curve.name,
                "showlegend": curve.name not in named,
                "line": {"color": colour(curve.colour), "width": 1.2},
                "opacity": 0.8,
                "hovertemplate": f"{text(figure.x_label)} %{{x:.4g}}<br>{text(figure.y_label)} %{{y:.4g}}",
            }
            if figure.words:
                words = text(figure.words[len(data)]).replace("\n", "<br>").replace("%{", "% {")
                trace["hovertemplate"] = f"{words}<br>{trace['hovertemplate']}<extra></extra>"
            named.add(curve.name)
            data.append(trace)
        layout["annotations"].append(_panel_name(name, suffix))
        layout[f"xaxis{suffix}"] = _shared(figure.x_label, f"y{suffix}", "x" if index else "")
        layout[f"yaxis{suffix}"] = _shared(figure.y_label, f"x{suffix}", "y" if index else "")
        layout[f"yaxis{suffix}"] |= scale
    return {"data": data, "layout": layout, "panels": len(figure.panels)}


def _scale(figure: Panels) -> dict[str, Any]:
    """Make the axis of y that all panels share."""
    shown: Any = figure.y_range
    if figure.y_log and shown is None:
        y = np.concatenate([series.y for _, curves in figure.panels for series in curves] or [np.ones(1)])
        y = y[np.isfinite(y) & (y > 0)]
        shown = (y.min(), y.max()) if len(y) else (0.1, 1.0)
    if not figure.y_log:
        return {} if shown is None else {"range": [float(end) for end in shown]}
    low, high = (float(end) for end in np.log10(shown))
    pad = 0.04 * (high - low) or 0.5
    scale: dict[str, Any] = {"type": "log", "range": [low - pad, high + pad]}
    if high - low > 2:
        return {**scale, "dtick": int(np.ceil((high - low) / 5)), "tick0": 0}
    ticks = [m * 10.0**e for e in range(int(np.floor(low)) - 1, int(np.ceil(high)) + 1) for m in (1, 2, 5)]
    return {**scale, "tickmode": "array", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _panel_name(name: str, suffix: str) -> dict[str, Any]:
    name = name if len(name) <= 34 else f"{name[:33]}…"
    place = {"xref": f"x{suffix} domain", "yref": f"y{suffix} domain", "x": 0, "y": 1}
    look = {"showarrow": False, "font": {"size": 12, "color": INK}, "xanchor": "left", "yanchor": "bottom"}
    return {"text": text(name), **place, **look}


def _shared(label: str, anchor: str, matches: str) -> dict[str, Any]:
    axis = {**AXIS, "gridcolor": GRID, "anchor": anchor, "exponentformat": "power", "minexponent": 5, "nticks": 5}
    axis |= {"title": {"text": text(label), "standoff": 4, "font": {"size": 12}}, "automargin": False}
    return {**axis, "matches": matches} if matches else axis
