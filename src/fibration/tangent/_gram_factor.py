"""Factors of the Gram matrix DDᵀ and of DᵀD, which square the condition, refined through D, which takes that back."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Bool, Float, Int

from .. import _sharding
from ..trees import PyTree
from ._dense import DenseFactor
from ._diagnosis import UNKNOWN, Outcome, climbed, outcome
from ._differential import Differential
from ._factor import Damped, Factor, Number, Products, largest, start
from ._krylov import conjugate_gradients

# A refinement ends when it no longer halves the residual; what is left must be rounding, this many units at most.
_REFINEMENTS, _ROUNDING = 10, 100
_CONJUGATE_ITERATIONS = 200

# What a rung found, and whether it may stand.
Rung = tuple[Outcome, Bool[Array, ""]]


class GramFactor(Factor):
    """The Gram matrix G = DDᵀ (M, M); each damping is one Cholesky factorisation of G + λI, M³/3 operations.

    `ladder` names the rungs that a solve climbs until the residual, measured through D, is at rounding level:

    - `cholesky`: error u·κ², accepted as long as the factorisation does not break down.
    - `refined`: ζ = (G + λ)⁻¹(rhs − Dv − λz), z ← z + ζ, v ← v + Dᵀζ until the residual stands still; error u·κ for κ
      up to about ½u^{-½}.
    - `pcg`: conjugate gradients on D(Dᵀ·) + λ, preconditioned by G + λ + 10u·tr G; error u·κ up to κ ≈ 1/(10u).
    - `dense`: QR, and singular values if the rank is not full, of the Jacobian.
    - `eigh`: singular values down to √(M·eps)·σ_max; smaller ones count as zero.

    κ² is (σ_max² + λ)/(σ_min² + λ). Holds M² numbers, and M² more at a damping; each rhs costs a few products with G's
    factor and with D. On d devices each holds M²/d numbers of G; a Cholesky factorisation, or eigenvectors, need all of
    it, so that G is gathered and the M² numbers of the factor are held by every device.
    """

    gram: Float[Array, "M M"]
    spectrum: tuple[Float[Array, " M"], Float[Array, "M M"]] | None  # eigenvalues, ascending, and vectors
    ladder: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, differential: Differential, asked: str, ladder: tuple[str, ...]) -> None:
        self.products, self.asked, self.ladder = Products(differential), asked, ladder
        self.gram = differential.gram().astype(self.products.dtype)
        self.spectrum = None
        if ladder[0] == "eigh":
            squares, vectors = jnp.linalg.eigh(self.gathered)
            self.spectrum = squares, vectors
            self.sigma_max = jnp.sqrt(jnp.maximum(squares[-1], 0))
        else:
            self.sigma_max = jnp.sqrt(largest(lambda z: self.gram @ z, start(len(self.gram), self.gram.dtype)))

    @property
    def gathered(self) -> Float[Array, "M M"]:
        """The whole Gram matrix on every device."""
        return _sharding.everywhere(self.gram, self.differential.mesh)

    def at(self, damping: Number = 0.0, rtol: float | None = None) -> "DampedGram":
        """Factorise G + λI."""
        damping = self.number(damping)
        if self.ladder[0] == "eigh":
            return DampedGram(damping, self, self.gram, damping, rtol)
        shift = damping
        if self.ladder[0] == "pcg":
            shift = damping + 5 * self.products.eps * jnp.trace(self.gram)
        n, k = self.differential.shape
        cholesky, least = factor_and_least(self.gathered, shift)
        if n > k:  # DDᵀ is singular, whatever rounding made of it
            least = jnp.minimum(least, shift)
        return DampedGram(damping, self, cholesky, least, rtol)


class DampedGram(Damped):
    """A `GramFactor` at one damping: the Cholesky factor of G + λI and an estimate of its least eigenvalue."""

    factor: GramFactor
    cholesky: Float[Array, "M M"]
    least: Float[Array, ""]
    rtol: Any

    def outcome(self, rhs: Float[Array, " M"]) -> Outcome:
        """Climb the ladder until a rung holds; a rung that is not reached costs nothing."""
        rungs = [getattr(self, f"_{name}") for name in self.factor.ladder]
        zero = jax.tree.map(jnp.zeros_like, self.factor.differential.params)
        facts, accepted = rungs[0](rhs, zero)
        if len(rungs) == 1:
            return facts

        # A loop writes over the tangent vector where it lies; branches would hold one each.
        def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
            facts, accepted, number = state
            zero = jax.tree.map(lambda leaf: jnp.where(accepted, leaf, 0), facts.tangent)
            branches = [lambda rung=rung: rung(rhs, zero) for rung in rungs[1:]]
            new, held = jax.lax.switch(number - 1, branches)
            return climbed(new), held, number + 1

        def failed(state: tuple[Any, ...]) -> Array:
            return ~state[1] & (state[2] < len(rungs))

        return jax.lax.while_loop(failed, step, (facts, accepted, jnp.ones((), jnp.int32)))[0]

    @property
    def _largest(self) -> Float[Array, ""]:
        return self.factor.sigma_max**2 + self.damping

    def _sigmas(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        return self.factor.sigma_max, jnp.sqrt(jnp.maximum(self.least - self.damping, 0))

    def _rank(self) -> Int[Array, ""]:
        """M, unless the damping hides the least singular value."""
        seen = self.least - self.damping > self.factor.products.eps * self._largest
        return jnp.where(seen, len(self.cholesky), UNKNOWN)

    @property
    def _tolerance(self) -> float:
        return _ROUNDING * self.factor.products.eps

    def _missing(self, z: Float[Array, " M"], v: PyTree, rhs: Float[Array, " M"]) -> Float[Array, " M"]:
        return rhs - self.factor.jvp(v) - self.damping * z

    def _size(self, z: Float[Array, " M"], v: PyTree, rhs: Float[Array, " M"]) -> Float[Array, ""]:
        """Bound what cancels in the residual: its rounding is of order eps times this."""
        return jnp.linalg.norm(rhs) + self.factor.sigma_max * norm(v) + self.damping * jnp.linalg.norm(z)

    def _clean(self, z: Float[Array, " M"], v: PyTree) -> Bool[Array, ""]:
        """Tell whether the rounding of Dᵀz is small against v: null directions in z are not seen in the residual."""
        eps = self.factor.products.eps
        return self.factor.sigma_max * jnp.linalg.norm(z) * eps <= eps**0.25 * norm(v)

    def _cholesky(self, rhs: Float[Array, " M"], zero: PyTree) -> Rung:
        z = cho_solve((self.cholesky, True), rhs)
        v = jax.tree.map(jnp.add, zero, self.factor.vjp(z))
        small = jnp.linalg.norm(self._missing(z, v, rhs)) <= 1e-3 * self._size(z, v, rhs)
        sound = self.least > self.factor.products.eps * self._largest
        return outcome("cholesky", v, self._sigmas(), rank=self._rank()), small & sound

    def _refined(self, rhs: Float[Array, " M"], zero: PyTree) -> Rung:
        def correct(found: tuple[Array, PyTree], missing: Array) -> tuple[tuple[Array, PyTree], Array]:
            change = cho_solve((self.cholesky, True), missing)
            # Added up in v too: Dᵀz, computed at the end, would carry the rounding of all of z.
            found = found[0] + change, jax.tree.map(jnp.add, found[1], self.factor.vjp(change))
            return found, self._missing(*found, rhs)

        (z, v), missing, count = refine(correct, (jnp.zeros_like(rhs), zero), rhs)
        sound = self.least > 4 * self.factor.products.eps * self._largest
        small = jnp.linalg.norm(missing) <= self._tolerance * self._size(z, v, rhs)
        facts = outcome("refined", v, self._sigmas(), rank=self._rank(), iterations=count)
        return facts, sound & small & self._clean(z, v)

    def _pcg(self, rhs: Float[Array, " M"], zero: PyTree) -> Rung:
        factor, cholesky = self.factor, self.cholesky
        if factor.ladder[0] != "pcg":
            shift = self.damping + 5 * factor.products.eps * jnp.trace(factor.gram)
            cholesky = cho_factor(shifted(factor.gathered, shift), lower=True)[0]

        def precondition(residual: PyTree) -> PyTree:
            return cho_solve((cholesky, True), residual)

        def apply(z: PyTree) -> PyTree:
            return factor.products.gram_product(z) + self.damping * z

        def correct(found: tuple[Any, ...], missing: Array) -> tuple[tuple[Any, ...], Array]:
            z, v, least, total = found
            change = conjugate_gradients(apply, missing, factor.products.eps, _CONJUGATE_ITERATIONS, precondition)
            z, v = z + change.solution, jax.tree.map(jnp.add, v, factor.vjp(change.solution))
            found = z, v, jnp.minimum(least, change.smallest), total + change.iterations
            return found, self._missing(z, v, rhs)

        nothing = jnp.zeros_like(rhs), zero, self._largest, jnp.zeros((), jnp.int32)
        (z, v, least, total), missing, _ = refine(correct, nothing, rhs)
        small = jnp.linalg.norm(missing) <= self._tolerance * self._size(z, v, rhs)
        sigmas = factor.sigma_max, jnp.sqrt(jnp.maximum(least - self.damping, 0))
        facts = outcome("pcg", v, sigmas, rank=UNKNOWN, iterations=total, converged=small)
        return facts, small & self._clean(z, v)

    def _dense(self, rhs: Float[Array, " M"], zero: PyTree) -> Rung:
        del zero
        factor = DenseFactor(self.factor.differential, self.factor.asked, products=self.factor.products)
        return factor.at(self.damping, self.rtol).outcome(rhs), jnp.ones((), bool)

    def _eigh(self, rhs: Float[Array, " M"], zero: PyTree) -> Rung:
        factor = self.factor
        squares, vectors = jnp.linalg.eigh(factor.gathered) if factor.spectrum is None else factor.spectrum
        floor = len(squares) * factor.products.eps
        keep = squares > max(floor, 0.0 if self.rtol is None else self.rtol**2) * jnp.abs(squares[-1])
        gains = jnp.where(keep, 1 / jnp.where(keep, squares + self.damping, 1), 0)

        def invert(missing: Float[Array, " M"]) -> Float[Array, " M"]:
            return vectors @ (gains * (vectors.T @ missing))

        z, v, missing = jnp.zeros_like(rhs), zero, rhs
        for _ in range(3):  # refined through D in the eigenvectors that are kept
            change = invert(missing)
            z, v = z + change, jax.tree.map(jnp.add, v, factor.vjp(change))
            missing = self._missing(z, v, rhs)
        rank = jnp.sum(keep)
        sigmas = jnp.sqrt(jnp.maximum(squares, 0))
        sigma_min = jnp.where(rank > 0, sigmas[jnp.minimum(len(squares) - rank, len(squares) - 1)], 0)
        return outcome("eigh", v, (sigmas[-1], sigma_min), rank=rank), jnp.ones((), bool)


class NormalFactor(Factor):
    """The matrix DᵀD (K, K), for fewer parameters than outputs; each damping is one Cholesky factorisation, K³/3.

    Refined through D as the normal equations' residual Dᵀ(rhs − Dv) − λv: the accuracy of a QR factorisation for κ up
    to about ½u^{-½}; beyond, or for lower rank, the solve goes on to the QR factorisation itself. Forming it costs MK²
    operations and allocates D. On several devices each multiplies its own rows of D, and every one holds DᵀD.
    """

    normal: Float[Array, "K K"]

    def __init__(self, differential: Differential, asked: str) -> None:
        self.products, self.asked = Products(differential), asked
        matrix = differential.jacobian().astype(self.products.dtype)
        self.normal = _sharding.everywhere(matrix.T @ matrix, differential.mesh)
        self.sigma_max = jnp.sqrt(largest(lambda x: self.normal @ x, start(matrix.shape[1], matrix.dtype)))

    def at(self, damping: Number = 0.0, rtol: float | None = None) -> "DampedNormal":
        """Factorise DᵀD + λI."""
        damping = self.number(damping)
        cholesky, least = factor_and_least(self.normal, damping)
        if self.differential.shape[0] < self.differential.shape[1]:
            least = jnp.minimum(least, damping)
        return DampedNormal(damping, self, cholesky, least, rtol)


class DampedNormal(Damped):
    """A `NormalFactor` at one damping."""

    factor: NormalFactor
    cholesky: Float[Array, "K K"]
    least: Float[Array, ""]
    rtol: Any

    def outcome(self, rhs: Float[Array, " M"]) -> Outcome:
        """Solve by refined normal equations, or by the Jacobian's QR factorisation where they break down."""
        factor, eps = self.factor, self.factor.products.eps

        def correct(x: Float[Array, " K"], missing: Float[Array, " K"]) -> tuple[Array, Array]:
            x = x + cho_solve((self.cholesky, True), missing)
            misses = rhs - factor.jvp(factor.products.tangent(x))
            return x, flat(factor.vjp(misses)) - self.damping * x

        whole = flat(factor.vjp(rhs))
        x, missing, count = refine(correct, jnp.zeros_like(whole), whole)
        size = jnp.linalg.norm(x)
        top = factor.sigma_max**2 + self.damping
        level = eps * (factor.sigma_max * jnp.linalg.norm(rhs) + top * size)
        sound = self.least > 4 * eps * top
        accepted = sound & (jnp.linalg.norm(missing) <= _ROUNDING * level)
        seen = self.least - self.damping > eps * top
        sigmas = factor.sigma_max, jnp.sqrt(jnp.maximum(self.least - self.damping, 0))
        rank = jnp.where(seen, len(whole), UNKNOWN)
        facts = outcome("normal", factor.products.tangent(x), sigmas, rank=rank, iterations=count)

        def dense() -> Outcome:
            whole_factor = DenseFactor(factor.differential, factor.asked, products=factor.products)
            return climbed(whole_factor.at(self.damping, self.rtol).outcome(rhs))

        return jax.lax.cond(accepted, lambda: facts, dense)


