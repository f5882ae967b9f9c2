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
from ._basis import Basis

# Rows of H are equal, or zero, up to this part of the largest row.
_SAME = 1e-11
# Beyond so many parameters the rescalings are not counted.
_MOST_PARAMETERS = 1500


@dataclass(frozen=True)
class Unit:
    """One slice of a matrix of parameters: entry `index` of its axis `axis`."""

    path: str
    axis: int
    index: int

    def __str__(self) -> str:
        return f"{'row' if self.axis == 0 else 'column'} {self.index} of {self.path or 'the parameters'}"


def _slices(params: PyTree, H: Float[np.ndarray, "M C"]) -> Iterator[tuple[str, int, Float[np.ndarray, "n r C"]]]:
    """Cut H's rows by matrix of parameters and axis: unit, other entries of it, columns of H."""
    start = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        block = H[start : start + leaf.size].reshape(*leaf.shape, H.shape[1])
        start += leaf.size
        if leaf.ndim == 2:
            name = jax.tree_util.keystr(path)
            yield name, 0, block
            yield name, 1, block.swapaxes(0, 1)


def dead_units(params: PyTree, H: Float[np.ndarray, "M C"]) -> tuple[Unit, ...]:
    """Find the rows and columns of weight matrices that move no coordinate."""
    scale = np.abs(H).max(initial=0)
    found = []
    for path, axis, block in _slices(params, H):
        still = np.abs(block).max(axis=(1, 2), initial=0) <= _SAME * scale
        if axis == 0 or not still.all():  # of a dead matrix the rows are enough
            found += [Unit(path, axis, int(i)) for i in np.flatnonzero(still)]
    return tuple(found)


def copied_units(params: PyTree, H: Float[np.ndarray, "M C"]) -> tuple[tuple[Unit, Unit, int], ...]:
    """Find pairs of rows, or of columns, of weight matrices that move the function alike: (first, second, ±1).

    Gradient descent keeps exact copies exact copies. Mirrored ones have the sign −1.
    """
    scale = np.abs(H).max(initial=0)
    found = []
    for path, axis, block in _slices(params, H):
        flat = block.reshape(len(block), -1)
        live = np.flatnonzero(np.abs(flat).max(axis=1, initial=0) > _SAME * scale)
        # Equal rows have equal products with one random vector, up to sign: sort by it, and compare neighbours.
        marks = np.abs(flat[live] @ np.random.default_rng(0).normal(size=flat.shape[1]))
        order = live[np.argsort(marks, kind="stable")]
        for i, j in itertools.pairwise(order):
            for sign in (1, -1):
                if np.abs(flat[i] - sign * flat[j]).max() <= _SAME * scale:
                    first, second = sorted((int(i), int(j)))
                    found.append((Unit(path, axis, first), Unit(path, axis, second), sign))
                    break
    return tuple(found)


def without_weights(params: PyTree) -> bool:
    """Tell whether every matrix of parameters is zero: the symmetric saddle, where only the output's bias moves."""
    matrices = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim >= 2]
    return bool(matrices) and all(not np.any(np.asarray(leaf)) for leaf in matrices)


def linear_in_inputs(apply: Any, params: PyTree, basis: Basis) -> bool:
    """Tell whether the network is affine in its inputs for all parameters, as a deep linear one is."""
    rng = np.random.default_rng(0)
    x, y = (basis.from_unit(jnp.asarray(rng.uniform(size=(16, basis.dimension)))) for _ in range(2))
    state, constant = eqx.partition(params, eqx.is_inexact_array)
    for number in range(3):
        drawn = _drawn(state, number)

        def values(points: Array, drawn: PyTree = drawn) -> Array:
            return jax.vmap(lambda one: jnp.atleast_1d(apply(eqx.combine(drawn, constant), one)))(points)

        first, last, middle = values(x), values(y), values((x + y) / 2)
        size = float(jnp.max(jnp.abs(first)) + jnp.max(jnp.abs(last)))
        if float(jnp.max(jnp.abs(middle - (first + last) / 2))) > 1e3 * float(jnp.finfo(first.dtype).eps) * size:
            return False
    return True


def n_rescalings(apply: Any, params: PyTree, basis: Basis) -> int | None:
    """Count the independent ways to rescale parameters that no function feels, such as one for each ReLU unit.

    They are the common kernel of J(W) diag(W) over random parameters W, J the differential of the outputs at random
    inputs: a few inputs at more W's than there are parameters. Parameters that nothing uses count too. `None` beyond
    1500 parameters: it takes M³ operations.
    """
    state, constant = eqx.partition(params, eqx.is_inexact_array)
    m = sum(leaf.size for leaf in jax.tree.leaves(state))
    if m > _MOST_PARAMETERS:
        return None
    rows = _scaled_rows(apply, state, constant, basis, m)
    triangle = np.linalg.qr(rows, mode="r")
    sigma = np.linalg.svd(triangle, compute_uv=False)
    eps = float(np.finfo(sigma.dtype).eps)
    return m - int(np.sum(sigma > max(1e-9, 1e3 * eps) * sigma[0]))


def _scaled_rows(
    apply: Callable[..., Any], state: PyTree, constant: PyTree, basis: Basis, m: int
) -> Float[np.ndarray, "R M"]:
    inputs = 4
    draws = m // 2 + 16
    rng = np.random.default_rng(1)

    @eqx.filter_jit
    def one(vector: Array, x: Array) -> Array:
        unravel = ravel_pytree(state)[1]

        def outputs(vector: Array) -> Array:
            tree = eqx.combine(unravel(vector), constant)
            return jax.vmap(lambda point: jnp.atleast_1d(apply(tree, point)))(x).reshape(-1)

        return jax.jacrev(outputs)(vector) * vector

    points = rng.uniform(size=(draws, inputs, basis.dimension))
    parts = []
    for number in range(draws):
        vector = ravel_pytree(_drawn(state, number))[0]
        part = np.asarray(one(vector, basis.from_unit(jnp.asarray(points[number]))))
        size = np.abs(part).max()
        parts.append(part / size if size > 0 and math.isfinite(size) else np.zeros_like(part))
    return np.concatenate(parts)


def _drawn(state: PyTree, number: int) -> PyTree:
    """Draw parameters with entries of order one over the root of a matrix's columns."""
    leaves, structure = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(number), len(leaves))
    drawn = [
        2 * jax.random.normal(key, leaf.shape, leaf.dtype) / math.sqrt(leaf.shape[-1] if leaf.ndim >= 2 else 1)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)
