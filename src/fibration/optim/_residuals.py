"""Residual maps ρ with the cost C = ½|ρ|², and the factors of their differentials."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Float

from .. import _sharding, trees
from ..problem import AbstractProblem
from ..tangent._differential import Differential, row_scale
from ..tangent._factor import Products, largest, start
from ..tangent._minimum_norm import factorize, fits
from ..trees import PyTree

Vector = Float[Array, " M"]


class Linearised(NamedTuple):
    """What a step needs to know of the residuals at one state.

    `residuals` (M,); `factor`: a `CholeskyFactor`, or one of `tangent`; `sigma_max`: the differential's largest
    singular value, about; `floor`: the least damping that the factor can bear; `size`: a bound of what the residuals
    are a difference of, whose rounding they inherit; `eps`: the coarsest rounding unit at work.
    """

    residuals: Vector
    factor: Any
    sigma_max: Float[Array, ""]
    floor: Float[Array, ""]
    size: Float[Array, ""]
    eps: float


class CholeskyFactor(eqx.Module):
    """JJᵀ, or JᵀJ for fewer parameters than residuals; each damping costs one Cholesky factorisation, n³/3.

    The error of a step is of order u·(σ_max² + λ)/λ, which an acceptance test can make do with: a factorisation that
    breaks down makes a step that is not finite, and is rejected. Holds n² numbers and n² more at a damping. On d
    devices each holds n²/d numbers of JJᵀ; its Cholesky factor, or all of JᵀJ, is held by every device.
    """

    square: Float[Array, "n n"]
    jvp: Callable[[PyTree], Vector]
    vjp: Callable[[Vector], PyTree]
    unravel: Callable[[Vector], PyTree] | None

    def at(self, damping: Float[Array, ""]) -> "DampedCholesky":
        """Factorise the square matrix + λI."""
        shifted = self.square + damping.astype(self.square.dtype) * jnp.eye(len(self.square), dtype=self.square.dtype)
        return DampedCholesky(cho_factor(shifted, lower=True)[0], self)

    def largest(self) -> Float[Array, ""]:
        """Estimate the largest singular value from below, by Lanczos steps."""
        square = largest(lambda x: self.square @ x, start(len(self.square), self.square.dtype))
        return jnp.sqrt(square)


class DampedCholesky(eqx.Module):
    """A `CholeskyFactor` at one damping."""

    cholesky: Float[Array, "n n"]
    factor: CholeskyFactor

    def solve(self, rhs: Vector) -> PyTree:
        """Compute Jᵀ(JJᵀ + λI)⁻¹ rhs = (JᵀJ + λI)⁻¹Jᵀ rhs."""
        if self.factor.unravel is None:
            return self.factor.vjp(cho_solve((self.cholesky, True), rhs))
        return self.factor.unravel(cho_solve((self.cholesky, True), ravel_pytree(self.factor.vjp(rhs))[0]))


class AbstractResiduals(eqx.Module):
    """Residuals ρ as a function of a pytree of floating-point arrays."""

    @abstractmethod
    def __call__(self, state: PyTree) -> Vector:
        """Compute ρ, (M,)."""

    @abstractmethod
    def linearised(self, state: PyTree) -> Linearised:
        """Compute ρ and a factor of its differential."""

    def second(self, state: PyTree, tangent: PyTree) -> Vector:
        """Compute D²ρ[p, p] for a tangent vector p, by forward differentiation twice."""

        def first(point: PyTree) -> Vector:
            return jax.jvp(self, (point,), (tangent,))[1]

        return jax.jvp(first, (state,), (tangent,))[1]


class ProblemResiduals(AbstractResiduals):
    """The residuals √(wᵢ/N)(xᵢ − yᵢ) of a problem whose loss is `SquaredError`."""

    problem: AbstractProblem
    constant: PyTree
    method: str = eqx.field(static=True)

    def _differential(self, state: PyTree) -> Differential:
        return Differential(self.problem, eqx.combine(state, self.constant), scaled=True)

    def __call__(self, state: PyTree) -> Vector:
        """Compute ρ, (M,)."""
        return self.problem.residuals(eqx.combine(state, self.constant))

    def linearised(self, state: PyTree) -> Linearised:
        """Compute ρ and a factor of D; see `fb.tangent.minimum_norm` for the methods."""
        differential = self._differential(state)
        residuals = self(state)
        dtype = jnp.promote_types(residuals.dtype, jnp.float32)
        factor = _factor(differential, self.method)
        eps = _coarsest(dtype, state)
        if isinstance(factor, CholeskyFactor):
            sigma_max, floor = factor.largest(), eps * jnp.trace(factor.square)
        else:
            sigma_max = factor.sigma_max
            floor = (eps * sigma_max) ** 2
        size = jnp.linalg.norm(residuals) + 2 * _norm_of_targets(differential)
        sigma_max, floor, size = (x.astype(dtype) for x in (sigma_max, floor, size))
        return Linearised(residuals.astype(dtype), factor, sigma_max, floor, size, eps)


def _coarsest(dtype: Any, state: PyTree) -> float:
    return max(float(jnp.finfo(each).eps) for each in (dtype, *(leaf.dtype for leaf in jax.tree.leaves(state))))


def _norm_of_targets(differential: Differential) -> Float[Array, ""]:
    squares = [jnp.sum(jnp.square(row_scale(block) * block.targets.reshape(-1))) for block in differential.blocks]
    return jnp.sqrt(jnp.sum(jnp.stack(squares)))


def _factor(differential: Differential, method: str) -> Any:
    """Make the cheapest factor that a damped step can do with, or the one asked for."""
    m, k = differential.shape
    if method != "auto":
        return factorize(differential, method=method)
    if m <= k and fits(differential, m * m):
        products = Products(differential)
        return CholeskyFactor(differential.gram().astype(products.dtype), products.jvp, products.vjp, None)
    if k < m and fits(differential, m * k // _sharding.count(differential.mesh)):
        jacobian = differential.jacobian()
        jacobian = jacobian.astype(jnp.promote_types(jacobian.dtype, jnp.float32))
        return _tall(jacobian, differential.params)
    return factorize(differential, method="lsmr")


def _tall(jacobian: Float[Array, "M K"], params: PyTree) -> CholeskyFactor:
    """Make JᵀJ and the products with J, for M ≥ K."""

    def unravel(vector: Vector) -> PyTree:
        flat, cut = ravel_pytree(params)
        return cut(vector.astype(flat.dtype))

    def jvp(tangent: PyTree) -> Vector:
        return jacobian @ ravel_pytree(tangent)[0].astype(jacobian.dtype)

    return CholeskyFactor(jacobian.T @ jacobian, jvp, lambda rhs: unravel(rhs @ jacobian), unravel)


class FunctionResiduals(AbstractResiduals):
    """The residuals that any function of a pytree returns, as one vector."""

    function: Callable[[PyTree], PyTree]

    def __call__(self, state: PyTree) -> Vector:
        """Compute ρ, (M,)."""
        return ravel_pytree(self.function(state))[0]

    def linearised(self, state: PyTree) -> Linearised:
        """Compute ρ and its Jacobian by the cheaper of forward and reverse differentiation, M·K numbers."""
        residuals, linear = jax.linearize(self, state)
        transpose = jax.linear_transpose(linear, state)
        flat, unravel = ravel_pytree(state)
        m, k = residuals.size, flat.size
        if k < m:
            jacobian = jax.vmap(lambda row: linear(unravel(row)), out_axes=1)(jnp.eye(k, dtype=flat.dtype))
            factor = _tall(jacobian, state)
        else:
            rows = jax.vmap(lambda row: ravel_pytree(transpose(row)[0])[0])(jnp.eye(m, dtype=residuals.dtype))
            factor = CholeskyFactor(rows @ rows.T, linear, lambda rhs: transpose(rhs)[0], None)
        eps = _coarsest(residuals.dtype, state)
        floor = eps * jnp.trace(factor.square)
        # What the residuals are made of is not known; their differential tells how they take the rounding of the state.
        size = jnp.linalg.norm(residuals) + jnp.sqrt(jnp.trace(factor.square)) * trees.norm(state)
        return Linearised(residuals, factor, factor.largest(), floor, size, eps)
