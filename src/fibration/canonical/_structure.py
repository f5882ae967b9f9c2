"""What makes a disparity matrix singular, by name: dead and copied units, zero weights, linearity, rescalings."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..trees import PyTree
from ._arguments import epsilon
from ._basis import Basis

# Rows of H are equal, or zero, up to this part of the largest row; in coarse types up to this multiple of rounding.
_SAME, _ROUNDING = 1e-11, 16
# Beyond so many parameters the rescalings are not counted.
_MOST_PARAMETERS = 1500
# Inputs at which a draw of parameters is looked at, and draws that decide whether something holds for all parameters.
_INPUTS, _DRAWS = 8, 6


@dataclass(frozen=True)
class Unit:
    """One slice of an array of parameters: entry `index` of its axis `axis`, of `axes` axes."""

    path: str
    axis: int
    index: int
    axes: int = 2

    def __str__(self) -> str:
        names = {1: ("entry",), 2: ("row", "column")}
        kind = names[self.axes][self.axis] if self.axes in names else f"axis {self.axis}, slice"
        return f"{kind} {self.index} of {self.path or 'the parameters'}"


@dataclass(frozen=True)
class Pair:
    """Two slices of one leaf, number `leaf`, that move the function alike, up to the sign."""

    leaf: int
    axis: int
    first: int
    second: int
    sign: int

    def differs(self, array: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Subtract the second slice, with the sign, from the first; axes after the leaf's own are kept."""
        first, second = (np.take(array, index, self.axis) for index in (self.first, self.second))
        return np.asarray(first - self.sign * second)


