"""The plots of Elkabetz and Cohen's experiments, and those of methods across kinks."""

from typing import TYPE_CHECKING

import numpy as np

from ..plots import Line, Plot, Series, to_matplotlib
from ..plots._numbers import number
from ..plots._plot import Dash
from ..study import ElkabetzCohenStudy

if TYPE_CHECKING:
    import matplotlib.figure
    import xarray

TITLES = {
    "linear": "Fully connected, linear",
    "relu": "Fully connected, rectified linear",
    "conv": "Convolutional, subsampling",
    "conv-pool": "Convolutional, max pooling",
}
STEPS = "steps of η₀"


def elkabetz_cohen_plots(study: ElkabetzCohenStudy) -> list[Plot]:
    """Describe the five plots of an experiment: loss, distances as in the paper, relative, to the flow, and sharpness.

    ```python
    >>> import jax
    >>> import fibration as fb
    >>> with jax.enable_x64(True):
    ...     study = fb.study.elkabetz_cohen("linear", samples=10, steps=4, ratios=(2,), n_stamps=2)
    >>> [plot.title for plot in fb.report.elkabetz_cohen_plots(study)][0]
    'Fully connected, linear: training loss'

    ```
    """
    return [
        loss_plot(study),
        distance_plot(study),
        relative_plot(study),
        flow_plot(study),
        sharpness_plot(study),
    ]


def elkabetz_cohen_figure(study: ElkabetzCohenStudy) -> "matplotlib.figure.Figure":
    """Draw the training loss beside the distances relative to the distance from the start, 10 × 4 inches.

    **Raises:** `MissingExtraError` without matplotlib.

    ```python
    >>> import jax
    >>> import fibration as fb
    >>> with jax.enable_x64(True):
    ...     study = fb.study.elkabetz_cohen("linear", samples=10, steps=4, ratios=(2,), n_stamps=2)
    >>> len(fb.report.elkabetz_cohen_figure(study).axes)
    2

    ```
    """
    return to_matplotlib([loss_plot(study), relative_plot(study)])


def relu_order_plots(orders: "xarray.Dataset") -> list[Plot]:
    """Describe what `study.relu_order` measured: error against equal steps, and adaptive steps against tolerance.

    ```python
    >>> import jax
    >>> import fibration as fb
    >>> with jax.enable_x64(True):
    ...     measured = fb.study.relu_order(("relu",), samples=10, step_counts=(2, 4), rtols=(1e-2,), reference_steps=8)
    >>> [series.name for series in fb.report.relu_order_plots(measured)[0].series]
    ['relu, Euler', 'relu, Runge–Kutta 4']

    ```
    """
    activations, schemes = ([str(name) for name in orders[axis].values] for axis in ("activation", "scheme"))
    span = float(orders.attrs["t1"])
    fixed = [
        Series(
            f"{activation}, {scheme}",
            span / orders["steps"].values.astype(float),
            orders["fixed_error"].sel(activation=activation, scheme=scheme).values,
            1 + row + len(activations) * column,
            marker="circle",
        )
        for row, activation in enumerate(activations)
        for column, scheme in enumerate(schemes)
    ]
    adaptive = [
        Series(
            f"{activation}, Tsit5",
            orders["rtol"].values,
            orders["steps_taken"].sel(activation=activation).values.astype(float),
            1 + row + len(activations) * len(schemes),
            marker="circle",
        )
        for row, activation in enumerate(activations)
    ]
    return [
        Plot(
            "Error of equal steps",
            "The distance from the flow at the end, relative to the distance travelled, against the step size.",
            "step size",
            "relative error",
            tuple(fixed),
            x_log=True,
            y_log=True,
        ),
        Plot(
            "Steps that error control takes",
            "Accepted steps of Tsit5, an adaptive method of order five, against the relative tolerance.",
            "relative tolerance",
            "accepted steps",
            tuple(adaptive),
            x_log=True,
            y_log=True,
        ),
    ]


