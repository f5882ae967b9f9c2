"""The spectral radius of a field's linearisation, by power iteration on Jacobian–vector products."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .. import trees
from ..trees import PyTree


class SpectralRadius(NamedTuple):
    """An estimate of the spectral radius, from above, and the direction that the next estimate starts from."""

    radius: Float[Array, ""]
    direction: PyTree

    @classmethod
    def unknown(cls, state: PyTree) -> "SpectralRadius":
        """Make the estimate before the first one: no radius, and a direction without a pattern."""

        def noise(leaf: Array) -> Array:
            # Cheaper to compile than random numbers, and as unlikely to miss the eigenvector.
            phase = jnp.arange(1, leaf.size + 1, dtype=jnp.real(leaf).dtype) ** 2
            return jnp.cos(0.7 * phase).reshape(leaf.shape).astype(leaf.dtype)

        direction = jax.tree.map(noise, state)
        real = jnp.real(jax.tree.leaves(state)[0]).dtype
        return cls(jnp.zeros((), real), trees.scale(1 / trees.norm(direction), direction))


def estimate_radius(
    field: Callable[[PyTree], PyTree], state: PyTree, last: SpectralRadius, most: int = 30
) -> tuple[SpectralRadius, Int[Array, ""]]:
    """Estimate the spectral radius of the field's linearisation at `state`; return it with the products spent.

    Power iteration v ← Jv/|Jv| from the last direction, until |Jv − (v·Jv) v| ≤ 0.03 |Jv| or |Jv| stands still. The
    estimate is 1.05 |v·Jv| + |Jv − (v·Jv) v| and at most 1.2 |Jv|; for a symmetric J some eigenvalue lies within
    |Jv − (v·Jv) v| of v·Jv.
    """

    def unfinished(carry: tuple[Any, ...]) -> Array:
        count, settled = carry[0], carry[1]
        return (count < most) & ~settled

    def iterate(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        count, _, old, _, v = carry
        image = jax.jvp(field, (state,), (v,))[1]
        size = trees.norm(image)
        rayleigh = trees.dot(v, image)
        residual = jnp.sqrt(jnp.maximum(size**2 - rayleigh**2, 0))
        bound = jnp.minimum(1.05 * jnp.abs(rayleigh) + residual, 1.2 * size)
        settled = (residual <= 0.03 * size) | (jnp.abs(size - old) <= 0.005 * size)
        tiny = jnp.finfo(size.dtype).tiny
        new = jax.tree.map(lambda i, x: jnp.where(size > tiny, i / jnp.maximum(size, tiny), x), image, v)
        return count + 1, settled | (size <= tiny), size, bound, new

    zero = jnp.zeros((), jnp.result_type(int))
    nothing = jnp.zeros_like(last.radius)
    count, _, _, bound, v = jax.lax.while_loop(
        unfinished, iterate, (zero, jnp.asarray(False), nothing, nothing, last.direction)
    )
    return SpectralRadius(bound.astype(last.radius.dtype), v), count
