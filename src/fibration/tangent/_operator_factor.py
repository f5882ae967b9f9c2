"""Solves with products alone, where no matrix fits."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..trees import PyTree
from ._diagnosis import UNKNOWN, Outcome, outcome
from ._differential import Differential
from ._factor import Damped, Factor, Number, Products, largest, start
from ._krylov import conjugate_gradients, lsmr


class OperatorFactor(Factor):
    """Nothing but the products with D: every solve is an iteration from zero, one jvp and one vjp each time.

    Every iterate lies in range Dᵀ, so that a truncated solve is still horizontal. `lsmr` reaches D⁺rhs for any rank
    and any rhs. `cg` is conjugate gradients on G z = rhs, or for K < M on DᵀD v = Dᵀrhs: rhs has to be in range D
    in the first case. Both take about ½κ·ln(2/η) iterations for a residual of η, and lose κ² where `lsmr` loses κ.
    Holds a few vectors of M and of K numbers.
    """

    method: str = eqx.field(static=True)
    limit: int = eqx.field(static=True)

    def __init__(self, differential: Differential, asked: str, method: str, iterations: int | None = None) -> None:
        self.products, self.asked, self.method = Products(differential), asked, method
        shape = differential.shape
        self.limit = 10 * min(shape) + 1000 if iterations is None else iterations
        self.sigma_max = jnp.sqrt(largest(self.products.gram_product, start(shape[0], self.products.dtype)))

    def at(self, damping: Number = 0.0, rtol: float | None = None) -> "DampedOperator":
        """Nothing is computed; no singular value is dropped."""
        del rtol
        return DampedOperator(self.number(damping), self)


class DampedOperator(Damped):
    """An `OperatorFactor` at one damping."""

    factor: OperatorFactor

    def outcome(self, rhs: Float[Array, " M"]) -> Outcome:
        """Iterate from zero."""
        factor, products = self.factor, self.factor.products
        least: Array
        if factor.method == "lsmr":
            found = lsmr(products.jvp, products.vjp, rhs, self.damping, products.eps, factor.limit)
            v, least = found.solution, found.smallest**2
        elif factor.differential.shape[0] <= factor.differential.shape[1]:

            def apply(z: PyTree) -> PyTree:
                return products.gram_product(z) + self.damping * z

            found = conjugate_gradients(apply, rhs, products.eps, factor.limit)
            v, least = products.vjp(found.solution), found.smallest
        else:

            def pulled(v: PyTree) -> PyTree:
                return jax.tree.map(
                    lambda image, x: image + self.damping.astype(x.dtype) * x, products.vjp(products.jvp(v)), v
                )

            found = conjugate_gradients(pulled, products.vjp(rhs), products.eps, factor.limit)
            v, least = found.solution, found.smallest.astype(rhs.dtype)
        sigma_min = jnp.minimum(jnp.sqrt(jnp.maximum(least - self.damping, 0)), factor.sigma_max)
        facts = outcome(
            factor.method,
            v,
            (factor.sigma_max, sigma_min),
            rank=UNKNOWN,
            iterations=found.iterations,
            converged=found.converged,
        )
        return facts._replace(
            tangent=jax.tree.map(lambda x, like: x.astype(like.dtype), v, products.differential.params)
        )