def _blocks(state: PyTree, H: Float[np.ndarray, "M C"]) -> list[Float[np.ndarray, "..."]]:
    """Cut the rows of H by leaf, in the leaves' shapes."""
    leaves = jax.tree.leaves(state)
    parts = np.split(H, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return [part.reshape(*leaf.shape, H.shape[1]) for part, leaf in zip(parts, leaves, strict=True)]


def _named(state: PyTree) -> Iterator[tuple[int, str, int, int, bool]]:
    """List number, path, axis and number of axes of every axis of every leaf, and whether it is worth naming.

    Vectors are biases, which say nothing that their matrices do not, unless there are only vectors.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    least = 2 if any(leaf.ndim >= 2 for _, leaf in leaves) else 1
    for number, (path, leaf) in enumerate(leaves):
        for axis in range(leaf.ndim):
            yield number, jax.tree_util.keystr(path), axis, leaf.ndim, leaf.ndim >= least


def _same(state: PyTree) -> float:
    return max(_SAME, _ROUNDING * epsilon(state))


def dead_units(
    state: PyTree, H: Float[np.ndarray, "M C"], again: Callable[[PyTree], Float[np.ndarray, "M C"]]
) -> tuple[Unit, ...]:
    """Find the rows and columns of weight matrices, and slices of kernels, that move no coordinate.

    Behind a weight that is zero and can move, everything is still without being dead: such weights are moved a little,
    and `again` computes H there.
    """
    found = _still(state, H)
    moved = _without_zeros(state, H)
    if found and moved is not None:
        after = set(_still(moved, again(moved)))
        found = [unit for unit in found if unit in after]
    return tuple(found)


def _still(state: PyTree, H: Float[np.ndarray, "M C"]) -> list[Unit]:
    scale, blocks, found = np.abs(H).max(initial=0), _blocks(state, H), []
    for number, path, axis, axes, named in _named(state):
        if named:
            rows = np.moveaxis(np.abs(blocks[number]), axis, 0)
            still = rows.max(axis=tuple(range(1, rows.ndim)), initial=0) <= _same(state) * scale
            if axis == 0 or not still.all():  # of a dead matrix the rows are enough
                found += [Unit(path, axis, int(i), axes) for i in np.flatnonzero(still)]
    return found


def _without_zeros(state: PyTree, H: Float[np.ndarray, "M C"]) -> PyTree | None:
    """Move the parameters that are zero and move the function; `None` if there are none."""
    leaves, structure = jax.tree.flatten(state)
    live = [np.abs(b).max(axis=-1) > _same(state) * np.abs(H).max(initial=0) for b in _blocks(state, H)]
    zero = [live_part & (np.asarray(leaf) == 0) for live_part, leaf in zip(live, leaves, strict=True)]
    if not any(part.any() for part in zero):
        return None
    rng = np.random.default_rng(2)
    noise = [rng.choice([-1, 1], size=leaf.shape) * rng.uniform(0.5, 1, size=leaf.shape) for leaf in leaves]
    moved = [
        jnp.where(part, _size_of(leaf) * drawn, leaf).astype(leaf.dtype)
        for part, drawn, leaf in zip(zero, noise, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def _size_of(leaf: Array) -> float:
    """Give a tenth of the root mean square of an array's entries, or of what a layer of zeros would start from."""
    entries = np.asarray(leaf, float)
    largest = np.abs(entries).max(initial=0)
    usual = 1 / math.sqrt(leaf.shape[-1] if leaf.ndim >= 2 else 1)
    return 0.1 * (float(largest * np.sqrt(np.mean((entries / largest) ** 2))) if largest > 0 else usual)


def alike_pairs(state: PyTree, H: Float[np.ndarray, "M C"]) -> list[Pair]:
    """Find pairs of slices that move the function alike, up to the sign, in every leaf along every axis."""
    scale, same, blocks, found = np.abs(H).max(initial=0), _same(state), _blocks(state, H), []
    for number, _, axis, _, _ in _named(state):
        flat = np.moveaxis(blocks[number], axis, 0).reshape(blocks[number].shape[axis], -1)
        live = np.flatnonzero(np.abs(flat).max(axis=1, initial=0) > same * scale)
        # Equal rows have equal products with one random vector, up to sign: sort by it, and compare neighbours.
        marks = np.abs(flat[live] @ np.random.default_rng(0).normal(size=flat.shape[1]))
        order = live[np.argsort(marks, kind="stable")]
        for i, j in itertools.pairwise(order.tolist()):
            signs = [sign for sign in (1, -1) if np.abs(flat[i] - sign * flat[j]).max() <= same * scale]
            found += [Pair(number, axis, i, j, sign) for sign in signs[:1]]
    return found


def kept_pairs(apply: Any, state: PyTree, constant: PyTree, basis: Basis, pairs: list[Pair]) -> list[Pair]:
    """Pick the pairs that gradient descent keeps alike, for any data and any loss.

    Parameters for which all these pairs are equal, up to their signs, form a subspace. Descent stays in it if gradients
    at all its points lie in it; pairs for which this fails at random points are left out, until it holds for the rest.
    """
    leaves, same = [np.asarray(leaf, float) for leaf in jax.tree.leaves(state)], _same(state)
    kept = [p for p in pairs if np.abs(p.differs(leaves[p.leaf])).max() <= same * np.abs(leaves[p.leaf]).max()]
    decided, number = 0, 0
    while kept and decided < _DRAWS and number < 4 * _DRAWS:
        drawn, x = _draw(state, basis, 3 * number)
        rows = np.asarray(_rows(apply, _tied(drawn, kept), constant, x), float)
        if not np.all(np.isfinite(rows)):
            number += 1
            continue
        blocks, scale = _blocks(state, rows.T), np.abs(rows).max(initial=0)
        equal = [p for p in kept if np.abs(p.differs(blocks[p.leaf])).max() <= 1e2 * same * scale]
        complete = len(equal) == len(kept)
        kept, decided, number = equal, decided + 1 if complete else 0, number + complete
    return kept if decided == _DRAWS else []


def _tied(state: PyTree, pairs: list[Pair]) -> PyTree:
    """Make the pairs equal, up to their signs: one after the other, in the order in which they were found."""
    leaves, structure = jax.tree.flatten(state)
    arrays = [np.array(leaf) for leaf in leaves]
    for p in pairs:
        slices = np.moveaxis(arrays[p.leaf], p.axis, 0)
        slices[p.second] = p.sign * slices[p.first]
    return jax.tree.unflatten(structure, [jnp.asarray(array) for array in arrays])


def as_units(state: PyTree, pairs: list[Pair]) -> tuple[tuple[Unit, Unit, int], ...]:
    """Name pairs: (first, second, ±1)."""
    names = {(number, axis): (path, axes) for number, path, axis, axes, named in _named(state) if named}
    found = []
    for p in pairs:
        if (p.leaf, p.axis) in names:
            path, axes = names[p.leaf, p.axis]
            first, second = (Unit(path, p.axis, index, axes) for index in sorted((p.first, p.second)))
            found.append((first, second, p.sign))
    return tuple(found)


def without_weights(state: PyTree, H: Float[np.ndarray, "M C"], n_outputs: int) -> bool:
    """Tell whether all weights are zero and only constants move: the symmetric saddle.

    Weights are matrices and kernels, and without any the vectors that do not move the function.
    """
    if np.abs(H[:, n_outputs:]).max(initial=0) > _same(state) * np.abs(H).max(initial=0):
        return False
    leaves, blocks = jax.tree.leaves(state), _blocks(state, H)
    weights = [leaf for leaf in leaves if leaf.ndim >= 2]
    weights = weights or [leaf for leaf, b in zip(leaves, blocks, strict=True) if leaf.ndim == 1 and not np.any(b)]
    return bool(weights) and all(not np.any(np.asarray(leaf)) for leaf in weights)


def linear_in_inputs(apply: Any, state: PyTree, constant: PyTree, basis: Basis) -> bool:
    """Tell whether the network is affine in its inputs for all parameters, as a deep linear one is.

    What three points of a line differ by is compared with the rounding of these values, which derivatives tell.
    """
    decided, rng = 0, np.random.default_rng(3)
    for number in range(_DRAWS):
        drawn, x = _draw(state, basis, number)
        # A steeper one, too: what is nearly affine at the parameters given bends there.
        drawn = jax.tree.map(lambda leaf, n=number: jnp.asarray(4.0 ** (n // 3) * np.asarray(leaf), leaf.dtype), drawn)
        x, y = x[: _INPUTS // 2], x[_INPUTS // 2 :]
        points = jnp.concatenate([x, y, (x + y) / 2])
        changes = jax.tree.map(lambda v, r=rng: jnp.asarray(v * r.normal(size=v.shape), v.dtype), (drawn, points))
        values, rounding = _with_rounding(apply, drawn, constant, points, changes)
        first, last, middle = np.split(np.asarray(values, float), 3)
        bend = np.abs(middle - (first + last) / 2).max()
        if np.isfinite(bend):
            decided += 1
            if bend > 1e2 * epsilon(state, values) * float(rounding):
                return False
    return decided > 0


@eqx.filter_jit
def _with_rounding(
    apply: Any, state: PyTree, constant: PyTree, x: Float[Array, "n ..."], changes: PyTree
) -> tuple[Float[Array, "n Q"], Float[Array, ""]]:
    """Compute outputs, and the size of these and of how changes of parameters and inputs move them."""

    def outputs(state: PyTree, x: Array) -> Array:
        return jax.vmap(lambda one: jnp.atleast_1d(apply(eqx.combine(state, constant), one)))(x)

    values, moved = jax.jvp(outputs, (state, x), changes)
    return values, jnp.max(jnp.abs(values)) + jnp.max(jnp.abs(moved))


def n_rescalings(apply: Any, state: PyTree, constant: PyTree, basis: Basis) -> int | None:
    """Count the independent ways to rescale parameters that no function feels, such as one for each ReLU unit.

    They are the common kernel of J(W) diag(W) over random parameters W, J the differential of the outputs at random
    inputs: a few inputs at more W's than there are parameters. Parameters that nothing uses count too. `None` beyond
    1500 parameters, since it takes M³ operations, and where no W gives numbers.
    """
    m = sum(leaf.size for leaf in jax.tree.leaves(state))
    if m > _MOST_PARAMETERS:
        return None
    wanted, parts = m // 2 + 16, []
    for number in range(4 * wanted):
        drawn, x = _draw(state, basis, number)
        rows = np.asarray(_rows(apply, drawn, constant, x), float) * np.asarray(ravel_pytree(drawn)[0], float)
        size = np.abs(rows).max(initial=0)
        if math.isfinite(size):
            parts.append(rows / size if size > 0 else rows)
        if len(parts) == wanted:
            break
    if not parts:
        return None
    sigma = np.linalg.svd(np.linalg.qr(np.concatenate(parts), mode="r"), compute_uv=False)
    return m - int(np.sum(sigma > max(1e-9, 1e3 * epsilon(state)) * sigma[0]))


@eqx.filter_jit
def _rows(apply: Any, state: PyTree, constant: PyTree, x: Float[Array, "n ..."]) -> Float[Array, "nQ M"]:
    """Compute the derivatives of the outputs at some inputs with respect to all parameters."""
    vector, unravel = ravel_pytree(state)

    def outputs(vector: Array) -> Array:
        tree = eqx.combine(unravel(vector), constant)
        return jax.vmap(lambda point: jnp.atleast_1d(apply(tree, point)))(x).reshape(-1)

    return jax.jacrev(outputs)(vector)


def _draw(state: PyTree, basis: Basis, number: int) -> tuple[PyTree, Float[Array, "n ..."]]:
    """Draw parameters and inputs, in turn of three kinds, since what holds for all of them need not show everywhere.

    The parameters given times e^{N/2}, signs kept, with noise for zeros, at inputs in the box: there a function is used
    and defined. The same with random signs, and entries of order one over the root of a matrix's columns, both at
    standard normal inputs: there nothing is saturated or switched off.
    """
    rng, kind = np.random.default_rng(number), number % 3
    uniform = rng.uniform(size=(_INPUTS, basis.dimension))
    x = basis.from_unit(jnp.asarray(uniform)) if kind == 0 else jnp.asarray(rng.normal(size=(_INPUTS, *basis.shape)))

    def one(leaf: Array) -> Array:
        normal = rng.normal(size=leaf.shape)
        if kind == 2:
            return jnp.asarray(2 * normal / math.sqrt(leaf.shape[-1] if leaf.ndim >= 2 else 1), leaf.dtype)
        own = np.asarray(leaf, float)
        own = np.where(own == 0, _size_of(leaf) * normal, own * np.exp(normal / 2))
        return jnp.asarray(own if kind == 0 else own * rng.choice([-1, 1], size=leaf.shape), leaf.dtype)

    return jax.tree.map(one, state), x