def loss_plot(study: ElkabetzCohenStudy) -> Plot:
    """Describe the training loss of every run at the same times."""
    names = ["gradient flow", "η₀", *_divided(study)]
    curves = [
        Series(name, _steps(study), costs, row, _dash(row), wide=row == 0)
        for row, (name, costs) in enumerate(zip(names, study.costs, strict=True))
    ]
    return Plot(
        f"{TITLES[study.model]}: training loss",
        f"The loss along the gradient flow and along the descents, at the same times: after k steps of η₀ = "
        f"{number(study.step_size)}, and rk of η₀/r.",
        STEPS,
        "training loss",
        tuple(curves),
        y_log=True,
    )


def distance_plot(study: ElkabetzCohenStudy) -> Plot:
    """Describe the distances as the paper does, on the scale of the distance from the start."""
    start = Series("η₀ from the start", _steps(study), study.travelled[1], 1)
    curves = _between(study, np.ones_like(study.times))
    return Plot(
        "Distance of η₀ from its start and from smaller steps",
        "How far descent at η₀ is from where it started, and from descents with smaller steps at the same time: the "
        "axes of the paper's plots.",
        STEPS,
        "distance of η₀",
        (start, *curves),
    )


def relative_plot(study: ElkabetzCohenStudy) -> Plot:
    """Describe the distances of η₀ from the other runs and from the flow over its distance from the start."""
    scale = _inverse(study.travelled[1])
    flow = Series("gradient flow", _steps(study), study.from_flow[0] * scale, 0, wide=True)
    return Plot(
        "Distance of η₀ from the flow and from smaller steps",
        "How far descent at η₀ is from the gradient flow and from descents with smaller steps at the same time, "
        "divided by how far it is from its start.",
        STEPS,
        "relative to the distance from the start",
        (flow, *_between(study, scale)),
        y_log=True,
    )


def flow_plot(study: ElkabetzCohenStudy) -> Plot:
    """Describe the measured distance of η₀ from the flow beside Richardson's estimates."""
    flow = Series("gradient flow", _steps(study), study.from_flow[0], 0, wide=True)
    estimates = [
        Series(f"Richardson, {name}", _steps(study), values, row + 2, _dash(row + 2))
        for row, (name, values) in enumerate(zip(_divided(study), study.richardson(), strict=True))
    ]
    error = Series("error of the solved flow", _steps(study), study.flow_error, len(study.ratios) + 2, "dotted")
    return Plot(
        "Distance of η₀ from the gradient flow",
        "Measured against the solved flow, and estimated from pairs of descents: r/(r−1) times the distance between η₀ "
        "and η₀/r. The estimates agree where descent is of first order. Dotted: the estimated error of the solution.",
        STEPS,
        "distance of η₀",
        (flow, *estimates, error),
        y_log=True,
    )


def sharpness_plot(study: ElkabetzCohenStudy) -> Plot:
    """Describe the sharpness along the flow and along the descent at η₀."""
    flow, base = study.sharpness
    limit = 2 / study.step_size
    near = limit < 4 * float(np.max(study.sharpness))
    return Plot(
        "Sharpness",
        "The largest eigenvalue of the Hessian along the flow and along descent at η₀, which is stable where it is "
        f"below 2/η₀ = {number(limit)}.",
        STEPS,
        "sharpness",
        (Series("gradient flow", _steps(study), flow, 0, wide=True), Series("η₀", _steps(study), base, 1)),
        (Line("2/η₀", limit, 1),) if near else (),
    )


def _steps(study: ElkabetzCohenStudy) -> np.ndarray:
    return study.times / study.step_size


def _divided(study: ElkabetzCohenStudy) -> list[str]:
    return [f"η₀/{ratio}" for ratio in study.ratios]


def _between(study: ElkabetzCohenStudy, scale: np.ndarray) -> list[Series]:
    return [
        Series(name, _steps(study), values * scale, row + 2, _dash(row + 2))
        for row, (name, values) in enumerate(zip(_divided(study), study.between, strict=True))
    ]


def _inverse(values: np.ndarray) -> np.ndarray:
    """Compute 1/values, NaN where they are zero."""
    return np.divide(1.0, values, out=np.full_like(values, np.nan), where=values > 0)


def _dash(row: int) -> Dash:
    # Curves that coincide show through one another.
    return "solid" if row < 2 else "dashed" if row % 2 else "dotted"
