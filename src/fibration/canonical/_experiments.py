"""Experiments: how often the disparity is singular, where the cost is convex, which frequencies come first."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _validation, trees
from ..errors import ParameterError
from ..problem import AbstractProblem
from ..trees import PyTree
from ._basis import Basis
from ._coordinates import coordinates
from ._disparity import disparity
from ._projected import projected_cost, single
from ._quadrature import PiecewiseRule, least_nodes

if TYPE_CHECKING:
    import xarray as xr

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": lambda z: jnp.maximum(z, 0),
    "sin": jnp.sin,
}
_LEVELS = {"eps": None, "1e-08": 1e-8, "1e-04": 1e-4}
# Units of this spread bend within the unit interval; beyond it Gauss nodes are added.
_STEEP = 12


def relu_singularity(width: int, size: int) -> float:
    """Compute the probability that the disparity of a ReLU layer of one input is singular, exactly.

    **Arguments:** `width` m: units σ(ux + c) with u, c independent standard normal, on the unit interval; `size`: K.

    P = P(1 + 2p + [a unit is active everywhere] < K) with p ~ Bin(m, ¼) kinks inside, and, given p, probability
    1 − 2^{−(m−p)} that one of the others is active.

    **Source:** derived.

    ```python
    >>> import fibration as fb
    >>> print(f"{fb.canonical.relu_singularity(16, 10):.4f}")
    0.4050

    ```
    """
    total = 0.0
    for p in range(width + 1):
        chance = math.comb(width, p) * 0.25**p * 0.75 ** (width - p)
        none = 0.5 ** (width - p)
        total += chance * ((1 + 2 * p < size) * none + (2 + 2 * p < size) * (1 - none))
    return total


def singularity_probability(
    widths: Sequence[int],
    seeds: int = 20,
    *,
    degree: int = 15,
    scales: Sequence[float] = (1.0, 8.0),
    activations: Sequence[str] = ("tanh", "relu"),
    seed: int = 0,
) -> "xr.Dataset":
    """Count how often the disparity matrix of a random shallow network of one input is numerically singular.

    **Arguments:** `widths`; `seeds`: networks for each; `degree`: R, K = R + 1 modes on [0, 1]; `scales`: of the first
    layer: at 1, u and c are independent standard normal; at another s, u = s·N(0, 1) and the centre −c/u is uniform in
    [0, 1]; `activations`: of "tanh", "relu", "sin".

    **Returns:** a Dataset over (activation, scale, width): `fraction` of the singular ones at each `level` of
    {max(M, K)·eps, 1e-8, 1e-4}·σ_max, `median_ratio` of σ_min/σ_max, `parameters` M(width), and `relu_law` (width), the
    exact probability for ReLU at scale 1.

    A fraction at a tolerance is about float64, and not about the theorem: for analytic activations and width ≥ K the
    exact probability is zero or one.

    **Raises:** `UnknownNameError`, `ParameterError`. One compilation for each activation and width; M·K numbers for
    each network, one at a time.

    ```python
    >>> import fibration as fb
    >>> found = fb.canonical.singularity_probability([4], seeds=2, degree=15, scales=[1.0], activations=["relu"])
    >>> found.fraction.values.ravel()
    array([1., 1., 1.])

    ```
    """
    import xarray as xr

    for name in activations:
        _validation.check_name("activations", name, tuple(ACTIVATIONS))
    if seeds < 1 or not len(widths) or min(widths) < 1 or min(scales) <= 0:
        raise ParameterError(
            f"widths = {list(widths)}, seeds = {seeds}, scales = {list(scales)}",
            "widths and seeds of at least 1, positive scales",
            "pass lists of positive numbers",
        )
    basis = Basis((0, 1), degree)
    shape = (len(activations), len(scales), len(widths))
    fraction, ratio = np.zeros((*shape, 3)), np.zeros(shape)
    for (i, activation), (j, scale), (k, width) in _grid(activations, scales, widths):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1000 * j + k), seeds)
        ratios = np.zeros(seeds)
        for number, key in enumerate(keys):
            sigma = np.asarray(_shallow_spectrum(key, width, scale, activation, basis))
            ratios[number] = sigma[degree] / sigma[0] if len(sigma) > degree else 0.0
        floor = max(3 * width + 1, basis.size) * np.finfo(float).eps
        fraction[i, j, k] = [np.mean(ratios <= (floor if level is None else level)) for level in _LEVELS.values()]
        ratio[i, j, k] = np.median(ratios)
    dimensions = ("activation", "scale", "width")
    return xr.Dataset(
        {
            "fraction": ((*dimensions, "level"), fraction),
            "median_ratio": (dimensions, ratio),
            "parameters": ("width", [3 * width + 1 for width in widths]),
            "relu_law": ("width", [relu_singularity(width, basis.size) for width in widths]),
        },
        coords={
            "activation": list(activations),
            "scale": list(scales),
            "width": list(widths),
            "level": list(_LEVELS),
        },
        attrs={"modes": basis.size, "seeds": seeds},
    )


def _grid(*axes: Sequence[Any]) -> list[tuple[tuple[int, Any], ...]]:
    return list(itertools.product(*[list(enumerate(axis)) for axis in axes]))


@jax.jit(static_argnums=(1, 3, 4))
def _shallow_spectrum(key: Array, width: int, scale: Any, activation: str, basis: Basis) -> Float[Array, " r"]:
    first, second, third = jax.random.split(key, 3)
    draws = jax.random.normal(first, (width,), float)
    u = scale * draws
    c = jnp.where(
        scale == 1, jax.random.normal(second, (width,), float), -u * jax.random.uniform(second, (width,), float)
    )
    a = jax.random.normal(third, (width,), float) / math.sqrt(width)
    kinks = jnp.sort(jnp.clip(-c / u, 0, 1)) if activation == "relu" else jnp.linspace(0, 1, 2 + _STEEP)[1:-1]
    n = least_nodes(basis.degree, "cosine")
    rule = PiecewiseRule(basis, jnp.concatenate([jnp.zeros(1), kinks, jnp.ones(1)]), n)
    x, table = rule.nodes, basis.evaluate_unit(rule.nodes) * rule.weights[:, None]
    values, slopes = jax.jvp(ACTIVATIONS[activation], (x * u + c,), (jnp.ones((len(x), width)),))
    rows = jnp.concatenate([a * slopes * x, a * slopes, values, jnp.ones((len(x), 1))], axis=1)
    H = rows.T @ table
    return jnp.linalg.svd(H, compute_uv=False)


def convexity(
    problem: AbstractProblem,
    params: PyTree,
    basis: Basis,
    *,
    lines: int = 8,
    points: int = 41,
    length: float = 2.0,
    seed: int = 0,
) -> "xr.Dataset":
    """Compare the cost along lines in the space of coordinates with the cost along lines in that of the parameters.

    Random lines through θ(w) and through w, of half-length `length`·|θ| and `length`·|w|.

    **Returns:** a Dataset over (line, position): `canonical` and `literal`, costs; and over line `canonical_defect`,
    `literal_defect`: the largest excess of a cost over the chord of its neighbours, over the line's range of costs: 0
    to rounding for a convex function.

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

    problem = single(problem)
    theta = coordinates(problem.apply, params, basis)
    table_cost = jax.jit(jax.vmap(lambda t: projected_cost(problem, t, basis)))
    state_cost = jax.jit(jax.vmap(problem.cost))
    positions = np.linspace(-length, length, points)
    canonical, literal = [], []
    for key in jax.random.split(jax.random.key(seed), lines):
        first, second = jax.random.split(key)
        direction = jax.random.normal(first, theta.shape, theta.dtype)
        direction = direction * jnp.linalg.norm(theta) / jnp.linalg.norm(direction)
        canonical.append(table_cost(theta + positions[:, None, None] * direction))
        step = trees.random_like(second, params)
        step = trees.scale(trees.norm(params) / trees.norm(step), step)
        literal.append(state_cost(jax.vmap(lambda s, step=step: trees.axpy(s, step, params))(jnp.asarray(positions))))
    both = {"canonical": np.stack(canonical), "literal": np.stack(literal)}
    data: dict[str, Any] = {name: (("line", "position"), values) for name, values in both.items()}
    for name, values in both.items():
        excess = values[:, 1:-1] - (values[:, :-2] + values[:, 2:]) / 2
        spread = values.max(axis=1) - values.min(axis=1)
        data[f"{name}_defect"] = ("line", np.maximum(excess.max(axis=1), 0) / spread)
    return xr.Dataset(data, coords={"position": positions})


