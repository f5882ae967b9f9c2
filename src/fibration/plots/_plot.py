"""A plot as data: what to draw, not how."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from ..errors import ShapeError

# Okabe and Ito's colours, told apart by colour-blind readers; number 0 is for what others are compared with.
PALETTE = ("#8c8c8c", "#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#56b4e9")

Dash = Literal["solid", "dashed", "dotted", "none"]
Marker = Literal["", "circle"]


def colour(index: int) -> str:
    """Look up a colour; after the last the descents' colours start again."""
    return PALETTE[index if index < len(PALETTE) else 1 + (index - 1) % (len(PALETTE) - 1)]


def text_colour(index: int) -> str:
    """Look up the colour of a name that belongs to a curve: darker, to be readable when small."""
    channels = (int(colour(index)[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{int(0.65 * channel):02x}" for channel in channels)


@dataclass(frozen=True)
class Series:
    """One curve: `x` and `y` (n,), a name for the legend, and a colour by number (0: the grey reference).

    `dash`: "solid", "dashed", "dotted", or "none" for circles without a line, as samples are drawn; `marker`: "" or
    "circle"; `wide`: a broad line, drawn under others, or large circles.

    **Raises:** `ShapeError` unless `x` and `y` are vectors of one length.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> fb.plots.Series("cost", np.arange(3.0), np.array([1.0, 0.5, 0.2])).colour
    1

    ```
    """

    name: str
    x: Float[np.ndarray, "..."]
    y: Float[np.ndarray, "..."]
    colour: int = 1
    dash: Dash = "solid"
    marker: Marker = ""
    wide: bool = False

    def __post_init__(self) -> None:
        for name in ("x", "y"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), float))
        if self.x.ndim != 1 or self.x.shape != self.y.shape:
            raise ShapeError(
                f"series {self.name!r} has x of shape {self.x.shape} and y of shape {self.y.shape}",
                "two vectors of one length",
                "pass one y for each x",
            )


@dataclass(frozen=True)
class Line:
    """A named straight line across the whole plot, at one value of the axis it crosses; `colour` as in `Series`.

    ```python
    >>> import fibration as fb
    >>> fb.plots.Line("2/step size", 4.0, colour=2).value
    4.0

    ```
    """

    name: str
    value: float
    colour: int = 0


@dataclass(frozen=True)
class Plot:
    """A plot, to be drawn by `to_matplotlib` or `to_plotly`.

    `caption`: one sentence; `levels`: horizontal lines, at values of y; `moments`: vertical lines, at values of x;
    `x_range`, `y_range`: the lowest and the highest to show, or `None` for all; `x_names`: what to write at
    x = 0, 1, … instead of numbers; `equal`: one scale for both axes, as geometry needs. On a logarithmic axis whatever
    is not positive leaves a gap.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> times = np.linspace(0.0, 1.0, 5)
    >>> curve = fb.plots.Series("cost", times, np.exp(-times))
    >>> plot = fb.plots.Plot("Cost", "The cost falls.", "time", "cost", (curve,), y_log=True)
    >>> fb.plots.to_plotly(plot).layout.yaxis.type
    'log'

    ```
    """

    title: str
    caption: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    levels: tuple[Line, ...] = ()
    moments: tuple[Line, ...] = ()
    x_log: bool = False
    y_log: bool = False
    y_range: tuple[float, float] | None = None
    x_range: tuple[float, float] | None = None
    x_names: tuple[str, ...] = ()
    equal: bool = False


def drawable(plot: Plot, series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Replace whatever cannot be drawn (infinite, or not positive on a logarithmic axis) by NaN: a gap."""
    x_ok = np.isfinite(series.x) & ((series.x > 0) | (not plot.x_log))
    y_ok = np.isfinite(series.y) & ((series.y > 0) | (not plot.y_log))
    return np.where(x_ok, series.x, np.nan), np.where(x_ok & y_ok, series.y, np.nan)


def drawable_lines(lines: tuple[Line, ...], log: bool) -> list[Line]:
    """List the straight lines that the axis can show."""
    return [line for line in lines if np.isfinite(line.value) and (line.value > 0 or not log)]


def level_label(plot: Plot, level: Line) -> tuple[Literal["left", "right"], Literal["top", "bottom"]]:
    """Choose where a level's name stands: at the end that curves keep away from, and under it if another is near.

    **Returns:** the end, and the side of the name that touches the line ("bottom": the name stands on it).
    """
    x, y = _points(plot)
    if not len(x):
        return "right", "bottom"
    shown = np.array([level.value for level in drawable_lines(plot.levels, plot.y_log)])
    x, value = np.log(x) if plot.x_log else x, level.value
    if plot.y_log:
        y, shown, value = np.log(y), np.log(shown), np.log(value)
    along = (x - x.min()) / (np.ptp(x) or 1.0)
    left = np.abs(y[along < 0.35] - value).min(initial=np.inf)
    right = np.abs(y[along > 0.65] - value).min(initial=np.inf)
    span = np.ptp(np.concatenate([y, shown]))
    crowded = bool(np.any((shown > value) & (shown - value < 0.08 * span)))
    return ("left" if left > right else "right"), ("top" if crowded else "bottom")


def moment_label(plot: Plot, moment: Line) -> Literal["left", "center", "right"]:
    """Choose which part of a moment's name stands over its line: the name must not leave the figure."""
    x, value = _points(plot)[0], moment.value
    if not len(x):
        return "center"
    x, value = (np.log(x), np.log(value)) if plot.x_log else (x, value)
    along = (value - x.min()) / (np.ptp(x) or 1.0)
    return "left" if along < 0.3 else "right" if along > 0.7 else "center"


def _points(plot: Plot) -> tuple[np.ndarray, np.ndarray]:
    """Collect the points of all series that the axes show."""
    points = [drawable(plot, series) for series in plot.series]
    x, y = (np.concatenate([np.zeros(0), *(point[axis] for point in points)]) for axis in (0, 1))
    low, high = plot.y_range or (-np.inf, np.inf)
    shown = np.isfinite(x) & (y >= low) & (y <= high)
    return x[shown], y[shown]
