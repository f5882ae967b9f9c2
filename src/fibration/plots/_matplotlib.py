"""Plots for papers."""

import io
import re
import textwrap
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UnknownNameError
from ._extra import report_extra
from ._plot import Plot, colour, drawable, drawable_lines, level_label, moment_label, text_colour
from ._write import write_atomically

if TYPE_CHECKING:
    import matplotlib.figure

# What each format would write about itself: URLs, dates and version numbers.
METADATA: dict[str, dict[str, None]] = {
    "png": dict.fromkeys(("Software",)),
    "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    "pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")),
}
DASHES = {"solid": "-", "dashed": (0, (5, 2)), "dotted": (0, (1, 1.5)), "none": "none"}


def to_matplotlib(
    plots: Plot | Sequence[Plot], *, size: tuple[float, float] | None = None
) -> "matplotlib.figure.Figure":
    """Draw a plot as a matplotlib figure for one column of a paper, or several side by side.

    `size`: width and height in inches; by default (5.2, 3.4) for one plot, and (5, 4) for each of several. Each series
    is a line of its plot's axes, in order. Neither pyplot nor the global rcParams are touched, so that any number of
    figures can be drawn in one process.

    **Raises:** `MissingExtraError` without matplotlib.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> curve = fb.plots.Series("line", np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    >>> figure = fb.plots.to_matplotlib(fb.plots.Plot("A line", "It climbs.", "x", "y", (curve,)))
    >>> print(figure.axes[0].lines[0].get_ydata())
    [1. 2.]

    ```
    """
    panels = [plots] if isinstance(plots, Plot) else list(plots)
    return _figure(panels, size or ((5.2, 3.4) if len(panels) == 1 else (5.0 * len(panels), 4.0)))


def save_figures(
    plots: Sequence[Plot], directory: str | PathLike[str], formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Save each plot as files for papers, named by its number and title.

    `directory`: made if it is absent; `formats`: of "png" (300 dots per inch), "svg" and "pdf".

    **Returns:** the files written, plot by plot.

    **Raises:** `UnknownNameError` for another format; `OutputDirectoryError` if the directory cannot be written to;
    `MissingExtraError` without matplotlib.

    ```python
    >>> import tempfile, numpy as np
    >>> import fibration as fb
    >>> curve = fb.plots.Series("line", np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    >>> plot = fb.plots.Plot("A line", "It climbs.", "x", "y", (curve,))
    >>> [path.name for path in fb.plots.save_figures([plot], tempfile.mkdtemp())]
    ['1-a-line.png', '1-a-line.svg']

    ```
    """
    for kind in formats:
        if kind not in METADATA:
            raise UnknownNameError(f"the format {kind!r}", "one of png, svg and pdf", "choose one of them")
    paths: list[Path] = []
    for place, plot in enumerate(plots, 1):
        figure = to_matplotlib(plot)
        paths += [
            write_atomically(Path(directory) / f"{place}-{file_stem(plot)}.{kind}", render(figure, kind))
            for kind in formats
        ]
    return paths


def file_stem(plot: Plot) -> str:
    """Make a file's name out of a plot's title."""
    return re.sub(r"[^a-z0-9]+", "-", plot.title.lower()).strip("-")[:60] or "plot"


def render(figure: "matplotlib.figure.Figure", kind: str) -> bytes:
    """Render a figure as the bytes of a file, without metadata: the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with _own_style():
        figure.savefig(buffer, format=kind, dpi=300, metadata=METADATA[kind])
    contents = buffer.getvalue()
    if kind == "svg":  # the document type is an address too, and no reader needs it
        contents = re.sub(rb"<!DOCTYPE[^>]*>\s*", b"", contents, count=1)
    return contents


@contextmanager
def _own_style() -> Generator[None, None, None]:
    """Draw in matplotlib's default style whatever the user's is, and leave the user's as it was."""
    with report_extra():
        import matplotlib as mpl
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams["svg.hashsalt"] = "fibration"
        yield


def _figure(plots: Sequence[Plot], size: tuple[float, float]) -> "matplotlib.figure.Figure":
    with report_extra():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    with _own_style():
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        handles: dict[str, Any] = {}
        for axes, plot in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots, strict=True):
            _draw(axes, plot, size[0] / len(plots))
            handles |= dict(zip((_text(series.name) for series in plot.series), axes.lines, strict=False))
        if handles:
            widest = max(map(len, handles)) * 0.062 + 0.55
            figure.legend(
                list(handles.values()),
                list(handles),
                loc="outside lower center",
                ncols=max(1, min(len(handles), int(size[0] / widest))),
                frameon=False,
                fontsize=8,
                handlelength=2.2,
                columnspacing=1.4,
            )
        figure.draw_without_rendering()  # ticks are made when first drawn, and are to be of this style
    return figure