def settling_times(
    theta: Float[np.ndarray, "T K"], target: Float[np.ndarray, " K"], times: Float[np.ndarray, " T"], part: float = 0.1
) -> Float[np.ndarray, " K"]:
    """Find when each coordinate has come, and stays, within `part` of its first distance from the target.

    **Arguments:** `theta` (T, K) at `times` (T,), such as an `observer(…, coordinates=True)` records; `target` (K,).

    **Returns:** (K,), infinite where it has not.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> times = np.linspace(0.0, 10.0, 101)
    >>> theta = np.exp(-times[:, None] * np.array([1.0, 0.5]))
    >>> fb.canonical.settling_times(theta, np.zeros(2), times)  # log 10 over the rates, on the grid
    array([2.4, 4.7])

    ```
    """
    distance = np.abs(np.asarray(theta) - np.asarray(target))
    away = distance > part * distance[0]
    last = np.where(away.any(axis=0), len(times) - 1 - np.argmax(away[::-1], axis=0), -1)
    times = np.append(np.asarray(times), np.inf)
    return times[last + 1]


def speeds(apply: Any, params: PyTree, basis: Basis) -> Float[np.ndarray, "K Q"]:
    """Compute how fast each coordinate can move by itself: (HᵀH)_kk, in units of σ_max(H)².

    They are no rates: coordinates are coupled. In the lazy regime the right singular vectors of H decay exactly.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis(box=[(0, 1)], degree=1)
    >>> speeds = fb.canonical.speeds(lambda w, x: w[0] + w[1] * x, jnp.zeros(2), basis)
    >>> bool(speeds[0, 0] > speeds[1, 0])  # the constant moves faster than the first cosine
    True

    ```
    """
    H = np.asarray(disparity(apply, params, basis))
    sigma = np.linalg.svd(H, compute_uv=False)[0]
    return (np.sum(H**2, axis=0) / sigma**2).reshape(basis.size, -1)
