"""What is common to the factors of D: the products with D, and the choice between the factors."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..trees import PyTree
from ._diagnosis import Diagnosis, Outcome
from ._differential import Differential

Number = float | int | Float[Array, ""]


class Products(eqx.Module):
    """The outputs at θ and the products with D and Dᵀ, from one evaluation; it passes in and out of `jax.jit`.

    `dtype` is the type in which the solves compute: that of the outputs, or float32 for shorter ones. `eps` is the
    coarsest rounding unit of the outputs and the parameters.
    """

    differential: Differential
    value: Float[Array, " M"]
    linear: Callable[[PyTree], Float[Array, " M"]]

    def __init__(self, differential: Differential) -> None:
        linearised = differential.linearised()
        self.differential, self.value, self.linear = differential, linearised.value, linearised.jvp

    @property
    def dtype(self) -> Any:
        """The floating-point type in which the solves compute."""
        return jnp.promote_types(self.value.dtype, jnp.float32)

    @property
    def eps(self) -> float:
        """The coarsest rounding unit among the outputs' and the parameters' types."""
        leaves = jax.tree.leaves(self.differential.params)
        return max(float(jnp.finfo(leaf.dtype).eps) for leaf in [self.value, *leaves])

    def jvp(self, tangent: PyTree) -> Float[Array, " M"]:
        """Compute D·tangent, (M,)."""
        return self.linear(tangent).astype(self.dtype)

    def vjp(self, cotangent: Float[Array, " M"]) -> PyTree:
        """Compute Dᵀ·cotangent, a pytree like the parameters."""
        transpose = jax.linear_transpose(self.linear, self.differential.params)
        return transpose(cotangent.astype(self.value.dtype))[0]

    def gram_product(self, z: Float[Array, " M"]) -> Float[Array, " M"]:
        """Compute D Dᵀ z through D."""
        return self.jvp(self.vjp(z))

    def tangent(self, vector: Float[Array, " K"]) -> PyTree:
        """Cut a vector of K numbers into a pytree like the parameters, each leaf in its own type."""
        leaves = jax.tree.leaves(self.differential.params)
        return self.differential.unravel(vector.astype(jnp.result_type(*leaves)))


class Damped(eqx.Module):
    """A factor of D at one damping λ: `solve` maps rhs (M,) to Dᵀ(DDᵀ + λI)⁻¹ rhs, at the cost of products alone."""

    damping: Float[Array, ""]

    def solve(self, rhs: Float[Array, " M"]) -> PyTree:
        """Compute Dᵀ(DDᵀ + λI)⁻¹ rhs = (DᵀD + λI)⁻¹Dᵀ rhs; D⁺ rhs for λ = 0."""
        return self.outcome(rhs).tangent

    @abstractmethod
    def outcome(self, rhs: Float[Array, " M"]) -> Outcome:
        """Solve, and say what was found out."""


class Factor(eqx.Module):
    """A factorisation of D at θ that solves for many right-hand sides and dampings; made by `factorize`.

    `sigma_max` is D's largest singular value: exact for `svd` and `eigh`, otherwise from 12 Lanczos steps, which fall
    short of it by a per cent or so, and never exceed it but for rounding. `value` (M,) holds the
    outputs at θ; `jvp` and `vjp` share its evaluation.
    """

    products: Products
    sigma_max: Float[Array, ""]
    asked: str = eqx.field(static=True)

    @property
    def differential(self) -> Differential:
        """The differential that was factorised."""
        return self.products.differential

    @property
    def value(self) -> Float[Array, " M"]:
        """The outputs at θ, (M,)."""
        return self.products.value

    def jvp(self, tangent: PyTree) -> Float[Array, " M"]:
        """Compute D·tangent, (M,)."""
        return self.products.jvp(tangent)

    def vjp(self, cotangent: Float[Array, " M"]) -> PyTree:
        """Compute Dᵀ·cotangent, a pytree like the parameters."""
        return self.products.vjp(cotangent)

    @abstractmethod
    def at(self, damping: Number = 0.0, rtol: float | None = None) -> Damped:
        """Do what depends on the damping alone, once for many right-hand sides."""

    def solve(self, rhs: Float[Array, " M"], damping: Number = 0.0) -> PyTree:
        """Compute Dᵀ(DDᵀ + λI)⁻¹ rhs; `at(damping).solve(rhs)` shares the work between several rhs."""
        return self.at(damping).solve(rhs.astype(self.products.dtype))

    def diagnosed(
        self, rhs: Float[Array, " M"], damping: Number = 0.0, rtol: float | None = None
    ) -> tuple[PyTree, Diagnosis]:
        """Solve, and diagnose the solve; one more product with D."""
        rhs = rhs.astype(self.products.dtype)
        damped = self.at(damping, rtol)
        facts = damped.outcome(rhs)
        # In units of the largest entry, whose square neither overflows nor underflows.
        unit = jnp.max(jnp.abs(rhs), initial=0)
        unit = jnp.where(unit > 0, unit, 1)
        scale, miss = jnp.linalg.norm(rhs / unit), jnp.linalg.norm((self.jvp(facts.tangent) - rhs) / unit)
        residual = jnp.where(scale > 0, miss / jnp.where(scale > 0, scale, 1), miss)
        needed, columns = self.differential.shape
        info = Diagnosis(
            facts.rank,
            facts.sigma_max,
            facts.sigma_min,
            residual,
            damped.damping,
            facts.iterations,
            facts.code,
            facts.flags,
            needed,
            columns,
            self.asked,
        )
        return facts.tangent, info

    def number(self, damping: Number) -> Float[Array, ""]:
        """Make the damping an array of the type of the solves."""
        return jnp.asarray(damping, self.products.dtype)


def start(size: int, dtype: Any) -> Float[Array, " size"]:
    """Give the same random unit vector every time, so that results repeat."""
    vector = jax.random.normal(jax.random.key(20231), (size,), dtype)
    return vector / jnp.linalg.norm(vector)


def largest(apply: Callable[[Array], Array], vector: Float[Array, " n"], steps: int = 12) -> Float[Array, ""]:
    """Estimate the largest eigenvalue of a positive semi-definite map from below, by so many Lanczos steps.

    Not finite if the map is not.
    """
    steps = min(steps, vector.size)

    def step(j: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        basis, projected = state
        image = apply(basis[j])
        coefficients = basis @ image  # of every vector so far; the rows not yet reached are zero
        rest = image - coefficients @ basis
        rest = rest - (basis @ rest) @ basis
        # Eigenvalues are squares already: in units of the largest entry their squares do not overflow.
        unit = jnp.max(jnp.abs(image))
        rest = rest / jnp.where(unit > 0, unit, 1)
        size = jnp.linalg.norm(rest)
        # An exhausted space leaves rounding alone.
        follows = size > jnp.finfo(vector.dtype).eps * jnp.linalg.norm(image / jnp.where(unit > 0, unit, 1))
        basis = basis.at[j + 1].set(jnp.where(follows, rest / jnp.where(follows, size, 1), 0))
        return basis, projected.at[j].set(coefficients)

    shape = (steps + 1, vector.size)
    basis = jnp.zeros(shape, vector.dtype).at[0].set(vector)
    projected = jnp.zeros((steps, steps + 1), vector.dtype)
    projected = jax.lax.fori_loop(0, steps, step, (basis, projected))[1][:, :steps]
    finite = jnp.all(jnp.isfinite(projected))
    lower = jnp.where(finite, projected, 0)
    values = jnp.linalg.eigvalsh(lower + jnp.tril(lower, -1).T)
    return jnp.where(finite, jnp.maximum(values[-1], 0), jnp.nan)
