"""One step of the Riemannian Langevin equation, for the end-to-end matrix or for the balanced chain over it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ._entropy import log_coefficients, log_density

_ITERATIONS = 50  # of the chord method; where it needs more, it hardly converges


class Law(NamedTuple):
    """What the equation depends on besides the cost: β, κ and the step size h."""

    beta: Array
    kappa: Array
    step_size: Array


class State(NamedTuple):
    """A matrix X = U diag(σ) V*, dE(X) in that frame, and the log of the invariant density."""

    X: Float[Array, "d d"]
    U: Float[Array, "d d"]
    values: Float[Array, " d"]
    Vh: Float[Array, "d d"]
    gradient: Float[Array, "d d"]  # U* dE V
    log_density: Float[Array, ""]


def state_at(X: Float[Array, "d d"], cost: Callable[..., Any], depth: int, law: Law) -> State:
    """Compute everything that a step from X needs."""
    U, values, Vh = jnp.linalg.svd(X)
    energy, gradient = jax.value_and_grad(cost)(X)
    density = log_density(values, depth, law.kappa, "real") - law.beta * energy
    return State(X, U, values, Vh, U.T @ gradient @ Vh.T, density)


def divergence(values: Float[Array, " d"], depth: int) -> Float[Array, " d"]:
    """Compute div A, (div A)_kl = Σ ∂A_{kl,mn}/∂X_mn: the coefficients of u_i v_i*, the others being zero.

    (div A)_i = 2(N − 1) σ_i^{1−2/N} + Σ_{j≠i} 2σ_i (a_ii − a_ij)/(σ_i² − σ_j²); with x = λ² the quotient is
    Σ_{k=0}^{N−2} (N − 1 − k) x_i^{N−2−k} x_j^k / a_ij, right at equal values too (derived).
    """
    squares, k = values ** (2 / depth), np.arange(depth - 1)[:, None, None]
    quotient = jnp.sum((depth - 1 - k) * squares[:, None] ** (depth - 2 - k) * squares**k, axis=0)
    quotient = quotient / jnp.exp(log_coefficients(values, depth))
    others = jnp.sum(quotient, axis=1) - jnp.diag(quotient)
    return 2 * (depth - 1) * values ** (1 - 2 / depth) + 2 * values * others


def product_drift(state: State, depth: int, law: Law) -> Float[Array, "d d"]:
    """Compute −A(dE) + (A(grad log ρ_κ) + div A)/β in the frame of X: the Itô drift downstairs, tamed."""
    coefficients = jnp.exp(log_coefficients(state.values, depth))
    slope = jax.grad(log_density)(state.values, depth, law.kappa, "real")
    correction = jnp.diag(coefficients) * slope + divergence(state.values, depth)
    drift = -coefficients * state.gradient + jnp.diag(correction) / law.beta
    return drift * _taming(jnp.mean(drift**2 / coefficients), law)


def _taming(square: Float[Array, ""], law: Law) -> Float[Array, ""]:
    """Compute (1 + r²)^{−¼}, r = (mean square of the drift's step)/(that of the noise's step).

    It is 1 − O(h²) for most, and keeps steps where drifts are singular or grow fast, near det X = 0 and at infinity,
    from being longer than those of the noise: Euler's method would explode from there.
    """
    ratio = law.step_size * law.beta * square / 2
    return (1 + ratio**2) ** -0.25


def product_step(
    state: State, key: PRNGKeyArray, cost: Callable[..., Any], depth: int, law: Law, *, metropolis: bool
) -> tuple[State, Bool[Array, ""]]:
    """Take a step of Euler and Maruyama downstairs: dX = drift dt + √(2/β) A^{½} dB.

    With `metropolis` it is accepted with the probability that makes exp(−βE) ρ_κ invariant at every step size.
    """
    noise_key, accept_key = jax.random.split(key)
    d = len(state.values)
    noise = jax.random.normal(noise_key, (d, d), state.X.dtype)
    spread = jnp.sqrt(2 * law.step_size / law.beta * jnp.exp(log_coefficients(state.values, depth)))
    moved = law.step_size * product_drift(state, depth, law) + spread * noise
    proposal = state_at(state.X + state.U @ moved @ state.Vh, cost, depth, law)
    ratio = jnp.zeros((), state.X.dtype)
    if metropolis:
        forth = _log_transition(state, proposal.X, depth, law)
        back = _log_transition(proposal, state.X, depth, law)
        ratio = proposal.log_density - state.log_density + back - forth
    lot = jnp.log(jax.random.uniform(accept_key, (), state.X.dtype))
    return _accept(state, proposal, (lot < ratio) | (not metropolis))


def _log_transition(state: State, X: Float[Array, "d d"], depth: int, law: Law) -> Float[Array, ""]:
    """Compute the log density, up to a constant, of a step to X."""
    logs = log_coefficients(state.values, depth)
    moved = state.U.T @ (X - state.X) @ state.Vh.T - law.step_size * product_drift(state, depth, law)
    return -jnp.sum(logs) / 2 - law.beta / (4 * law.step_size) * jnp.sum(moved**2 / jnp.exp(logs))


def chain_step(
    state: State, key: PRNGKeyArray, cost: Callable[..., Any], depth: int, law: Law
) -> tuple[State, Bool[Array, ""]]:
    """Take a constrained step of Euler upstairs, from the balanced chain over X.

    Law and balance do not change under K, so that the chain can be turned to W_1 = … = W_N = Λ = diag(σ^{1/N}), with
    X in the frame of its singular vectors, before every step: there the infinitesimal action and its adjoint are
    (Lξ)_p = ξ_p Λ − Λ ξ_{p−1} and (L*V)_p = V_p Λ − Λ V_{p+1}, and L*L falls apart into tridiagonal matrices.

    Noise and gradient lose their component Lc normal to the balanced chains, c Hermitian, and the noise's component Lω
    along the orbit of K, ω skew, is scaled by √κ. What is then out of balance, by rounding and curvature, is corrected
    along Lc: the chord method solves μ(V + Lc) = 0. A c as large as 1 would change V by as much as V itself, and is no
    correction.
    """
    d = len(state.values)
    widths = state.values ** (1 / depth)
    noise = jax.random.normal(key, (depth, d, d), state.X.dtype)
    along = _solve(_adjoint(noise, widths), widths)
    rotation = (along - along.mT) / 2
    noise = noise - _act(along - jnp.sqrt(law.kappa) * rotation, widths)
    powers = np.arange(depth)[:, None, None]  # (dφ* dE)_p = Λ^{N−p} dE Λ^{p−1}, tangent as it is
    gradient = widths[:, None] ** powers[::-1] * state.gradient * widths**powers
    drift = -gradient * _taming(jnp.mean(gradient**2), law)
    step = law.step_size * drift + jnp.sqrt(2 * law.step_size / law.beta) * noise
    chain = jnp.diag(widths) + step
    tolerance = 16 * d * jnp.finfo(chain.dtype).eps * jnp.max(widths) ** 2

    def residual(c: Array) -> Array:
        moved = chain + _act(c, widths)
        return moved[:-1] @ moved[:-1].mT - moved[1:].mT @ moved[1:]

    def unsolved(carry: tuple[Array, Array, Array]) -> Array:
        c, mu, count = carry
        return (_largest(mu) > tolerance) & (_largest(c) < 1) & (count < _ITERATIONS)

    def correct(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        c, mu, count = carry
        c = c - _solve(mu, widths) / 2  # dμ(Lδ) = 2 herm L*Lδ
        return c, residual(c), count + 1

    start = jnp.zeros((depth - 1, d, d), chain.dtype)
    c, mu, _ = jax.lax.while_loop(unsolved, correct, (start, residual(start), jnp.asarray(0)))
    chain = chain + _act(c, widths)
    product = chain[0]
    for W in chain[1:]:
        product = W @ product
    proposal = state_at(state.U @ product @ state.Vh, cost, depth, law)
    solved = (_largest(mu) <= tolerance) & (_largest(c) < 1)
    return _accept(state, proposal, solved & jnp.all(jnp.linalg.slogdet(chain)[0] > 0))


def _largest(array: Array) -> Array:
    return jnp.max(jnp.abs(array), initial=0.0)


def _act(xi: Float[Array, "n d d"], widths: Float[Array, " d"]) -> Float[Array, "N d d"]:
    """Compute (Lξ)_p = ξ_p Λ − Λ ξ_{p−1} at the chain Λ, …, Λ, with ξ_0 = ξ_N = 0."""
    padded = jnp.pad(xi, ((1, 1), (0, 0), (0, 0)))
    return padded[1:] * widths - widths[:, None] * padded[:-1]


def _adjoint(V: Float[Array, "N d d"], widths: Float[Array, " d"]) -> Float[Array, "n d d"]:
    """Compute (L*V)_p = V_p Λ − Λ V_{p+1}."""
    return V[:-1] * widths - widths[:, None] * V[1:]


def _solve(right: Float[Array, "n d d"], widths: Float[Array, " d"]) -> Float[Array, "n d d"]:
    """Solve L*Lξ = right.

    On the entries (i, j) L*L is tridiagonal, λ_i² + λ_j² on the diagonal and −λ_iλ_j beside it; sines diagonalise it,
    with the eigenvalues (λ_i − λ_j)² + 4λ_iλ_j sin²(kπ/2N), k = 1 … N − 1.
    """
    n = right.shape[0]
    k = np.arange(1, n + 1)
    sines = np.sqrt(2 / (n + 1)) * np.sin(np.outer(k, k) * np.pi / (n + 1))
    sines, quarter = (jnp.asarray(table, right.dtype) for table in (sines, 4 * np.sin(k * np.pi / (2 * n + 2)) ** 2))
    eigenvalues = (widths[:, None] - widths) ** 2 + quarter[:, None, None] * widths[:, None] * widths
    return jnp.tensordot(sines, jnp.tensordot(sines, right, 1) / eigenvalues, 1)


def _accept(state: State, proposal: State, accepted: Any) -> tuple[State, Bool[Array, ""]]:
    """Take a proposal that is finite and on the same side of det X = 0, if it is accepted."""
    same_side = jnp.linalg.slogdet(proposal.X)[0] == jnp.linalg.slogdet(state.X)[0]
    finite = jnp.all(jnp.isfinite(proposal.gradient)) & jnp.isfinite(proposal.log_density)
    taken = accepted & same_side & finite
    return jax.tree.map(lambda new, old: jnp.where(taken, new, old), proposal, state), taken
