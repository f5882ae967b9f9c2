"""Factors of the Jacobian itself: QR, and singular values where the rank is not full."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float

from .. import _sharding
from ..trees import PyTree
from ._diagnosis import Outcome, climbed, outcome
from ._differential import Differential
from ._factor import Damped, Factor, Number, Products, largest, start


class DenseFactor(Factor):
    """D or its transpose as Q·R, R square of order n = min(M, K); with R's singular values if D is of lower rank.

    The error of a solve is of order u·κ, u the rounding unit, κ the condition; u·κ(1 + κ|P⊥rhs|/(σ_max|v|)) for an rhs
    out of the range. Building costs 4·max(M, K)·n² operations, and about 20n³ more where singular values are needed;
    each damping about 7n³, or n² with singular values; each rhs a product with Q. Holds max(M, K)·n + 5n² numbers.

    Singular values up to max(M, K)·eps·σ_max count as zero, with damping too. On several devices D is gathered, and
    each of them computes and holds all of this.
    """

    q: Float[Array, "L n"]
    r: Float[Array, "n n"]
    spectrum: tuple[Float[Array, "n n"], Float[Array, " n"], Float[Array, "n n"]]  # of D seen through Q
    sigma_min: Float[Array, ""]
    deficient: Bool[Array, ""]
    spectral: bool = eqx.field(static=True)

    def __init__(
        self, differential: Differential, asked: str, *, spectral: bool = False, products: Products | None = None
    ) -> None:
        self.products = Products(differential) if products is None else products
        self.asked, self.spectral = asked, spectral
        matrix = _sharding.everywhere(differential.jacobian().astype(self.products.dtype), differential.mesh)
        self.q, self.r = jnp.linalg.qr(matrix.T if self.wide else matrix)
        n = self.r.shape[0]

        def decompose() -> Any:
            return tuple(jnp.linalg.svd(self.square))

        if spectral:
            self.spectrum, self.deficient = decompose(), jnp.ones((), bool)
            self.sigma_max, self.sigma_min = self.spectrum[1][0], self.spectrum[1][-1]
            return
        vector = start(n, matrix.dtype)
        self.sigma_max = jnp.sqrt(largest(lambda x: self.r.T @ (self.r @ x), vector))
        inverse = largest(lambda x: solve_triangular(self.r, solve_triangular(self.r, x, trans=1)), vector)
        # A zero on R's diagonal makes the inverse infinite, or not a number.
        self.sigma_min = jnp.where(jnp.isfinite(inverse), jax.lax.rsqrt(inverse), 0)
        self.deficient = self.sigma_min <= self.default_rtol * self.sigma_max
        zeros = (jnp.zeros((n, n), matrix.dtype), jnp.zeros(n, matrix.dtype), jnp.zeros((n, n), matrix.dtype))
        self.spectrum = jax.lax.cond(self.deficient, decompose, lambda: zeros)

    @property
    def wide(self) -> bool:
        """Whether there are fewer outputs than parameters."""
        return self.differential.shape[0] < self.differential.shape[1]

    @property
    def square(self) -> Float[Array, "n n"]:
        """D seen through Q: D = S·Qᵀ if it is wide, else D = Q·S."""
        return self.r.T if self.wide else self.r

    @property
    def default_rtol(self) -> float:
        """Singular values up to this part of the largest are zero but for rounding."""
        return max(self.differential.shape) * self.products.eps

    def at(self, damping: Number = 0.0, rtol: float | None = None) -> "DampedDense":
        """Triangularise (S; √λ I), unless singular values are at hand."""
        damping = self.number(damping)
        n = self.r.shape[0]
        zeros = (jnp.zeros((n, n), self.r.dtype), jnp.zeros((n, n), self.r.dtype))
        if self.spectral:
            return DampedDense(damping, self, zeros, rtol)

        def triangularise() -> tuple[Array, Array]:
            q, r = jnp.linalg.qr(jnp.concatenate([self.square, jnp.sqrt(damping) * jnp.eye(n, dtype=self.r.dtype)]))
            return q[:n], r

        ridge = jax.lax.cond(self.deficient | (damping <= 0), lambda: zeros, triangularise)
        return DampedDense(damping, self, ridge, rtol)


class DampedDense(Damped):
    """A `DenseFactor` at one damping."""

    factor: DenseFactor
    ridge: tuple[Float[Array, "n n"], Float[Array, "n n"]]
    rtol: Any

    def outcome(self, rhs: Float[Array, " M"]) -> Outcome:
        """Solve by back substitution, or by singular values."""
        factor = self.factor
        c = rhs if factor.wide else factor.q.T @ rhs

        def by_triangle() -> Outcome:
            def undamped() -> Array:
                return solve_triangular(factor.r, c, trans=1 if factor.wide else 0)

            def damped() -> Array:
                return solve_triangular(self.ridge[1], self.ridge[0].T @ c)

            w = jax.lax.cond(self.damping > 0, damped, undamped)
            sigmas = factor.sigma_max, factor.sigma_min
            return outcome("qr", self._tangent(w), sigmas, rank=c.size)

        if factor.spectral:
            return self._by_spectrum(c)
        return jax.lax.cond(factor.deficient, lambda: climbed(self._by_spectrum(c)), by_triangle)

    def _by_spectrum(self, c: Float[Array, " n"]) -> Outcome:
        u, sigma, vt = self.factor.spectrum
        rtol = self.factor.default_rtol if self.rtol is None else self.rtol
        keep = (sigma > rtol * sigma[0]) & (sigma > 0)
        gains = jnp.where(keep, sigma / jnp.where(keep, sigma**2 + self.damping, 1), 0)
        tangent = self._tangent(vt.T @ (gains * (u.T @ c)))
        rank = jnp.sum(keep)
        return outcome("svd", tangent, (sigma[0], jnp.where(rank > 0, sigma[rank - 1], 0)), rank=rank)

    def _tangent(self, w: Float[Array, " n"]) -> PyTree:
        return self.factor.products.tangent(self.factor.q @ w if self.factor.wide else w)
