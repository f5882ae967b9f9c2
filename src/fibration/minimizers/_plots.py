"""Pictures of minimisers: noise by layer, the ladder of the configurations, and the spectrum at a minimum."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import EmptyDataError
from ..plots import Line, Plot, Series
from ..plots._numbers import number
from ..plots._plot import Dash
from ._configuration import Configuration
from ._minimizer import Minimizer
from ._view import NoiseToSignal, TruncationView, noise_to_signal, truncation_view


def noise_plot(network: Any, inputs: Any, labels: Any) -> Plot:
    """Describe the noise to signal of samples before the first layer and after each, on a logarithmic axis.

    A layer that leaves no noise at all is a gap. The noise need not sink at every layer: a collapsed class moves
    towards the centre, and the simplex of the means, by which the others are measured, shrinks.

    **Arguments:** `network`: a `Minimizer`, a `TruncationView`, or what `truncation_view` takes; `inputs` (N, …) and
    `labels` (N,).

    **Raises:** those of `truncation_view` and of `noise_to_signal`.

    ```python
    >>> import fibration as fb
    >>> inputs, labels = fb.datasets.gaussian_clusters(3, 20, 4, spread=0.03)
    >>> plot = fb.minimizers.noise_plot(fb.minimizers.construct(inputs, labels), inputs, labels)
    >>> bool(plot.series[0].y[2] < plot.series[0].y[1] < plot.series[0].y[0]), float(plot.series[0].y[3])
    (True, 0.0)

    ```
    """
    if isinstance(network, Minimizer):
        # Its own truncations take samples to their point exactly, where products of weights leave rounding.
        noise: list[NoiseToSignal] = [
            noise_to_signal(network.truncated(inputs, layers), labels) for layers in range(len(network.steps) + 1)
        ]
    else:
        view = network if isinstance(network, TruncationView) else truncation_view(network)
        noise = [noise_to_signal(view.truncated(inputs, layers), labels) for layers in range(len(view.cumulative))]
    layers = np.arange(len(noise), dtype=float)
    series = (
        Series("‖Δ₁‖, of all samples", layers, np.array([one.norm for one in noise]), 1, marker="circle"),
        Series("δ_P, the largest", layers, np.array([one.supremum for one in noise]), 4, "dashed", "circle"),
    )
    silent = [place for place, one in enumerate(noise) if one.norm == 0 and place]
    rest = f" From layer {silent[0]} on there is none." if silent else ""
    return Plot(
        "Noise to signal by layer",
        f"How large the classes are against the simplex of their means, after each layer.{rest}",
        "after layer",
        "noise to signal",
        series,
        moments=(Line("no noise", float(silent[0])),) if silent else (),
        y_log=True,
        x_names=("before", *(str(place) for place in range(1, len(noise)))),
    )


def cost_ladder(configurations: Sequence[Configuration]) -> Plot:
    """Describe configurations in the order of their cost: what they cost, and what has been said that they cost.

    They are named as in the paper: a digit for each class, 0 if it is collapsed and 1 if not. Upright lines mark those
    of zero cost and the local minimum; no other is stationary.

    **Arguments:** `configurations`: as `configuration` returns them, of the same samples.

    **Raises:** `EmptyDataError` if there are none.

    **Source:** Chen and Muñoz Ewald, arXiv 2309.10639, theorems 2.4 and 2.5; see `Configuration`.

    ```python
    >>> import fibration as fb
    >>> inputs, labels = fb.datasets.gaussian_clusters(2, 30, 2, means=[[1.0, 0.0], [0.0, 1.0]])
    >>> flags = [(True, True), (True, False), (False, False)]
    >>> plot = fb.minimizers.cost_ladder([fb.minimizers.configuration(inputs, labels, s) for s in flags])
    >>> plot.x_names[0], [line.name for line in plot.moments]
    ('00', ['global', 'local minimum'])

    ```
    """
    if not configurations:
        raise EmptyDataError("no configurations", "at least one", "pass what `configuration` returns, in a list")
    ordered = sorted(configurations, key=lambda one: one.cost)
    places = np.arange(len(ordered), dtype=float)
    known: tuple[tuple[str, list[float], int, Dash, bool], ...] = (
        ("cost", [one.cost for one in ordered], 1, "solid", False),
        ("with the output bias tied", [one.tied_bias_cost for one in ordered], 3, "none", False),
        ("the paper's value", [one.paper_cost for one in ordered], 4, "none", True),
    )
    # The paper's value is often the one with the tied bias: a larger circle beneath it shows both.
    series = {
        name: Series(name, places, np.array(values), colour, dash, "circle", wide)
        for name, values, colour, dash, wide in known
    }
    names = {"global": "global", "local_minimum": "local minimum"}
    return Plot(
        "The configurations by cost",
        "What each choice of collapsed classes costs, with the best output layer behind it, and what the two formulas "
        "of the paper give for it.",
        "configuration: 0 for each class collapsed, 1 for each that is not",
        "cost",
        tuple(series[name] for name in ("the paper's value", "with the output bias tied", "cost")),
        moments=tuple(
            Line(names[one.status], float(place), 2 if one.status == "global" else 5)
            for place, one in enumerate(ordered)
            if one.status in names
        ),
        x_names=tuple("".join("0" if flag else "1" for flag in one.collapsed) for one in ordered),
    )


def degenerate_directions(configuration: Configuration) -> Plot:
    """Describe the eigenvalues of the Hessian of C² by size, on a logarithmic axis, and their number above rounding.

    Beyond the rank, the configuration can be moved without a change of C² in second order: Q² directions count at zero
    cost, Q² + Q where no class is collapsed (derived). Eigenvalues of zero are gaps.

    **Arguments:** `configuration`: as `configuration` returns it; its Hessian is dense.

    ```python
    >>> import fibration as fb
    >>> inputs, labels = fb.datasets.gaussian_clusters(2, 30, 2, means=[[1.0, 0.0], [0.0, 1.0]])
    >>> found = fb.minimizers.configuration(inputs, labels, (True, True))
    >>> fb.minimizers.degenerate_directions(found).moments[0].name
    'rank 4 = Q²'

    ```
    """
    values = configuration.hessian_eigenvalues
    values = values[np.argsort(-np.abs(values))]
    places, rank, q = np.arange(1.0, len(values) + 1), configuration.hessian_rank, len(configuration.collapsed)
    formulas = {"global": (q * q, " = Q²"), "local_minimum": (q * q + q, " = Q² + Q")}
    expected, formula = formulas.get(configuration.status, (-1, ""))
    series = [Series("positive", places, np.where(values > 0, values, np.nan), 1, "none", "circle")]
    if np.any(values < 0):
        sizes = np.where(values < 0, -values, np.nan)
        series.append(Series("negative, without the sign", places, sizes, 4, "none", "circle"))
    name = "".join("0" if flag else "1" for flag in configuration.collapsed)
    least = 1e-9 * float(np.abs(values).max(initial=0.0))
    return Plot(
        f"Hessian spectrum at configuration {name}",
        f"{rank} of {len(values)} eigenvalues are above rounding, which ends at {number(least, 2)}.",
        "number, by size",
        "eigenvalue of the Hessian of C²",
        tuple(series),
        levels=(Line("counted as zero below", least),),
        moments=(Line(f"rank {rank}{formula if rank == expected else ''}", rank + 0.5, 2),),
        y_log=True,
        x_range=(0.0, len(values) + 1.0),
    )
