"""Pictures of chains: fibres of scalar chains, and moment maps along the balancing flows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from ..errors import EmptyDataError, ParameterError, ShapeError
from ..plots import Plot, Series
from ..plots._numbers import number
from ..plots._plot import Dash
from ..solvers import Trajectory
from ._fibre import orbit
from ._flows import observe_chain
from ._squared_moment import squared_moment_rates

Runs = Sequence[Trajectory] | Mapping[str, Trajectory]
Curve = tuple[np.ndarray, np.ndarray]
Stack = Shaped[np.ndarray, "T m n"]  # one matrix at T times

_POINTS = 201  # of one branch of a hyperbola
_SEEN = 1e-6  # of the first moment map: what is below may be the solver's error
_FLOWS: dict[str, tuple[str, int, Dash]] = {
    "induced": ("induced flow", 1, "solid"),
    "squared_moment": ("squared-moment flow", 2, "solid"),
    "newton": ("Newton flow", 4, "dashed"),
}


def fibre_plot(
    products: Sequence[float] = (-1.0, 0.5, 2.0),
    runs: Runs = (),
    *,
    conserved: Sequence[float] = (),
    extent: float | None = None,
) -> Plot:
    """Describe the plane of chains of two numbers: fibres, balanced chains, and the ways of flows among them.

    The fibre over c is the hyperbola w_2 w_1 = c, for c = 0 the two axes; the balanced chains are the two diagonals,
    w_1² = w_2². Balancing flows keep to a fibre and go to the diagonal, gradient flows of any cost of the product keep
    to a hyperbola w_1² − w_2² = G and cross the fibres at right angles.

    **Arguments:**

    - `products`: the c whose fibres are drawn, both branches of each.
    - `runs`: trajectories of chains of two 1 × 1 matrices, a list or a mapping from names: from `flow` (drawn broadly,
      under the fibre that they follow), from `fb.descend` on a `factored` problem or from `fast_slow`. Those of one
      name are one curve with gaps.
    - `conserved`: the G whose hyperbolas are drawn, dotted.
    - `extent`: the axes go from −extent to extent; by default as far as is needed.

    **Raises:** `ShapeError` for other chains; `ParameterError` for numbers that are not finite, or an extent at which
    some fibre is not to be seen.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> run = fb.balance.flow([np.array([[2.0]]), np.array([[0.5]])], 4.0)
    >>> plot = fb.balance.fibre_plot([1.0], [run])
    >>> [series.name for series in plot.series]
    ['balanced, |w₁| = |w₂|', 'induced flow', 'w₂w₁ = 1', 'starts']
    >>> print(plot.series[1].x[[0, -1]].round(3), plot.series[1].y[[0, -1]].round(3))
    [2. 1.] [0.5 1. ]

    ```
    """
    paths = [(name, run, _scalars(run)) for name, run in named(runs, "learning")]
    values = [*products, *conserved]
    if not all(np.isfinite(values)):
        raise ParameterError(f"products and conserved numbers {values}", "finite numbers", "leave out the others")
    reach = np.sqrt(np.max(np.abs(values), initial=0.0))
    furthest = max([1.7 * float(reach), *(1.15 * float(np.abs(path).max()) for _, _, path in paths)])
    end = float(extent) if extent is not None else furthest or 1.0
    if not reach < end < np.inf:
        raise ParameterError(f"extent = {extent}", f"a number above {reach:.3g}, to see all of them", "leave it out")
    diagonal = np.array([-end, end])
    series = [Series("balanced, |w₁| = |w₂|", *joined([(diagonal, diagonal), (diagonal, -diagonal)]), 0, "dashed")]
    if conserved:
        lines = joined([branch for G in conserved for branch in _conserved(float(G), end)])
        series.append(Series("w₁² − w₂² constant", *lines, 0, "dotted"))
    along = [(name, (path[0], path[1])) for name, run, path in paths if "kind" in run.stats]
    across = [(name, (path[0], path[1])) for name, run, path in paths if "kind" not in run.stats]
    series += [
        Series(name, *joined(curves), 4 + place, wide=True) for place, (name, curves) in enumerate(_grouped(along))
    ]
    series += [
        Series(f"w₂w₁ = {number(float(c), 3)}", *joined(_fibre(float(c), end)), 1 + place % 3)
        for place, c in enumerate(products)
    ]
    series += [Series(name, *joined(curves), 5 + place) for place, (name, curves) in enumerate(_grouped(across))]
    if paths:
        starts = np.stack([path[:, 0] for _, _, path in paths])
        series.append(Series("starts", starts[:, 0], starts[:, 1], 0, "none", "circle"))
    return Plot(
        "Fibres of chains of two numbers",
        "Chains on one hyperbola have one product; the balanced ones, on the diagonals, are the shortest of them.",
        "w₁",
        "w₂",
        tuple(series),
        x_range=(-end, end),
        y_range=(-end, end),
        equal=True,
    )


def moment_plot(runs: Runs) -> Plot:
    """Describe how the moment map decays along balancing flows, on a logarithmic axis, against what theory says.

    Along "induced" and "newton" it is |μ(t)| = e^{−2t} |μ(0)|. Along "squared_moment" it falls at the end like the
    slowest of `squared_moment_rates`; that line is laid through the last point that the solver's error leaves alone.

    **Arguments:** `runs`: trajectories from `flow`, a list or a mapping from names; trajectories of chains from
    elsewhere are shown without theory.

    **Raises:** `EmptyDataError` if there are none; `ShapeError` for trajectories of anything but chains, or without
    their times.

    **Source:** derived; see `flow` and `squared_moment_rates`.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> Ws = [np.array([[2.0]]), np.array([[0.5]])]
    >>> runs = [fb.balance.flow(Ws, 2.0, kind) for kind in ("induced", "squared_moment")]
    >>> [series.name for series in fb.balance.moment_plot(runs).series]
    ['theory: exp(−2t)', 'theory: slowest rate, exp(−4t)', 'induced flow', 'squared-moment flow']

    ```
    """
    pairs = named(runs, "measured")
    if not pairs:
        raise EmptyDataError("no trajectories", "at least one", "pass what `flow` returns, in a list")
    decays = [(name, run, _decay(run)) for name, run in pairs]
    theory: dict[str, list[Curve]] = {}
    for _, run, (times, sizes) in decays:
        kind = run.stats.get("kind")
        if kind in ("induced", "newton"):
            theory.setdefault("theory: exp(−2t)", []).append((times, np.exp(-2 * times)))
        rate = _slowest_rate(run) if kind == "squared_moment" else None
        if rate is not None:
            last = np.flatnonzero(sizes > _SEEN)[-1]
            line = sizes[last] * np.exp(-rate * (times - times[last]))
            theory.setdefault(f"theory: slowest rate, exp(−{number(rate, 3)}t)", []).append((times, line))
    series: list[Series] = []
    for name, curves in theory.items():
        exact = name.endswith("exp(−2t)") and "rate" not in name
        longest = max(curves, key=lambda curve: float(curve[0][-1]))
        series.append(
            Series(name, *(longest if exact else joined(curves)), 0, "solid" if exact else "dashed", wide=exact)
        )
    looks = {name: _FLOWS.get(str(run.stats.get("kind"))) for name, run in pairs}
    for place, (name, curves) in enumerate(_grouped([(name, decay) for name, _, decay in decays])):
        look = looks[name]
        colour, dash = (3 + place, "solid") if look is None else look[1:]
        series.append(Series(name, *joined(curves), colour, dash))
    return Plot(
        "The moment map along the flows",
        "How fast chains become balanced: at the rate 2 along two of the flows, whatever the chain; along the third at "
        "a rate that its singular values and its depth set.",
        "time",
        "|μ(t)| / |μ(0)|",
        tuple(series),
        y_log=True,
    )


def named(runs: Runs, otherwise: str) -> list[tuple[str, Trajectory]]:
    """Name trajectories: by their keys, or by the flow that they follow."""
    if isinstance(runs, Mapping):
        return [(str(name), run) for name, run in runs.items()]
    return [(_FLOWS[run.stats["kind"]][0] if "kind" in run.stats else otherwise, run) for run in runs]


def joined(curves: Iterable[Curve]) -> Curve:
    """Join curves to one with gaps, so that they share a colour and a name."""
    gap = np.array([np.nan])
    parts = [part for x, y in curves for part in ((gap, gap), (x, y))][1:]
    return tuple(np.concatenate([part[axis] for part in parts]) for axis in (0, 1))  # pyright: ignore[reportReturnType]


def matrices_of(run: Trajectory) -> list[Stack]:
    """List the saved matrices of a trajectory, W_1 first, or X alone: arrays (T, m, n)."""
    leaves: Any = run.params if isinstance(run.params, list | tuple) else [run.params]
    stacks = [np.asarray(leaf) for leaf in leaves if getattr(leaf, "ndim", 0) == 3]
    if not stacks or len(stacks) != len(leaves) or any(len(stack) != len(run.times) for stack in stacks):
        raise ShapeError(
            f"a trajectory with {len(run.times)} times and parameters of shapes {[np.shape(leaf) for leaf in leaves]}",
            "matrices, or chains of them, at each of the times",
            "take runs of `flow`, `fast_slow`, `LearningFlow` or of a `factored` problem, saved at all their times",
        )
    return stacks


def products_of(run: Trajectory) -> Stack:
    """Compute the end-to-end matrix (T, m, n) at all saved times."""
    product, *others = matrices_of(run)
    for W in others:
        product = W @ product
    return product


def _grouped(pairs: Iterable[tuple[str, Curve]]) -> list[tuple[str, list[Curve]]]:
    groups: dict[str, list[Curve]] = {}
    for name, curve in pairs:
        groups.setdefault(name, []).append(curve)
    return list(groups.items())


def _scalars(run: Trajectory) -> Float[np.ndarray, "2 T"]:
    stacks = matrices_of(run)
    if [stack.shape[1:] for stack in stacks] != [(1, 1)] * 2 or any(np.iscomplexobj(stack) for stack in stacks):
        raise ShapeError(
            f"a chain of matrices of shapes {[stack.shape[1:] for stack in stacks]}",
            "two real matrices of shape (1, 1): others do not fit into a plane",
            "look at larger chains by `moment_plot` and `singular_value_plot`",
        )
    return np.stack([stack[:, 0, 0] for stack in stacks]).astype(float)


def _fibre(c: float, end: float) -> list[Curve]:
    """Draw w_2 w_1 = c within [−end, end]²: √|c| (e^s, ±e^{−s}) and its opposite, or two axes."""
    if c == 0:
        axis, zero = np.array([-end, end]), np.zeros(2)
        return [(axis, zero), (zero, axis)]
    root = np.sqrt(abs(c))
    s = np.linspace(-1, 1, _POINTS) * np.log(end / root)
    x, y = root * np.exp(s), np.sign(c) * root * np.exp(-s)
    return [(x, y), (-x, -y)]


def _conserved(G: float, end: float) -> list[Curve]:
    """Draw w_1² − w_2² = G within [−end, end]²: √|G| (cosh s, sinh s), or its mirror image."""
    if G == 0:
        return [(np.array([-end, end]), slope * np.array([-end, end])) for slope in (1, -1)]
    root = np.sqrt(abs(G))
    s = np.linspace(-1, 1, _POINTS) * np.arccosh(end / root)
    x, y = (root * np.cosh(s), root * np.sinh(s))[:: 1 if G > 0 else -1]
    return [(x, y), (-x, -y)]


def _decay(run: Trajectory) -> Curve:
    """Compute |μ(t)|/|μ(0)|."""
    stacks = matrices_of(run)
    if len(stacks) < 2:
        raise ShapeError("a trajectory of one matrix", "chains of two or more", "pass what `flow` returns")
    sizes = np.linalg.norm(observe_chain(stacks)["moment_map"], axis=1)
    return run.times, sizes / (sizes[0] or 1.0)


def _slowest_rate(run: Trajectory) -> float | None:
    """Look up the slowest rate of the squared-moment flow; where the orbit is not closed there is none."""
    start = [stack[0] for stack in matrices_of(run)]
    found = orbit(start)
    if not (found.closed and found.rank):
        return None
    values = found.singular_values[: found.rank]
    return float(squared_moment_rates(values, len(start), [W.shape[0] for W in start[:-1]])[0])
