"""Experiments: how often the disparity is singular, where the cost is convex, which frequencies come first."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Array, Float

from .. import _validation, trees
from ..errors import MemoryBudgetError, ParameterError, PrecisionWarning, ShapeError
from ..trees import PyTree
from ._arguments import as_count, as_positive, as_rows, concrete, epsilon
from ._basis import Basis
from ._coordinates import coordinates
from ._disparity import disparity
from ._norms import length as norm
from ._projected import projected_cost, single
from ._quadrature import gauss_legendre, least_nodes

if TYPE_CHECKING:
    import xarray as xr

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": lambda z: jnp.maximum(z, 0),
    "sin": jnp.sin,
}
_LEVELS = {"eps": 0.0, "1e-08": 1e-8, "1e-04": 1e-4}
# Cells of at least so many Gauss nodes, on each of which a unit turns by two at most; and how many of them at most.
_CELLS, _NODES, _MOST_CELLS = 13, 48, 2**16
_MOST_WIDTH = 10**7


def relu_singularity(width: Any, size: Any) -> float:
    """Compute the probability that the disparity of a ReLU layer of one input is singular, exactly.

    **Arguments:** `width` m: units σ(ux + c) with u, c independent standard normal, on the unit interval; `size`: K.

    P = P(1 + 2p + [a unit is active everywhere] < K) with p ~ Bin(m, ¼) kinks inside, and, given p, probability
    1 − 2^{−(m−p)} that one of the others is active.

    **Raises:** `ParameterError`; `MemoryBudgetError` for more than 10⁷ units.

    **Source:** derived.

    ```python
    >>> import fibration as fb
    >>> print(f"{fb.canonical.relu_singularity(16, 10):.4f}")
    0.4050

    ```
    """
    width, size = as_count("width", width), as_count("size", size)
    if width > _MOST_WIDTH:
        raise MemoryBudgetError(f"width = {width}", f"at most {_MOST_WIDTH} units", "take fewer: P is 0 long before")
    p = np.arange(min(width, size // 2) + 1)
    none = 0.5 ** (width - p)
    fails = (1 + 2 * p < size) * none + (2 + 2 * p < size) * (1 - none)
    return float(np.sum(scipy.stats.binom.pmf(p, width, 0.25) * fails))


def singularity_probability(
    widths: Any,
    seeds: Any = 20,
    *,
    degree: Any = 15,
    scales: Any = (1.0, 8.0),
    activations: Any = ("tanh", "relu"),
    seed: Any = 0,
) -> "xr.Dataset":
    """Count how often the disparity matrix of a random shallow network of one input is numerically singular.

    **Arguments:** `widths`; `seeds`: networks for each; `degree`: R, K = R + 1 modes on [0, 1]; `scales`: of the first
    layer: at 1, u and c are independent standard normal; at another s, u = s·N(0, 1) and the centre −c/u is uniform in
    [0, 1]; `activations`: of "tanh", "relu", "sin".

    **Returns:** a Dataset over (activation, scale, width): `fraction` of the singular ones at each `level` of
    {max(M, K)·eps, 1e-8, 1e-4}·σ_max, none below the first, `median_ratio` of σ_min/σ_max, `parameters` M(width), and
    `relu_law` (width), the exact probability for ReLU at scale 1.

    A fraction at a tolerance is about float64, and not about the theorem: for analytic activations and width ≥ K the
    exact probability is zero or one.

    **Raises:** `UnknownNameError`, `ParameterError`; `MemoryBudgetError` for scales above 10⁵, whose steps no rule
    resolves. Warns with `PrecisionWarning` if float32 cannot tell a ratio from zero. One compilation for each
    activation and width; M·K numbers for each network, one at a time.

    ```python
    >>> import fibration as fb
    >>> found = fb.canonical.singularity_probability([4], seeds=2, degree=15, scales=[1.0], activations=["relu"])
    >>> found.fraction.values.ravel()
    array([1., 1., 1.])

    ```
    """
    import xarray as xr

    names = _listed("activations", activations)
    for name in names:
        _validation.check_name("activations", name, tuple(ACTIVATIONS))
    counts = [as_count("a width", width) for width in _listed("widths", widths)]
    factors = [as_positive("a scale", scale) for scale in _listed("scales", scales)]
    seeds, seed, basis = as_count("seeds", seeds), as_count("seed", seed, 0), Basis((0, 1), degree)
    cells = [_cells(scale) for scale in factors]
    eps, lost = epsilon(), 0
    shape = (len(names), len(factors), len(counts))
    fraction, ratio = np.zeros((*shape, 3)), np.zeros(shape)
    for (i, activation), (j, scale), (k, width) in _grid(names, factors, counts):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1000 * j + k), seeds)
        ratios = np.zeros(seeds)
        for number, key in enumerate(keys):
            sigma = np.asarray(_shallow_spectrum(key, width, scale, activation, basis, cells[j]))
            ratios[number] = sigma[basis.degree] / sigma[0] if len(sigma) > basis.degree else 0.0
        floor = max(3 * width + 1, basis.size) * eps
        fraction[i, j, k] = [np.mean(ratios <= max(floor, level)) for level in _LEVELS.values()]
        ratio[i, j, k] = np.median(ratios)
        lost += int(np.sum((ratios > 0) & (ratios <= floor))) if eps > np.finfo(float).eps else 0
    if lost:
        warnings.warn(
            f"float32 cannot tell {lost} of the ratios from zero, and no tolerance is taken below max(M, K)·eps: "
            "enable x64",
            PrecisionWarning,
            stacklevel=2,
        )
    dimensions = ("activation", "scale", "width")
    return xr.Dataset(
        {
            "fraction": ((*dimensions, "level"), fraction),
            "median_ratio": (dimensions, ratio),
            "parameters": ("width", [3 * width + 1 for width in counts]),
            "relu_law": ("width", [relu_singularity(width, basis.size) for width in counts]),
        },
        coords={
            "activation": names,
            "scale": factors,
            "width": counts,
            "level": list(_LEVELS),
        },
        attrs={"modes": basis.size, "seeds": seeds},
    )


def _grid(*axes: Sequence[Any]) -> list[tuple[tuple[int, Any], ...]]:
    return list(itertools.product(*[list(enumerate(axis)) for axis in axes]))


def _listed(name: str, values: Any) -> list[Any]:
    """Make a list of what should be one, and not empty."""
    found = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else []
    if not found:
        raise ParameterError(f"{name} = {values!r}", "a list of at least 1", f"pass {name} as a list")
    return found


def _cells(scale: float) -> int:
    """Tell on how many cells units of this scale are smooth: their poles lie π/(2|u|) off the axis, |u| up to 4·scale.

    **Raises:** `MemoryBudgetError`.
    """
    cells = max(_CELLS, 2 ** math.ceil(math.log2(max(scale, 2) / 2)) if scale > 2 * _CELLS else 0)
    if cells > _MOST_CELLS:
        raise MemoryBudgetError(f"scale = {scale:g}", f"at most {2 * _MOST_CELLS}", "such units are steps: scale down")
    return cells


@jax.jit(static_argnums=(1, 3, 4, 5))
def _shallow_spectrum(
    key: Array, width: int, scale: Any, activation: str, basis: Basis, cells: int
) -> Float[Array, " r"]:
    first, second, third = jax.random.split(key, 3)
    draws = jax.random.normal(first, (width,), float)
    u = scale * draws
    c = jnp.where(
        scale == 1, jax.random.normal(second, (width,), float), -u * jax.random.uniform(second, (width,), float)
    )
    a = jax.random.normal(third, (width,), float) / math.sqrt(width)
    rows = (
        _relu_rows(u, c, basis) if activation == "relu" else _smooth_rows(ACTIVATIONS[activation], u, c, basis, cells)
    )
    slopes_x, slopes, values = rows
    constant = jnp.zeros((1, basis.size)).at[0, 0].set(1)
    H = jnp.concatenate([a[:, None] * slopes_x, a[:, None] * slopes, values, constant])
    return jnp.linalg.svd(H, compute_uv=False)


def _smooth_rows(
    activation: Callable[[Array], Array], u: Array, c: Array, basis: Basis, cells: int
) -> Float[Array, "3 m K"]:
    """Integrate xσ'(ux + c), σ'(ux + c) and σ(ux + c) times each mode over the unit interval, cell by cell."""
    points, weights = gauss_legendre(max(_NODES, least_nodes(basis.degree, "cosine")))

    def step(total: Array, cell: Array) -> tuple[Array, None]:
        x = (cell + jnp.asarray(points)) / cells
        table = basis.evaluate_unit(x[:, None]) * (jnp.asarray(weights) / cells)[:, None]
        values, slopes = jax.jvp(activation, (u[:, None] * x + c[:, None],), (jnp.ones((len(u), len(x))),))
        return total + jnp.stack([slopes * x, slopes, values]) @ table.astype(values.dtype), None

    return jax.lax.scan(step, jnp.zeros((3, len(u), basis.size)), jnp.arange(cells))[0]


def _relu_rows(u: Array, c: Array, basis: Basis) -> Float[Array, "3 m K"]:
    """Integrate the same for ReLU in closed form: ∫x cos πkx and ∫cos πkx over the interval where a unit is active.

    About the middle of the interval, so that little cancels in short ones.
    """
    kink = jnp.clip(-c / u, 0, 1)
    low, high = jnp.where(u > 0, kink, 0), jnp.where(u > 0, 1, kink)
    middle, half, k = ((low + high) / 2)[:, None], ((high - low) / 2)[:, None], jnp.arange(basis.size)
    omega = jnp.pi * jnp.where(k == 0, 1, k)
    turn = omega * half
    m0 = jnp.where(k == 0, 2 * half, 2 * jnp.cos(omega * middle) * jnp.sin(turn) / omega)
    odd = -2 * jnp.sin(omega * middle) * (jnp.sin(turn) - turn * jnp.cos(turn)) / omega**2
    m1 = middle * m0 + jnp.where(k == 0, 0, odd)
    m0, m1 = (jnp.where(k == 0, 1, math.sqrt(2)) * m for m in (m0, m1))
    return jnp.stack([m1, m0, u[:, None] * m1 + c[:, None] * m0])


@concrete
def convexity(
    problem: Any,
    params: PyTree,
    basis: Any,
    *,
    lines: Any = 8,
    points: Any = 41,
    length: Any = 2.0,
    seed: Any = 0,
) -> "xr.Dataset":
    """Compare the cost along lines in the space of coordinates with the cost along lines in that of the parameters.

    Random lines through θ(w) and through w, of half-length `length`·|θ| and `length`·|w|, or `length` if that is zero.

    **Returns:** a Dataset over (line, position): `canonical` and `literal`, costs; and over line `canonical_defect`,
    `literal_defect`: the largest excess of a cost over the chord of its neighbours, over the line's range of costs: 0
    to rounding for a convex function.

    **Raises:** `ApplyError`, `ParameterError`, `NonFiniteDataError`, for fewer than three `points` too.

    **Source:** Jiang, arXiv 1903.02140, for convexity in θ. The coordinates that parameters reach are a curved set: the
    convexity is that of an objective, not of the learning problem.

    ```python
    >>> import jax, jax.numpy as jnp
    >>> import fibration as fb
    >>> apply, params = fb.networks.mlp((1, 8, 1), "tanh", key=jax.random.key(0))
    >>> problem = fb.Problem(apply, jnp.linspace(0, 1, 6)[:, None], jnp.ones((6, 1)))
    >>> found = fb.canonical.convexity(problem, params, fb.canonical.Basis([(0, 1)], degree=4))
    >>> bool(found.canonical_defect.max() < 1e-4 < found.literal_defect.max())
    True

    ```
    """
    import xarray as xr

    problem, lines, points = single(problem), as_count("lines", lines), as_count("points", points, 3)
    length, seed = as_positive("length", length), as_count("seed", seed, 0)
    theta = coordinates(problem.apply, params, basis)
    state, constant = eqx.partition(trees.as_coordinates(params), eqx.is_inexact_array)
    table_cost = jax.jit(jax.vmap(lambda t: projected_cost(problem, t, basis)))
    state_cost = jax.jit(jax.vmap(lambda s: problem.cost(eqx.combine(s, constant))))
    positions = np.linspace(-length, length, points)
    canonical, literal = [], []
    for key in jax.random.split(jax.random.key(seed), lines):
        first, second = jax.random.split(key)
        direction = _of_length_of(theta, jax.random.normal(first, theta.shape, theta.dtype))
        canonical.append(table_cost(theta + positions[:, None, None] * direction))
        step = _of_length_of(state, trees.random_like(second, state))
        literal.append(state_cost(jax.vmap(lambda s, step=step: trees.axpy(s, step, state))(jnp.asarray(positions))))
    both = {"canonical": np.stack(canonical), "literal": np.stack(literal)}
    data: dict[str, Any] = {name: (("line", "position"), values) for name, values in both.items()}
    for name, values in both.items():
        excess = values[:, 1:-1] - (values[:, :-2] + values[:, 2:]) / 2
        spread = values.max(axis=1) - values.min(axis=1)
        data[f"{name}_defect"] = ("line", np.maximum(excess.max(axis=1), 0) / np.where(spread > 0, spread, 1))
    return xr.Dataset(data, coords={"position": positions})


def _of_length_of(tree: PyTree, direction: PyTree) -> PyTree:
    """Give a direction the length of a pytree, or one if that is zero."""
    size = norm(tree)
    return trees.scale(jnp.where(size > 0, size, 1) / norm(direction), direction)


def settling_times(theta: Any, target: Any, times: Any, part: Any = 0.1) -> Float[np.ndarray, " K"]:
    """Find when each coordinate has come, and stays, within `part` of its first distance from the target.

    **Arguments:** `theta` (T, K) at `times` (T,), such as the last K·Q columns that an `observer(…, coordinates=True)`
    records; `target` (K,).

    **Returns:** (K,), infinite where it has not, or is not a number.

    **Raises:** `ShapeError`, `ParameterError`.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> times = np.linspace(0.0, 10.0, 101)
    >>> theta = np.exp(-times[:, None] * np.array([1.0, 0.5]))
    >>> fb.canonical.settling_times(theta, np.zeros(2), times)  # log 10 over the rates, on the grid
    array([2.4, 4.7])

    ```
    """
    rows, when = as_rows("theta", theta, times)
    aim = as_rows("target", [target], [0.0])[0][0]
    if aim.shape != rows.shape[1:]:
        raise ShapeError(
            f"theta has shape {rows.shape} and target {aim.shape}",
            "(T, K) and (K,)",
            "pass one target for each column of theta",
        )
    distance = np.abs(rows - aim)
    away = ~(distance <= as_positive("part", part) * distance[0])  # so that what is not a number is away
    last = np.where(away.any(axis=0), len(when) - 1 - np.argmax(away[::-1], axis=0), -1)
    return np.append(when, np.inf)[last + 1]


@concrete
def speeds(apply: Any, params: PyTree, basis: Any, *, rule: Any = None) -> Float[np.ndarray, "K Q"]:
    """Compute how fast each coordinate can move by itself: (HᵀH)_kk, in units of σ_max(H)², zero if H is.

    They are no rates: coordinates are coupled. In the lazy regime the right singular vectors of H decay exactly.

    **Arguments:** as in `coordinates`.

    **Raises:** `ApplyError`, `ParameterError`, `NonFiniteDataError`, `MemoryBudgetError`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis(box=[(0, 1)], degree=1)
    >>> speeds = fb.canonical.speeds(lambda w, x: w[0] + w[1] * x, jnp.zeros(2), basis)
    >>> bool(speeds[0, 0] > speeds[1, 0])  # the constant moves faster than the first cosine
    True

    ```
    """
    H = np.asarray(disparity(apply, params, basis, rule=rule), float)
    sigma = np.linalg.svd(H, compute_uv=False)[0]
    return np.sum((H / (sigma if sigma > 0 else 1)) ** 2, axis=0).reshape(basis.size, -1)
