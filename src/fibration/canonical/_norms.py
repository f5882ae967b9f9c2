"""Euclidean norms of numbers whose squares may be out of range."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import trees
from ..trees import PyTree


def length(tree: PyTree) -> Float[Array, ""]:
    """Compute the Euclidean norm of a pytree: the largest entry times the norm in units of it."""
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(tree)]))
    return jnp.where(largest > 0, largest * trees.norm(unit(tree, largest)), largest)


def unit(tree: PyTree, size: Array | None = None) -> PyTree:
    """Divide by the norm, or by another size; leave zeros alone."""
    size = length(tree) if size is None else size
    return jax.tree.map(lambda leaf: (leaf / jnp.where(size > 0, size, 1)).astype(leaf.dtype), tree)
