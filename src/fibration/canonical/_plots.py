"""Plots of canonical space: spectra along training, coordinates by frequency, two landscapes, singularity by width."""

from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .. import _validation
from ..errors import ParameterError, ShapeError
from ..plots import Plot, Series
from ..plots._extra import report_extra
from ..plots._plot import Dash
from ._arguments import as_rows

if TYPE_CHECKING:
    import matplotlib.figure
    import xarray as xr

# Curves in one plot: the palette's six colours, solid and then dashed.
_MOST, _COLOURS = 12, 6
# Costs along lines are shown up to this multiple of the cost where the lines meet.
_HIGHEST = 6
# Perceptually uniform, and the same to readers who confuse red and green (Nuñez, Anderton and Renslow, PLoS ONE 2018).
_SCALE = "cividis"


def spectrum_plot(times: Any, singular_values: Any) -> Plot:
    """Draw the singular values of H along a run, largest first: (T, r) at `times` (T,).

    **Arguments:** such as the columns that an `observer(…, spectrum=True)` records after its own.

    **Raises:** `ShapeError`.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> plot = fb.canonical.spectrum_plot(np.arange(3.0), np.array([[2.0, 0.1], [2.0, 0.2], [2.0, 0.3]]))
    >>> [one.name for one in plot.series]
    ['σ 1', 'σ 2']

    ```
    """
    values, times = as_rows("singular_values", singular_values, times)
    chosen = np.unique(np.linspace(0, values.shape[1] - 1, min(_MOST, values.shape[1])).round().astype(int))
    series = [Series(f"σ {i + 1}", times, values[:, i], *_style(place)) for place, i in enumerate(chosen, 1)]
    return Plot(
        "What the network can change",
        "Singular values of the disparity matrix along the run: directions of functions far below the others "
        "cannot be learnt now.",
        "time",
        "singular value",
        tuple(series),
        y_log=True,
    )


def frequency_plot(times: Any, theta: Any, target: Any, degrees: Any) -> Plot:
    """Draw how each total degree of the coordinates comes to its target: the distance over each shell.

    **Arguments:** `theta` (T, K) at `times` (T,), `target` (K,), `degrees` (K,), such as `basis.total_degrees`.

    **Raises:** `ShapeError`.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis((0, 1), degree=1)
    >>> theta = np.array([[3.0, 1.0], [1.0, 0.9]])
    >>> plot = fb.canonical.frequency_plot(np.arange(2.0), theta, np.zeros(2), basis.total_degrees)
    >>> [one.y.tolist() for one in plot.series]
    [[3.0, 1.0], [1.0, 0.9]]

    ```
    """
    rows, times = as_rows("theta", theta, times)
    target, degrees = (as_rows(name, [one], [0.0])[0][0] for name, one in (("target", target), ("degrees", degrees)))
    if not target.shape == degrees.shape == rows.shape[1:]:
        raise ShapeError(
            f"theta has shape {rows.shape}, target {target.shape} and degrees {degrees.shape}",
            "(T, K), (K,) and (K,)",
            "pass `basis.total_degrees`, and one target for each column of theta",
        )
    distance = (rows - target) ** 2
    shells = [s for s in np.unique(degrees) if np.any(distance[0, degrees == s] > 0)][:_MOST]
    series = []
    for place, shell in enumerate(shells, 1):
        apart = np.sqrt(distance[:, degrees == shell].sum(axis=1))
        series.append(Series(f"degree {shell:g}", times, apart, *_style(place)))
    return Plot(
        "Coordinates by frequency",
        "Distance of the canonical coordinates from their targets, by total degree: low frequencies first, as a rule "
        "with exceptions.",
        "time",
        "distance from the target",
        tuple(series),
        y_log=True,
    )


def _style(place: int) -> tuple[int, Dash]:
    """Choose the colour and the dash of curve number `place`."""
    return (place - 1) % _COLOURS + 1, "solid" if place <= _COLOURS else "dashed"