def shifted(matrix: Float[Array, "n n"], shift: Float[Array, ""]) -> Float[Array, "n n"]:
    """Add a multiple of the identity."""
    return matrix + shift * jnp.eye(len(matrix), dtype=matrix.dtype)


def factor_and_least(matrix: Float[Array, "n n"], shift: Number) -> tuple[Float[Array, "n n"], Float[Array, ""]]:
    """Factorise matrix + shift·I, and estimate its least eigenvalue by inverse iterations; 0 if it breaks down."""
    cholesky = cho_factor(shifted(matrix, jnp.asarray(shift)), lower=True)[0]
    inverse = largest(lambda x: cho_solve((cholesky, True), x), start(len(matrix), matrix.dtype))
    return cholesky, jnp.where(jnp.isfinite(inverse) & (inverse > 0), 1 / inverse, 0)


def refine(
    correct: Callable[[Any, Array], tuple[Any, Array]], nothing: Any, rhs: Array
) -> tuple[Any, Array, Int[Array, ""]]:
    """Correct by the residual until that no longer halves; the last correction is then of the order of rounding.

    **Returns:** the solution, its residual, the number of refinements, one at least.
    """

    def unfinished(state: tuple[Any, ...]) -> Array:
        _, before, after, count = state
        return (after < 0.5 * before) & (count < _REFINEMENTS) & (after > 0)

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        last, _, before, count = state
        last = correct(*last)
        return last, before, jnp.linalg.norm(last[1]), count + 1

    first = correct(nothing, rhs)
    size = jnp.linalg.norm(first[1])
    # The first residual may be larger than rhs: rounding of Dᵀz, which the second solve takes away.
    state = (first, jnp.full_like(size, jnp.inf), size, jnp.zeros((), jnp.int32))
    last, _, _, count = jax.lax.while_loop(unfinished, step, state)
    return *last, count


def flat(tree: PyTree) -> Float[Array, " K"]:
    """Join the leaves in one vector, in the order of `ravel_pytree`."""
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])


def norm(tree: PyTree) -> Float[Array, ""]:
    """Compute |v| without leaving the leaves' types."""
    return jnp.linalg.norm(jnp.stack([jnp.linalg.norm(leaf.reshape(-1)) for leaf in jax.tree.leaves(tree)]))
