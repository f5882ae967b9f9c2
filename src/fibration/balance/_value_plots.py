"""Pictures of end-to-end matrices: singular values along learning against theory, and the fast–slow limit."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.integrate
from jaxtyping import Float

from ..errors import EmptyDataError, ParameterError, ShapeError, TimeMismatchError
from ..plots import Line, Plot, Series
from ..plots._numbers import number
from ..plots._plot import Dash
from ..solvers import Trajectory
from ._fibre import check_depth
from ._plots import Runs, Stack, joined, named, products_of

_DASHES: tuple[Dash, ...] = ("solid", "dashed", "dotted")
_SAME = 1e-5  # relative difference of two products that rounding in float32 explains


def singular_value_path(
    start: Any, targets: Any, times: Any, depth: int, weight_decay: float = 0.0
) -> Float[np.ndarray, "T r"]:
    """Compute singular values along the learning flow of ½‖X − Y‖² + λR*(X), if X(0) and Y have one frame.

    With X(0) = U diag(σ(0)) V* and Y = U diag(y) V* the flow keeps U and V, and

        σ_i' = −N σ_i^{2−2/N} (σ_i − y_i) − λN σ_i.

    Large ones are learned first, and while the others are still small X is nearly of low rank; with weight decay they
    tend to `shrinkage(y, λ, N)` if they start above the unstable level, and to zero from below it. It is what
    regression on whitened data, and gradient flow with weight decay of a balanced chain, do.

    **Arguments:** `start` (r,): σ(0) ≥ 0; `targets` (r,): y ≥ 0; `times` (T,): t ≥ 0, increasing; `depth`: N ≥ 1;
    `weight_decay`: λ ≥ 0.

    **Returns:** σ (T, r), in float64, for N ≤ 2 in closed form.

    **Raises:** `ShapeError`, `ParameterError`.

    **Source:** Arora, Cohen, Hu and Luo, arXiv 1905.13655, theorem 3, for the equation; the logistic function for N = 2
    is in Saxe, McClelland and Ganguli, arXiv 1312.6120; weight decay: derived.

    ```python
    >>> import fibration as fb
    >>> fb.balance.singular_value_path([0.5], [1.0], [0.0, 1.0, 10.0], depth=2).round(4).T  # logistic
    array([[0.5   , 0.8808, 1.    ]])

    ```
    """
    check_depth(depth)
    first, y, t = (np.atleast_1d(np.asarray(given, float)) for given in (start, targets, times))
    if first.shape != y.shape or first.ndim != 1 or t.ndim != 1 or not len(t):
        raise ShapeError(
            f"start {first.shape}, targets {y.shape} and times {t.shape}",
            "one target for each singular value, and a row of times",
            "pad the shorter with zeros",
        )
    numbers = np.concatenate([first, y, t, [float(weight_decay)]])
    if not (np.all(np.isfinite(numbers)) and np.all(numbers >= 0) and np.all(np.diff(t) > 0)):
        raise ParameterError(
            f"numbers from {numbers.min():g} to {numbers.max():g}, and times from {t[0]:g} to {t[-1]:g}",
            "finite numbers, none of them negative, and times that increase",
            "take singular values, and sorted times",
        )
    if depth <= 2:
        return _logistic(first, y, t, float(weight_decay)) if depth == 2 else _linear(first, y, t, float(weight_decay))
    values = np.zeros((len(t), len(y)))
    alive = first > 0  # zero stays zero
    q = 1 - 2 / depth

    def velocity(_: float, logs: np.ndarray) -> np.ndarray:
        sigma = np.exp(logs)
        return -depth * (sigma**q * (sigma - y[alive]) + weight_decay)

    if alive.any():
        span = (0.0, max(float(t[-1]), np.finfo(float).tiny))
        run = scipy.integrate.solve_ivp(velocity, span, np.log(first[alive]), "LSODA", t, rtol=1e-10, atol=1e-10)
        values[:, alive] = np.exp(run.y.T)
    return values


def singular_value_plot(
    runs: Runs,
    *,
    theory: Trajectory | tuple[Any, Any] | None = None,
    levels: Mapping[str, Any] | None = None,
    y_log: bool = False,
) -> Plot:
    """Describe the singular values of the end-to-end matrix along learning, with a theory on the same axis.

    **Arguments:**

    - `runs`: trajectories of chains or of matrices X, a list or a mapping from names such as "balanced" and "not
      balanced"; all singular values of one are one curve with gaps.
    - `theory`: a trajectory of X, as that of `LearningFlow`, or `(times, values)`, (T,) and (T, r), as from
      `singular_value_path`; drawn broadly, under the others.
    - `levels`: names to singular values to mark, such as those of the target, or of `shrinkage`; the name is written at
      the largest of them.
    - `y_log`: a logarithmic axis, on which zero is a gap.

    **Raises:** `EmptyDataError` without runs; `ShapeError`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> flow = fb.balance.LearningFlow(lambda X: X - jnp.diag(jnp.array([2.0, 1.0])), depth=2)
    >>> run = fb.solvers.solve(flow, 0.1 * jnp.eye(2), 2.0, times=[0.0, 1.0, 2.0])
    >>> path = fb.balance.singular_value_path([0.1, 0.1], [2.0, 1.0], run.times, depth=2)
    >>> plot = fb.balance.singular_value_plot([run], theory=(run.times, path), levels={"target": [2.0, 1.0]})
    >>> measured, predicted = plot.series[1].y, plot.series[0].y
    >>> bool(jnp.nanmax(jnp.abs(measured - predicted)) < 1e-4)
    True

    ```
    """
    pairs = named(runs, "measured")
    if not pairs:
        raise EmptyDataError("no trajectories", "at least one", "pass a trajectory, in a list")
    series: list[Series] = []
    if theory is not None:
        times, values = (theory.times, _values(theory)) if isinstance(theory, Trajectory) else _read_path(theory)
        series.append(Series("theory", *_curves(times, values), 0, wide=True))
    for place, name in enumerate(dict.fromkeys(name for name, _ in pairs)):
        curves = [_curves(run.times, _values(run)) for other, run in pairs if other == name]
        series.append(Series(name, *joined(curves), 1 + place, _DASHES[place % len(_DASHES)]))
    marks: list[Line] = []
    for place, (name, given) in enumerate((levels or {}).items()):
        values = np.sort(np.asarray(given, float).ravel())[::-1]
        marks += [Line(name if k == 0 else "", float(value), 5 + place) for k, value in enumerate(values)]
    return Plot(
        "Singular values along learning",
        "Singular values of the end-to-end matrix: large ones are learned first, and small ones late or never.",
        "time",
        "singular values",
        tuple(series),
        levels=tuple(marks),
        y_log=y_log,
    )


def fast_slow_plot(runs: Mapping[float, Trajectory], learning: Trajectory) -> tuple[Plot, Plot]:
    """Describe how the fast–slow system tends to the learning flow: |X_ε(t) − X_0(t)| over time, and its end over ε.

    **Arguments:** `runs`: ε to the trajectory that `fast_slow` returned for it; `learning`: a trajectory of matrices X
    along `LearningFlow`, from the same product and saved at the same times.

    **Returns:** two plots: the distances over time; and those at the last time over ε, with a line of slope one, since
    the error is of order ε, through that of the smallest ε.

    **Raises:** `EmptyDataError` without runs; `TimeMismatchError` if the saved times are not those of `learning`;
    `ShapeError`; `ParameterError` for an ε that is not positive, or products that differ at time 0.

    **Source:** derived; see `fast_slow`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> gradient, Ws = lambda X: X - 3.0, [jnp.array([[2.0]]), jnp.array([[1.0]])]
    >>> learning = fb.solvers.solve(fb.balance.LearningFlow(gradient, 2), jnp.array([[2.0]]), 1.0, times=[0.0, 1.0])
    >>> runs = {e: fb.balance.fast_slow(Ws, gradient, e, 1.0, times=[0.0, 1.0], rtol=1e-4) for e in (0.2, 0.1)}
    >>> over_time, over_epsilon = fb.balance.fast_slow_plot(runs, learning)
    >>> ratio = over_epsilon.series[1].y[1] / over_epsilon.series[1].y[0]
    >>> bool(1.5 < ratio < 2.5)
    True

    ```
    """
    if not runs:
        raise EmptyDataError("no trajectories", "one for each ε", "pass {0.1: fast_slow(Ws, gradient, 0.1, t1), …}")
    epsilons = np.array(sorted(float(epsilon) for epsilon in runs))
    if not (epsilons[0] > 0 and np.isfinite(epsilons[-1])):
        raise ParameterError(f"ε from {epsilons[0]} to {epsilons[-1]}", "positive numbers", "leave out the others")
    limit = products_of(learning)
    distances = [_distances(run, learning, limit) for _, run in sorted(runs.items(), key=lambda pair: float(pair[0]))]
    ends = np.array([distance[-1] for distance in distances])
    # All start from one product: on a logarithmic axis the first distance would be rounding, and is left out.
    first = int(learning.times[0] == 0)
    over_time = Plot(
        "The fast–slow system and its limit",
        "How far the product is from that of the learning flow, for balancing 1/ε times as fast as learning.",
        "time",
        "|X_ε(t) − X₀(t)|",
        tuple(
            Series(f"ε = {number(float(epsilon), 3)}", learning.times[first:], distance[first:], 1 + place)
            for place, (epsilon, distance) in enumerate(zip(epsilons, distances, strict=True))
        ),
        y_log=True,
    )
    over_epsilon = Plot(
        f"The distance at t = {number(float(learning.times[-1]), 3)}",
        "The distance from the learning flow at the last time is of order ε.",
        "ε",
        "|X_ε − X₀|",
        (
            Series("theory: slope one", epsilons, ends[0] * epsilons / epsilons[0], 0, "dashed"),
            Series("measured at the end", epsilons, ends, 1, "none", "circle"),
        ),
        x_log=True,
        y_log=True,
    )
    return over_time, over_epsilon


def _linear(first: np.ndarray, y: np.ndarray, t: np.ndarray, rate: float) -> np.ndarray:
    """Solve σ' = y − (1 + λ)σ."""
    rest = y / (1 + rate)
    return rest + (first - rest) * np.exp(-(1 + rate) * t)[:, None]


