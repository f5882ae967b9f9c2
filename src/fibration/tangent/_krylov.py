"""Krylov iterations on pytrees from a zero start: conjugate gradients and LSMR."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .. import trees
from ..trees import PyTree

Map = Callable[[PyTree], PyTree]


class Iterate(NamedTuple):
    """The last iterate, the number of iterations, whether it converged, and the smallest singular value met."""

    solution: PyTree
    iterations: Int[Array, ""]
    converged: Bool[Array, ""]
    smallest: Float[Array, ""]


def conjugate_gradients(
    apply: Map, rhs: PyTree, tolerance: float | Float[Array, ""], limit: int, precondition: Map | None = None
) -> Iterate:
    """Solve A x = rhs for a positive semi-definite A and rhs in its range, until |r| ≤ tolerance·|rhs| by recursion.

    `smallest` is the least Rayleigh quotient of the search directions, an upper bound of A's least eigenvalue on them.
    """
    start = rhs if precondition is None else precondition(rhs)
    scale = trees.dot(rhs, rhs)

    def unfinished(state: tuple[Any, ...]) -> Array:
        _, residual, _, product, count, _ = state
        return (trees.dot(residual, residual) > tolerance**2 * scale) & (product > 0) & (count < limit)

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        x, residual, direction, product, count, smallest = state
        image = apply(direction)
        curvature = trees.dot(direction, image)
        usable = curvature > 0
        length = jnp.where(usable, product / jnp.where(usable, curvature, 1), 0)
        x, residual = trees.axpy(length, direction, x), trees.axpy(-length, image, residual)
        turned = residual if precondition is None else precondition(residual)
        # A direction without curvature can go no further: a product of zero ends the iteration.
        following = jnp.where(usable, trees.dot(residual, turned), 0)
        smallest = jnp.minimum(smallest, curvature / trees.dot(direction, direction))
        return x, residual, trees.axpy(following / product, direction, turned), following, count + 1, smallest

    zero, product = jax.tree.map(jnp.zeros_like, rhs), trees.dot(rhs, start)
    state = (zero, rhs, start, product, jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, product.dtype))
    x, residual, _, _, count, smallest = jax.lax.while_loop(unfinished, step, state)
    done = trees.dot(residual, residual) <= tolerance**2 * scale
    return Iterate(x, count, done, smallest)


class _Lsmr(NamedTuple):
    x: PyTree
    u: Array
    v: PyTree
    h: PyTree
    h_bar: PyTree
    # Scalars of the two orthogonal factorisations of the bidiagonal matrix, named as in the paper.
    alpha: Array
    alpha_bar: Array
    rho: Array
    rho_bar: Array
    c_bar: Array
    s_bar: Array
    zeta: Array
    zeta_bar: Array
    # What |r| is read from.
    beta_dd: Array
    beta_d: Array
    rho_d: Array
    tau: Array
    theta: Array
    lost: Array
    norm: Array
    size: Array
    smallest: Array
    iterations: Array
    done: Array


def lsmr(
    jvp: Callable[[PyTree], Float[Array, " M"]],
    vjp: Callable[[Float[Array, " M"]], PyTree],
    rhs: Float[Array, " M"],
    damping: Float[Array, ""],
    tolerance: float,
    limit: int,
) -> Iterate:
    """Find the minimum-norm v that minimises |Dv − rhs|² + λ|v|², any rank of D, with one jvp and vjp an iteration.

    It stops where |r| ≤ tolerance·(|D||v| + |rhs|) or |Dᵀr| ≤ tolerance·|D||r|, estimated, with the damping in D and r.

    **Source:** Fong and Saunders, SIAM J. Sci. Comput. 33 (2011), section 2 and, for |r|, section 5.
    """
    root = jnp.sqrt(damping)
    beta = jnp.linalg.norm(rhs)
    u = rhs / _positive(beta)
    v = vjp(u)
    alpha = trees.norm(v).astype(beta.dtype)
    v = trees.scale(1 / _positive(alpha), v)
    one, zero = jnp.ones_like(beta), jnp.zeros_like(beta)
    nothing = jax.tree.map(jnp.zeros_like, v)

    def step(s: _Lsmr) -> _Lsmr:
        u = jvp(s.v) - s.alpha * s.u
        beta = jnp.linalg.norm(u)
        u = u / _positive(beta)
        v = trees.axpy(-beta, s.v, vjp(u))
        alpha = trees.norm(v).astype(beta.dtype)
        v = trees.scale(1 / _positive(alpha), v)
        c_hat, s_hat, alpha_hat = _rotation(s.alpha_bar, root)
        c, sine, rho = _rotation(alpha_hat, beta)
        theta_new, alpha_bar = sine * alpha, c * alpha
        theta_bar, rho_temp = s.s_bar * rho, s.c_bar * rho
        c_bar, s_bar, rho_bar = _rotation(rho_temp, theta_new)
        zeta, zeta_bar = c_bar * s.zeta_bar, -s_bar * s.zeta_bar
        h_bar = trees.axpy(-theta_bar * rho / _positive(s.rho * s.rho_bar), s.h_bar, s.h)
        x = trees.axpy(zeta / _positive(rho * rho_bar), h_bar, s.x)
        h = trees.axpy(-theta_new / _positive(rho), s.h, v)
        acute, check = c_hat * s.beta_dd, -s_hat * s.beta_dd
        c_tilde, s_tilde, rho_tilde = _rotation(s.rho_d, theta_bar)
        theta, rho_d = s_tilde * rho_bar, c_tilde * rho_bar
        beta_d = -s_tilde * s.beta_d + c_tilde * c * acute
        tau = (s.zeta - s.theta * s.tau) / _positive(rho_tilde)
        tau_d = (zeta - theta * tau) / _positive(rho_d)
        lost, beta_dd = s.lost + check**2, -sine * acute
        norm = jnp.sqrt(lost + (beta_d - tau_d) ** 2 + beta_dd**2)
        size = jnp.sqrt(s.size**2 + s.alpha**2 + beta**2)
        whole = jnp.maximum(size, root)
        near = norm <= tolerance * (whole * trees.norm(x).astype(norm.dtype) + jnp.linalg.norm(rhs))
        done = near | (jnp.abs(zeta_bar) <= tolerance * whole * norm) | (alpha == 0) | ~jnp.isfinite(norm)
        met = jnp.minimum(s.smallest, jnp.where(s.iterations > 0, s.rho_bar, jnp.inf))
        scalars = (alpha, alpha_bar, rho, rho_bar, c_bar, s_bar, zeta, zeta_bar, beta_dd, beta_d, rho_d, tau, theta)
        return _Lsmr(x, u, v, h, h_bar, *scalars, lost, norm, size, met, s.iterations + 1, done)

    first = _Lsmr(
        nothing, u, v, v, nothing, alpha, alpha, one, one, one, zero, zero, alpha * beta, beta, zero, one, zero, zero,
        zero, beta, zero, jnp.full_like(beta, jnp.inf), jnp.zeros((), jnp.int32), alpha * beta == 0,
    )  # fmt: skip
    last = jax.lax.while_loop(lambda s: ~s.done & (s.iterations < limit), step, first)
    smallest = jnp.minimum(last.smallest, jnp.where(last.iterations > 0, last.rho_bar, 0))
    return Iterate(last.x, last.iterations, last.done, smallest)


def _positive(value: Array) -> Array:
    """Keep a divisor from being zero; what it divides is zero then, too."""
    return jnp.where(value == 0, 1, value)


def _rotation(a: Array, b: Array) -> tuple[Array, Array, Array]:
    r = jnp.hypot(a, b)
    safe = _positive(r)
    return jnp.where(r == 0, 1, a / safe), b / safe, r
