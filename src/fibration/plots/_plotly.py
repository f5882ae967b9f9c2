"""Plots for the screen."""

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from ._extra import report_extra
from ._plot import Plot, colour, drawable, drawable_lines, level_label, moment_label, text_colour

if TYPE_CHECKING:
    import plotly.graph_objects

INK, GRID = "#222222", "#e4e4e4"
DASHES = {"solid": "solid", "dashed": "dash", "dotted": "dot", "none": "solid"}


def to_plotly(plot: Plot) -> "plotly.graph_objects.Figure":
    """Draw a plot as an interactive plotly figure, with the colours of `to_matplotlib`.

    Each series is a trace, in order; its x and y have `None` where a logarithmic axis cannot show them.

    **Raises:** `MissingExtraError` without plotly.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> curve = fb.plots.Series("line", np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    >>> figure = fb.plots.to_plotly(fb.plots.Plot("A line", "It climbs.", "x", "y", (curve,)))
    >>> print(figure.data[0].name, list(figure.data[0].y))
    line [1.0, 2.0]

    ```
    """
    with report_extra():
        import plotly.graph_objects as go
    figure: Any = go.Figure(layout={"template": "none"})
    for series in plot.series:
        x, y = drawable(plot, series)
        bare = series.dash == "none"
        figure.add_scatter(
            x=_values(x),
            y=_values(y),
            name=_text(series.name),
            mode="markers" if bare else "lines+markers" if series.marker else "lines",
            line={"color": colour(series.colour), "dash": DASHES[series.dash], "width": 5 if series.wide else 2},
            marker={"size": 8 if not bare else 13 if series.wide else 6, "color": colour(series.colour)},
            hovertemplate=f"{_text(plot.x_label)} %{{x:.4g}}<br>{_text(plot.y_label)} %{{y:.4g}}",
        )
    for level in drawable_lines(plot.levels, plot.y_log):
        side, touching = level_label(plot, level)
        line = {"color": colour(level.colour), "dash": "dash", "width": 1.5}
        figure.add_shape(type="line", xref="x domain", x0=0, x1=1, y0=level.value, y1=level.value, line=line)
        figure.add_annotation(
            **_label(level.name, level.colour),
            xref="x domain",
            x=0.01 if side == "left" else 0.99,
            xanchor=side,
            y=np.log10(level.value) if plot.y_log else level.value,
            yanchor=touching,
        )
    for moment in drawable_lines(plot.moments, plot.x_log):
        line = {"color": colour(moment.colour), "dash": "dot", "width": 1.5}
        figure.add_shape(type="line", yref="y domain", y0=0, y1=1, x0=moment.value, x1=moment.value, line=line)
        figure.add_annotation(
            **_label(moment.name, moment.colour),
            yref="y domain",
            y=1.0,
            yanchor="bottom",
            x=np.log10(moment.value) if plot.x_log else moment.value,
            xanchor=moment_label(plot, moment),
        )
    axis = {"showline": True, "linecolor": INK, "gridcolor": GRID, "zeroline": False, "ticks": "outside"}
    axis |= {"automargin": True, "title": {"standoff": 8}, "exponentformat": "power", "minexponent": 5}
    figure.update_xaxes(**axis, title_text=_text(plot.x_label), type="log" if plot.x_log else "linear")
    figure.update_yaxes(**axis, title_text=_text(plot.y_label), type="log" if plot.y_log else "linear")
    for update, log, index in ((figure.update_xaxes, plot.x_log, 0), (figure.update_yaxes, plot.y_log, 1)):
        if log:
            update(**_log_ticks(plot, index))
    if plot.y_range is not None:
        figure.update_yaxes(range=list(np.log10(plot.y_range) if plot.y_log else plot.y_range))
    if plot.x_range is not None:
        figure.update_xaxes(range=list(np.log10(plot.x_range) if plot.x_log else plot.x_range))
    if plot.equal:
        figure.update_yaxes(scaleanchor="x", scaleratio=1)
        figure.update_xaxes(constrain="domain")
    if plot.x_names:
        figure.update_xaxes(
            tickmode="array", tickvals=list(range(len(plot.x_names))), ticktext=[_text(name) for name in plot.x_names]
        )
    figure.update_layout(
        title={"text": _text(plot.title), "x": 0, "xref": "paper", "font": {"size": 17}},
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        margin={"l": 62, "r": 16, "t": 56, "b": 56},
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
        hovermode="closest",
        hoverlabel={"align": "left", "namelength": -1},
    )
    return figure


def _label(name: str, index: int) -> dict[str, Any]:
    font = {"color": text_colour(index), "size": 12}
    return {"text": _text(name), "showarrow": False, "font": font}


def _values(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _text(text: str) -> str:
    """Escape what plotly would take for markup."""
    return escape(text, quote=False)


def _log_ticks(plot: Plot, index: int) -> dict[str, Any]:
    """Put ticks at 1, 2 and 5 of each decade with plain numbers, or at whole decades where there are many."""
    values = np.concatenate([drawable(plot, series)[index] for series in plot.series] or [np.ones(1)])
    values = values[np.isfinite(values)] if index == 0 or plot.y_range is None else np.asarray(plot.y_range)
    decades = np.ptp(np.log10(values)) if len(values) else 1.0
    if decades > 3:
        return {"dtick": int(np.ceil(decades / 8))}
    low, high = (int(np.floor(f(np.log10(values)))) for f in (np.min, np.max)) if len(values) else (0, 0)
    ticks = [m * 10.0**e for e in range(low - 2, high + 3) for m in (1, 2, 5)]
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