def _check_made_by(found: Any, function: str, *names: str) -> None:
    """Check that a data set holds what a function of this package puts into it, or raise `ParameterError`."""
    if not all(hasattr(found, name) for name in names):
        raise ParameterError(
            f"found is {type(found).__name__}",
            f"the data set that `{function}` returns",
            f"pass `fb.canonical.{function}(…)`",
        )


def landscape_plots(found: Any) -> tuple[Plot, Plot]:
    """Draw the costs along lines in canonical and in literal space; `found` is what `convexity` returned.

    On a linear axis, since a logarithm would bend convex curves, and up to six times the cost where the lines meet.

    **Raises:** `ParameterError` for anything else.

    ```python
    >>> import jax, jax.numpy as jnp
    >>> import fibration as fb
    >>> apply, params = fb.networks.mlp((1, 4, 1), "tanh", key=jax.random.key(0))
    >>> problem = fb.Problem(apply, jnp.linspace(0, 1, 4)[:, None], jnp.ones((4, 1)))
    >>> found = fb.canonical.convexity(problem, params, fb.canonical.Basis([(0, 1)], degree=2), lines=2)
    >>> [plot.title for plot in fb.canonical.landscape_plots(found)]
    ['Along lines of coordinates', 'Along lines of parameters']

    ```
    """
    _check_made_by(found, "convexity", "canonical", "literal", "position")
    plots = []
    for name, title, caption in (
        ("canonical", "Along lines of coordinates", "Convex in the canonical coordinates, for every line."),
        ("literal", "Along lines of parameters", "The same problem along random lines of its parameters: not convex."),
    ):
        series = tuple(
            Series(f"line {i + 1}", found.position.values, row, i + 1) for i, row in enumerate(found[name].values[:6])
        )
        meeting = found[name].values[:, np.argmin(np.abs(found.position.values))].max()
        highest = min(_HIGHEST * meeting, 1.05 * found[name].values[:6].max())
        y_range = (0.0, float(highest)) if highest > 0 else None
        plots.append(Plot(title, caption, "position on the line", "cost", series, y_range=y_range))
    return plots[0], plots[1]


@overload
def singularity_plot(found: Any, activation: str, scale: float, *, level: str = "1e-08") -> Plot: ...


@overload
def singularity_plot(
    found: Any, activation: str | None = None, scale: float | None = None, *, level: str = "1e-08"
) -> "Plot | matplotlib.figure.Figure": ...


def singularity_plot(
    found: Any, activation: str | None = None, scale: float | None = None, *, level: str = "1e-08"
) -> "Plot | matplotlib.figure.Figure":
    """Draw how often disparities are singular; `found` is `singularity_probability`'s.

    **Arguments:** `activation` and `scale`, of those in `found`. With both, curves against the width, at every
    tolerance. What is left out is an axis of a heat map: without `scale` width × scale, without `activation`
    width × activation; without both, a map of width × scale for each activation.

    **Returns:** with both a `Plot`, else a matplotlib figure. Its colour is the fraction at the tolerance `level`, also
    written in each cell above the median σ_min/σ_max. Left of the dashed line there are fewer parameters than modes.

    **Raises:** `UnknownNameError`, `ParameterError` for what `found` does not hold; `MissingExtraError` without
    matplotlib.

    ```python
    >>> import fibration as fb
    >>> found = fb.canonical.singularity_probability([2, 4], seeds=2, scales=[1.0, 8.0], activations=["relu"])
    >>> [one.name for one in fb.canonical.singularity_plot(found, "relu", 1.0).series]
    ['exact law', 'below eps', 'below 1e-08', 'below 1e-04']
    >>> figure = fb.canonical.singularity_plot(found, "relu")
    >>> print(figure.axes[0].images[0].get_array())  # scale × width
    [[1. 1.]
     [1. 1.]]

    ```
    """
    _check_made_by(found, "singularity_probability", "fraction", "activation", "scale", "width", "level", "relu_law")
    if activation is not None:
        _validation.check_name("activation", activation, tuple(found.activation.values.tolist()))
    if scale is not None and scale not in found.scale.values:
        raise ParameterError(f"scale = {scale}", f"one of {found.scale.values.tolist()}", "choose one of them")
    _validation.check_name("level", level, tuple(found.level.values.tolist()))
    if activation is None or scale is None:
        return _heat_maps(found, activation, scale, level)
    part = found.sel(activation=activation, scale=scale)
    series = [
        Series(
            f"below {name}",
            found.width.values.astype(float),
            part.fraction.sel(level=name).values,
            place,
            marker="circle",
        )
        for place, name in enumerate(found.level.values.tolist(), 1)
    ]
    if activation == "relu" and scale == 1:
        series.insert(0, Series("exact law", found.width.values.astype(float), found.relu_law.values, 0, wide=True))
    return Plot(
        f"Singular disparities, {activation}, scale {scale:g}",
        f"Fraction of {found.attrs['seeds']} random networks of one input whose σ_min/σ_max, of {found.attrs['modes']} "
        "modes, is below each tolerance.",
        "width",
        "fraction singular",
        tuple(series),
        x_log=True,
    )


