"""Plots of canonical space: spectra along training, coordinates by frequency, two landscapes, singularity by width."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from ..plots import Plot, Series

if TYPE_CHECKING:
    import xarray as xr

_MOST = 12


def spectrum_plot(times: Any, singular_values: Float[np.ndarray, "T r"]) -> Plot:
    """Draw the singular values of H along a run, largest first: (T, r) at `times` (T,).

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> plot = fb.canonical.spectrum_plot(np.arange(3.0), np.array([[2.0, 0.1], [2.0, 0.2], [2.0, 0.3]]))
    >>> [one.name for one in plot.series]
    ['σ 1', 'σ 2']

    ```
    """
    values = np.asarray(singular_values)
    chosen = np.unique(np.linspace(0, values.shape[1] - 1, min(_MOST, values.shape[1])).round().astype(int))
    series = [Series(f"σ {i + 1}", np.asarray(times), values[:, i], place) for place, i in enumerate(chosen, 1)]
    return Plot(
        "What the network can change",
        "Singular values of the disparity matrix along the run: directions of functions far below the others "
        "cannot be learnt now.",
        "time",
        "singular value",
        tuple(series),
        y_log=True,
    )


def frequency_plot(times: Any, theta: Float[np.ndarray, "T K"], target: Float[np.ndarray, " K"], degrees: Any) -> Plot:
    """Draw how each total degree of the coordinates comes to its target: the distance over each shell.

    **Arguments:** `theta` (T, K) at `times` (T,), `target` (K,), `degrees` (K,), such as `basis.total_degrees`.

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
    distance, degrees = (np.asarray(theta) - np.asarray(target)) ** 2, np.asarray(degrees)
    shells = [s for s in np.unique(degrees) if np.any(distance[0, degrees == s] > 0)][:_MOST]
    series = []
    for place, shell in enumerate(shells, 1):
        rows = np.sqrt(distance[:, degrees == shell].sum(axis=1))
        series.append(Series(f"degree {shell}", np.asarray(times), rows, place))
    return Plot(
        "Coordinates by frequency",
        "Distance of the canonical coordinates from their targets, by total degree: low frequencies first, as a rule "
        "with exceptions.",
        "time",
        "distance from the target",
        tuple(series),
        y_log=True,
    )


def landscape_plots(found: "xr.Dataset") -> tuple[Plot, Plot]:
    """Draw the costs along lines in canonical and in literal space; `found` is what `convexity` returned.

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
    plots = []
    for name, title, caption in (
        ("canonical", "Along lines of coordinates", "Convex in the canonical coordinates, for every line."),
        ("literal", "Along lines of parameters", "The same problem along random lines of its parameters: not convex."),
    ):
        series = tuple(
            Series(f"line {i + 1}", found.position.values, row, i + 1) for i, row in enumerate(found[name].values[:6])
        )
        plots.append(Plot(title, caption, "position on the line", "cost", series, y_log=True))
    return plots[0], plots[1]


def singularity_plot(found: "xr.Dataset", activation: str, scale: float) -> Plot:
    """Draw the fraction of singular disparities against the width; `found` is `singularity_probability`'s.

    ```python
    >>> import fibration as fb
    >>> found = fb.canonical.singularity_probability([2, 4], seeds=2, scales=[1.0], activations=["relu"])
    >>> [one.name for one in fb.canonical.singularity_plot(found, "relu", 1.0).series]
    ['exact law', 'below eps', 'below 1e-08', 'below 1e-04']

    ```
    """
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
