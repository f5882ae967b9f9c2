"""The Gram matrix of samples that are divided over devices: each device computes the rows of its own samples."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from .. import _sharding
from ._factors import contract


def assemble_rows(sources: Sequence[Any], mesh: Mesh) -> Float[Array, "M M"]:
    """Fill the matrix by rows, tile by tile; a tile of columns has equally many samples of every device.

    Factors of a tile of columns are gathered and go to every device, those of rows stay where they are. Both halves of
    the matrix are computed, and their mean is symmetric to the last digit.
    """
    strips: list[Array] = []
    for first in sources:
        parts = [_strip(first, second, mesh)[:, : second.n_rows] for second in sources]
        strips.append(jnp.concatenate(parts, axis=1)[: first.n_rows])
    matrix = _sharding.by_rows(jnp.concatenate(strips), mesh)
    return _sharding.by_rows((matrix + matrix.T) / 2, mesh)


def _strip(first: Any, second: Any, mesh: Mesh) -> Float[Array, "M L"]:
    """Compute the rows of one block's samples and the columns of another's, those of repeated samples included."""
    (high, q), (wide, r) = ((source.own, source.block.n_outputs) for source in (first, second))
    shape = (mesh.size, high * q, mesh.size, wide * r)  # device and row, device and column

    def column(number: Array, strip: Array) -> Array:
        theirs = _sharding.everywhere(second.tile(number), mesh)

        def row(other: Array, strip: Array) -> Array:
            tile = contract(first.tile(other), theirs).astype(strip.dtype)
            tile = tile.reshape(mesh.size, first.size * q, mesh.size, second.size * r)
            corner = (0, first.start(other) * q, 0, second.start(number) * r)
            return _sharding.by_rows(jax.lax.dynamic_update_slice(strip, tile, corner), mesh)

        return jax.lax.fori_loop(0, first.count, row, strip)

    strip = _sharding.by_rows(jnp.zeros(shape, first.scales.dtype), mesh)
    return jax.lax.fori_loop(0, second.count, column, strip).reshape(shape[0] * shape[1], -1)
