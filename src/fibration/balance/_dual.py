"""The part of a chain along its fibre, by a dual problem for one matrix of the product's shape."""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ._arrays import Matrices, adjoint, read_chain
from ._chain import partial_products

_ROUNDINGS = 16  # the residual of the dual solve, in units of the rounding error of X


def dual_multiplier(Ws: Sequence[Any]) -> Inexact[Array, "m n"]:
    """Solve A_W(L) = Σ_p T_p T_p* L S_{p−1}* S_{p−1} = N X, for the normal part n_p = T_p* L S_{p−1}* of W.

    W − n is the part of W in ker dφ_W, φ(W) = W_N … W_1: dφ_W(n) = A_W(L) = N X = dφ_W(W), and n is in the range of
    the adjoint (derived). L is the multiplier of the constraint φ(W) = X when the regulariser is minimised.

    Conjugate gradients on L itself, so that no matrix with (d_N d_0)² entries is formed, preconditioned by the diagonal
    of A_W in the eigenvectors of Σ_p T_pT_p*/‖T_p‖² and Σ_p S_p*S_p/‖S_p‖². That is exact, one iteration, at balance
    and whenever N = 2. If A_W is singular, L is one of many, and n is the same for all.

    **Returns:** L (d_N, d_0), a JAX array; differentiable forwards.

    **Raises:** those of `end_to_end`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> fb.balance.dual_multiplier([jnp.array([[1.0]]), jnp.array([[2.0]])])  # (4 + 1) L = 2 · 2
    Array([[0.8]], dtype=float32)

    ```
    """
    below, above = partial_products(as_jax(Ws))
    return solve_dual(below, above, len(Ws) * above[0])


def fibre_velocity(Ws: Sequence[Any]) -> Matrices:
    """Compute −P_{ker dφ} W, the steepest descent of the regulariser ½ Σ‖W_p‖² along the fibre.

    With L = `dual_multiplier(Ws)` it is −W_p + T_p* L S_{p−1}*. Moment maps decay along it as μ(t) = e^{−2t} μ(0)
    (derived; Lindsey and Menon, arXiv 2511.01137, for the uniform rate), and the product stays what it is.

    **Returns:** N matrices like `Ws`, JAX arrays. **Raises:** those of `end_to_end`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> [v.item() for v in fb.balance.fibre_velocity([jnp.array([[1.0]]), jnp.array([[1.0]])])]
    [0.0, 0.0]

    ```
    """
    matrices = as_jax(Ws)
    return velocity_along_fibre(matrices, *partial_products(matrices))


def as_jax(Ws: Sequence[Any]) -> Matrices:
    """Read a chain as JAX arrays."""
    return [jnp.asarray(W) for W in read_chain(Ws)]


def pulled_back(L: Any, below: Matrices, above: Matrices) -> Matrices:
    """Compute (dφ_W* L)_p = T_p* L S_{p−1}*."""
    return [adjoint(T) @ L @ adjoint(S) for S, T in zip(below[:-1], above[1:], strict=True)]


def velocity_along_fibre(matrices: Matrices, below: Matrices, above: Matrices) -> Matrices:
    """Compute n − W, given S_0 … S_N and T_0 … T_N."""
    normal = pulled_back(solve_dual(below, above, len(matrices) * above[0]), below, above)
    return [n - W for W, n in zip(matrices, normal, strict=True)]


@jax.jit
def solve_dual(below: Matrices, above: Matrices, right: Any) -> Any:
    """Solve A_W(L) = right, given S_0 … S_N and T_0 … T_N."""
    grams, cograms = [T @ adjoint(T) for T in above[1:]], [adjoint(S) @ S for S in below[:-1]]

    def apply(L: Any) -> Any:
        return functools.reduce(operator.add, (P @ L @ Q for P, Q in zip(grams, cograms, strict=True)))

    # The preconditioner does not change the solution, and the frames have no derivative at repeated eigenvalues.
    still = jax.lax.stop_gradient
    U, V = _common_frame([still(P) for P in grams]), _common_frame([still(Q) for Q in cograms])
    entries = ((_diagonal(still(P), U), _diagonal(still(Q), V)) for P, Q in zip(grams, cograms, strict=True))
    diagonal = functools.reduce(operator.add, (jnp.outer(rows, columns) for rows, columns in entries))
    # A zero diagonal entry of a positive semidefinite operator is a zero row: the right-hand side is zero there too.
    diagonal = jnp.where(diagonal > jnp.finfo(diagonal.dtype).eps * jnp.max(diagonal), diagonal, jnp.inf)

    def inverse_diagonal(R: Any) -> Any:
        return U @ ((adjoint(U) @ R @ V) / diagonal) @ adjoint(V)

    tolerance = _ROUNDINGS * float(jnp.finfo(right.dtype).eps)
    solution, _ = jax.scipy.sparse.linalg.cg(
        apply, right, tol=tolerance, M=inverse_diagonal, maxiter=2 * right.size + 100
    )
    return solution


def _common_frame(grams: Matrices) -> Any:
    """Find the eigenvectors of Σ P_p/tr P_p, which are those of all P_p if they commute, as at balance."""
    traces = [jnp.trace(P).real for P in grams]
    return jnp.linalg.eigh(sum(P / jnp.where(t > 0, t, 1) for P, t in zip(grams, traces, strict=True)))[1]


def _diagonal(P: Any, U: Any) -> Any:
    """Compute the diagonal of U* P U."""
    return jnp.sum((U.conj() * (P @ U)).real, axis=0)