def _draw(axes: Any, plot: Plot, width: float) -> None:
    """Draw one plot on its axes; its series become the first lines."""
    for series in plot.series:
        x, y = drawable(plot, series)
        bare = series.dash == "none"
        axes.plot(
            x,
            y,
            color=colour(series.colour),
            linestyle=DASHES[series.dash],
            linewidth=3.6 if series.wide else 1.4,
            marker="o" if series.marker or bare else None,
            markersize=5 if not bare else 9 if series.wide else 3.5,
        )
    axes.set_xscale("log" if plot.x_log else "linear")
    axes.set_yscale("log" if plot.y_log else "linear")
    for level in drawable_lines(plot.levels, plot.y_log):
        side, touching = level_label(plot, level)
        axes.axhline(level.value, color=colour(level.colour), linestyle="--", linewidth=1)
        axes.annotate(
            _text(level.name),
            (0.01 if side == "left" else 0.99, level.value),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, -2 if touching == "top" else 2),
            textcoords="offset points",
            ha=side,
            va=touching,
            **_label(level.colour),
        )
    for moment in drawable_lines(plot.moments, plot.x_log):
        axes.axvline(moment.value, color=colour(moment.colour), linestyle=":", linewidth=1)
        axes.annotate(
            _text(moment.name),
            (moment.value, 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 2),
            textcoords="offset points",
            ha=moment_label(plot, moment),
            va="bottom",
            **_label(moment.colour),
        )
    if plot.levels:
        axes.margins(y=0.09)  # room for the name of the highest
    if plot.y_range is not None:
        axes.set_ylim(*plot.y_range)
    if plot.x_range is not None:
        axes.set_xlim(*plot.x_range)
    if plot.equal:
        axes.set_aspect("equal", adjustable="box")
    if plot.x_names:
        axes.set_xticks(range(len(plot.x_names)), [_text(name) for name in plot.x_names])
    title = "\n".join(textwrap.wrap(plot.title, int(width / 0.085)) or [""])
    axes.set_title(_text(title), loc="left", fontsize=10, pad=18 if plot.moments else 8)
    axes.set_xlabel(_text(plot.x_label), fontsize=9)
    axes.set_ylabel(_text(plot.y_label), fontsize=9)
    axes.tick_params(axis="both", which="both", labelsize=8)
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for axis, log, index in ((axes.xaxis, plot.x_log, 0), (axes.yaxis, plot.y_log, 1)):
        if log:
            _log_ticks(axis, plot, index)


def _log_ticks(axis: Any, plot: Plot, index: int) -> None:
    """Write plain numbers at 1, 2 and 5 of each decade where there are few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    values = np.concatenate([drawable(plot, series)[index] for series in plot.series] or [np.ones(1)])
    values = values[np.isfinite(values)]
    if index == 1 and plot.y_range is not None:
        values = np.asarray(plot.y_range)
    if not len(values):
        if not drawable_lines(plot.levels if index else plot.moments, log=True):
            (axis.axes.set_xlim, axis.axes.set_ylim)[index](0.1, 1.0)  # any range that a logarithm can show
    elif np.ptp(np.log10(values)) <= 3:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _label(index: int) -> dict[str, Any]:
    return {"color": text_colour(index), "fontsize": 8, "annotation_clip": False}


def _text(text: str) -> str:
    """Keep matplotlib from reading mathematics between dollars, or hiding what starts with an underscore."""
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")