def _heat_maps(found: Any, activation: str | None, scale: float | None, level: str) -> "matplotlib.figure.Figure":
    with report_extra():
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    scales = [f"{value:g}, standard" if value == 1 else f"{value:g}" for value in found.scale.values]
    if scale is not None:
        title, names, side = f"Scale {scale:g}", found.activation.values.tolist(), "activation"
        panels = [(title, found.sel(scale=scale))]
    else:
        chosen = found.activation.values.tolist() if activation is None else [activation]
        names, side = scales, "scale of the first layer"
        panels = [(name, found.sel(activation=name)) for name in chosen]
    size = (1.6 + (0.56 * len(found.width) + 0.5) * len(panels), 1.5 + 0.46 * len(names))
    with mpl.rc_context():
        mpl.rcdefaults()
        figure = Figure(figsize=(max(size[0], 4.4), max(size[1], 2.6)), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        images = [
            _heat_map(axes, part.sel(level=level), title) for axes, (title, part) in zip(row, panels, strict=True)
        ]
        for axes in row:
            axes.set_yticks(range(len(names)), names if axes is row[0] else [""] * len(names), fontsize=8)
        row[0].set_ylabel(side, fontsize=9)
        modes, tolerance = found.attrs["modes"], "max(M, K)·eps" if level == "eps" else f"{float(level):.0e}"
        bar = figure.colorbar(images[0], ax=figure.axes, fraction=0.025, pad=0.015)
        bar.set_label(f"fraction with σ_min/σ_max ≤ {tolerance}, K = {modes}", fontsize=8)
        bar.ax.tick_params(labelsize=8)
        figure.draw_without_rendering()  # ticks are made when first drawn, and are to be of this style
    return figure


def _heat_map(axes: Any, part: "xr.Dataset", title: str) -> Any:
    """Draw the fractions of one panel, rows upwards, and write them and the median ratios into the cells."""
    fraction, ratio = (part[name].transpose(..., "width").values for name in ("fraction", "median_ratio"))
    image = axes.imshow(fraction, cmap=_SCALE, vmin=0, vmax=1, aspect="auto", origin="lower")
    for (row, column), value in np.ndenumerate(fraction):
        small = "0" if ratio[row, column] == 0 else f"{ratio[row, column]:.0e}".replace("e-0", "e-")
        colour = "white" if value < 0.5 else "black"
        axes.text(column, row + 0.02, f"{value:.2f}", color=colour, fontsize=8, ha="center", va="bottom")
        axes.text(column, row - 0.06, small, color=colour, fontsize=7, ha="center", va="top")
    axes.set_xticks(range(len(part.width)), [str(width) for width in part.width.values], fontsize=8)
    few = int(np.sum(part.parameters.values < part.attrs["modes"]))
    if 0 < few < len(part.width):
        axes.axvline(few - 0.5, color="white", linewidth=2)
        axes.axvline(few - 0.5, color="black", linewidth=1, linestyle="--")
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("width", fontsize=9)
    axes.spines[:].set_visible(False)
    return image