def _logistic(first: np.ndarray, y: np.ndarray, t: np.ndarray, rate: float) -> np.ndarray:
    """Solve σ' = 2σ(k − σ), k = y − λ of either sign: σ(t) = σ(0)/(e^{−2kt} + σ(0)(1 − e^{−2kt})/k)."""
    k = y - rate
    decay = np.exp(-2 * k * t[:, None])
    growth = np.where(k == 0, 2 * t[:, None], -np.expm1(-2 * k * t[:, None]) / np.where(k == 0, 1, k))
    return first / (decay + first * growth)


def _values(run: Trajectory) -> Float[np.ndarray, "T r"]:
    return np.linalg.svd(products_of(run), compute_uv=False)


def _read_path(path: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    times, values = (np.asarray(given, float) for given in path)
    if times.ndim != 1 or values.ndim != 2 or len(values) != len(times):
        raise ShapeError(
            f"times {times.shape} and values {values.shape}", "(T,) and (T, r)", "put times first, transpose the values"
        )
    return times, values


def _curves(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return joined([(np.asarray(times, float), column) for column in values.T])


def _distances(run: Trajectory, learning: Trajectory, limit: Stack) -> Float[np.ndarray, " T"]:
    if run.times.shape != learning.times.shape or not np.allclose(run.times, learning.times, rtol=1e-6, atol=0):
        raise TimeMismatchError(
            f"{len(run.times)} saved times to {run.times[-1]:g} and {len(learning.times)} to {learning.times[-1]:g}",
            "the same times",
            "pass the same `times` to `fast_slow` and to `solve`",
        )
    products = products_of(run)
    if products.shape != limit.shape:
        raise ShapeError(f"products {products.shape} and {limit.shape}", "matrices of one shape", "follow one problem")
    distances = np.linalg.norm(products - limit, axis=(1, 2))
    if run.times[0] == 0 and distances[0] > _SAME * np.linalg.norm(limit[0]):
        raise ParameterError(
            f"a chain whose product starts at a distance of {distances[0]:.3g} from the learning flow",
            "one product to start from",
            "start `LearningFlow` at `end_to_end(Ws)`",
        )
    return distances
