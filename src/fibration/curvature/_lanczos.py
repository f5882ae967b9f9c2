"""Thick-restart Lanczos iteration for both ends of a symmetric operator's spectrum, on flat vectors."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Products between two looks at the projected matrix.
_STRIDE = 4


class Pairs(NamedTuple):
    """Approximate eigenpairs of the two ends: first the k smallest, ascending, then the k largest, descending.

    `values`, `residuals` (2, k); `vectors` (2, k, n), of unit norm; `applications` of the operator; `converged`.
    """

    values: Float[Array, "2 k"]
    vectors: Float[Array, "2 k n"]
    residuals: Float[Array, "2 k"]
    applications: Int[Array, ""]
    converged: Bool[Array, ""]


class _Krylov(NamedTuple):
    """The space so far: A V = V T + β v eᵀ, with V the first `size` rows of `basis`, T = `projected`, v the next row.

    `values`, `coefficients`: the eigenpairs of T; `starts`: how often the space was exhausted and begun anew, the
    last time after `started` applications; `dropped`: the sum of the β neglected there.
    """

    basis: Float[Array, "m1 n"]
    projected: Float[Array, "m m"]
    size: Int[Array, ""]
    beta: Float[Array, ""]
    dropped: Float[Array, ""]
    starts: Int[Array, ""]
    started: Int[Array, ""]
    values: Float[Array, " m"]
    coefficients: Float[Array, "m m"]
    applications: Int[Array, ""]
    converged: Bool[Array, ""]


def extreme_pairs(
    operator: Callable[[Array], Array],
    start: Float[Array, " n"],
    noise: Float[Array, " n"],
    *,
    k: int,
    ends: tuple[bool, bool],
    dimension: int,
    tolerance: float | Float[Array, ""],
    at_least: int | Int[Array, ""],
    max_applications: int | Int[Array, ""],
) -> Pairs:
    """Compute the k smallest and the k largest eigenpairs of a symmetric operator on vectors (n,), k ≤ n.

    Thick-restart Lanczos (Wu and Simon, SIAM J. Matrix Anal. Appl. 22, 2000) with full reorthogonalisation: a space of
    `dimension` vectors is compressed to the Ritz vectors at its ends and goes on from there. `ends` says whether the
    smallest and whether the largest must converge, which is to residuals below `tolerance` times the largest Ritz value
    in magnitude, after `at_least` applications. An exhausted space is begun anew with a cyclic shift of `noise`, a
    random unit vector, so that repeated eigenvalues are found. Not-a-number anywhere ends the iteration.

    Allocates `dimension` + 1 vectors, and half as many while it compresses.
    """
    dtype, n = start.dtype, start.size
    negligible = jnp.finfo(dtype).eps ** 0.75
    dimension = min(dimension, n)
    kept = _kept(dimension, k, ends)
    needed = jnp.minimum(n, jnp.maximum(at_least, sum(ends) * k))

    def normalised(vector: Array) -> Array:
        return vector / jnp.maximum(jnp.linalg.norm(vector), jnp.finfo(dtype).tiny)

    def extend(_: Array, space: _Krylov) -> _Krylov:
        basis, j = space.basis, space.size
        image = operator(basis[j])
        height = jnp.linalg.norm(image)
        row = basis @ image
        rest = image - row @ basis
        correction = basis @ rest  # twice is enough (Kahan, Parlett)
        rest, row = rest - correction @ basis, (row + correction)[:dimension]
        projected = space.projected.at[j, :].set(row).at[:, j].set(row)
        beta = jnp.linalg.norm(rest)
        exhausted = beta <= negligible * jnp.maximum(height, jnp.max(jnp.abs(projected)))

        def fresh() -> Array:
            direction = jnp.roll(noise, 1 + space.applications)
            for _ in range(2):
                direction = direction - (basis @ direction) @ basis
            # What is left of noise in a whole space is rounding, no direction.
            return jnp.where(jnp.linalg.norm(direction) > negligible, normalised(direction), 0)

        return space._replace(
            basis=basis.at[j + 1].set(jax.lax.cond(exhausted, fresh, lambda: normalised(rest))),
            projected=projected,
            size=j + 1,
            beta=beta,
            dropped=space.dropped + jnp.where(exhausted, beta, 0),
            starts=space.starts + exhausted,
            started=jnp.where(exhausted, space.applications, space.started),
            applications=space.applications + 1,
        )

    def compressed(space: _Krylov) -> _Krylov:
        low, high = kept
        chosen = jnp.concatenate([jnp.arange(low), jnp.arange(dimension - high, dimension)])
        ritz = space.coefficients[:, chosen].T @ space.basis[:-1]
        basis = jnp.zeros_like(space.basis).at[: low + high].set(ritz).at[low + high].set(space.basis[-1])
        projected = jnp.zeros_like(space.projected).at[: low + high, : low + high].set(jnp.diag(space.values[chosen]))
        return space._replace(basis=basis, projected=projected, size=jnp.asarray(low + high))

    def advanced(space: _Krylov) -> _Krylov:
        if dimension < n:  # a whole space is final
            space = jax.lax.cond(space.size >= dimension, compressed, lambda s: s, space)
        stride = jnp.maximum(_STRIDE, needed - space.applications)
        stride = jnp.minimum(stride, max_applications - space.applications)
        target = jnp.minimum(space.size + stride, dimension)
        space = jax.lax.fori_loop(space.size, target, extend, space)
        # Rows that are not filled yet get eigenvalues above all others, and no part in the others' eigenvectors.
        used = jnp.arange(dimension) < space.size
        above = 1 + 1.5 * jnp.max(jnp.sum(jnp.abs(space.projected), axis=1))
        values, coefficients = jnp.linalg.eigh(jnp.where(jnp.diag(~used), above, space.projected))
        space = space._replace(values=values, coefficients=coefficients)
        _, residuals, scale = _ends_of(space, k)
        small = jnp.all(jnp.where(jnp.array(ends)[:, None], residuals <= tolerance * scale, True))
        # Repeated eigenvalues need as many starts, unless the space turned out too large to be exhausted again.
        seen = (space.starts == 0) | (space.starts >= k) | (space.applications - space.started > dimension)
        converged = (small & seen & (space.applications >= needed)) | (space.size == n)
        return space._replace(converged=converged & jnp.isfinite(scale))

    def unfinished(space: _Krylov) -> Array:
        return ~space.converged & (space.applications < max_applications) & jnp.isfinite(space.beta)

    square, zero = jnp.zeros((dimension, dimension), dtype), jnp.zeros((), int)
    space = _Krylov(
        basis=jnp.zeros((dimension + 1, n), dtype).at[0].set(normalised(start)),
        projected=square,
        size=zero,
        beta=jnp.zeros((), dtype),
        dropped=jnp.zeros((), dtype),
        starts=zero,
        started=zero,
        values=jnp.zeros(dimension, dtype),
        coefficients=square,
        applications=zero,
        converged=jnp.asarray(False),
    )
    space = jax.lax.while_loop(unfinished, advanced, space)
    where, residuals, _ = _ends_of(space, k)
    vectors = space.coefficients[:, where.ravel()].T @ space.basis[:-1]
    vectors = jax.vmap(normalised)(vectors).reshape(2, k, n)
    return Pairs(space.values[where], vectors, residuals, space.applications, space.converged)


def _kept(dimension: int, k: int, ends: tuple[bool, bool]) -> tuple[int, int]:
    """Tell how many Ritz vectors of each end survive a restart: half of the space in all, the wanted ones at least."""
    each = max(k + 1, dimension // (4 if all(ends) else 2))
    return (each if ends[0] else 0, each if ends[1] else 0)


def _ends_of(space: _Krylov, k: int) -> tuple[Array, Array, Array]:
    """Find the positions (2, k) of the ends among the Ritz values, their residuals (2, k), and the spectral norm."""
    where = jnp.stack([jnp.arange(k), space.size - 1 - jnp.arange(k)])
    dimension = len(space.values)
    last = space.coefficients[space.size - 1]
    scale = jnp.max(jnp.where(jnp.arange(dimension) < space.size, jnp.abs(space.values), 0))
    rounding = 10 * jnp.finfo(space.values.dtype).eps * scale
    return where, jnp.abs(space.beta * last[where]) + rounding + space.dropped, scale
