"""Group actions that leave a function alone: what balancing needs to know of one, and that of a chain."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import trees
from ..trees import PyTree
from ._arrays import adjoint, hermitian

_ROUNDING = 8  # machine epsilons of the equations, relative to |W|²
_STEPS = 1000
_WEAKEST = 1e-4  # relative to the strongest direction, that the preconditioner tells apart


class AbstractAction(eqx.Module):
    """A linear action of a group on parameters, as far as balancing needs it.

    A generator ξ of the group is a pytree. Write L_W ξ = d/ds (exp(sξ)·W) at s = 0 for the motion that ξ starts at W,
    and L_W* for its adjoint. The moment map is μ = L_W* W, the gradient of ½|W|² along the orbit in the directions of
    Hermitian generators. An action of your own is a subclass with the three methods that have no body here;
    `kempf_ness` balances under it.

    ```python
    >>> import jax.numpy as jnp
    >>> from fibration.balance import ChainAction
    >>> chain = [jnp.array([[3.0]]), jnp.array([[1.0]])]
    >>> print(ChainAction().moment_map(chain)[0])
    [[8.]]

    ```
    """

    @abstractmethod
    def infinitesimal(self, W: PyTree, xi: PyTree) -> PyTree:
        """Compute L_W ξ, a pytree like W."""

    @abstractmethod
    def adjoint(self, W: PyTree, V: PyTree) -> PyTree:
        """Compute L_W* V, a pytree like ξ."""

    @abstractmethod
    def exponential(self, xi: PyTree, W: PyTree) -> PyTree:
        """Compute exp(ξ)·W for Hermitian ξ."""

    def hermitian(self, xi: PyTree) -> PyTree:
        """Project a generator on those that lengthen or shorten; by default the Hermitian part of every matrix."""
        return jax.tree.map(hermitian, xi)

    def precondition(self, W: PyTree, xi: PyTree, symmetric: bool) -> PyTree:  # noqa: ARG002
        """Solve L*Lζ = ξ roughly, or herm(L*Lζ) = ξ if `symmetric`; by default not at all."""
        return xi

    def moment_map(self, W: PyTree) -> PyTree:
        """Compute μ = L_W* W."""
        return self.hermitian(self.adjoint(W, W))


class ChainAction(AbstractAction):
    """The action (g·W)_p = g_p W_p g_{p−1}⁻¹ on chains of matrices, with g_0 = g_N = I.

    L_W ξ = (ξ_p W_p − W_p ξ_{p−1})_p and (L_W* V)_p = V_p W_p* − W_{p+1}* V_{p+1}.
    """

    def infinitesimal(self, W: Sequence[Any], xi: Sequence[Any]) -> Any:
        """Compute ξ_p W_p − W_p ξ_{p−1}."""
        left = [x @ w for x, w in zip(xi, W[:-1], strict=True)]
        right = [w @ x for w, x in zip(W[1:], xi, strict=True)]
        return [left[0], *(a - b for a, b in zip(left[1:], right[:-1], strict=True)), -right[-1]]

    def adjoint(self, W: Sequence[Any], V: Sequence[Any]) -> Any:
        """Compute V_p W_p* − W_{p+1}* V_{p+1}."""
        return [V[p] @ adjoint(W[p]) - adjoint(W[p + 1]) @ V[p + 1] for p in range(len(W) - 1)]

    def exponential(self, xi: Sequence[Any], W: Sequence[Any]) -> Any:
        """Compute exp(ξ_p) W_p exp(−ξ_{p−1}), from the eigenvalues of ξ."""
        grow, shrink = zip(*(_exponentials(x) for x in xi), strict=True)
        left = [g @ w for g, w in zip(grow, W[:-1], strict=True)] + [W[-1]]
        return [left[0], *(w @ s for w, s in zip(left[1:], shrink, strict=True))]

    def precondition(self, W: Sequence[Any], xi: Sequence[Any], symmetric: bool) -> Any:
        """Solve the equations of each layer as if the others stood still.

        (L*Lξ)_p = ξ_p A + B ξ_p − … with A = W_p W_p*, B = W_{p+1}* W_{p+1}: a Sylvester equation, in the eigenvectors
        of A and B. Its Hermitian part for Hermitian ξ is ½(ξ(A + B) + (A + B)ξ). At balance the eigenvalues of the
        preconditioned operator lie within 1 ± cos(π/N) (derived).
        """
        return [sylvester(W[p] @ adjoint(W[p]), adjoint(W[p + 1]) @ W[p + 1], x, symmetric) for p, x in enumerate(xi)]


def _exponentials(xi: Any) -> tuple[Any, Any]:
    values, vectors = jnp.linalg.eigh(xi)
    return (vectors * jnp.exp(values)) @ adjoint(vectors), (vectors * jnp.exp(-values)) @ adjoint(vectors)


def sylvester(A: Any, B: Any, right: Any, symmetric: bool) -> Any:
    """Solve ξA + Bξ = R, or ½(ξ(A + B) + (A + B)ξ) = R, for positive semi-definite A and B."""
    first, second = jax.lax.stop_gradient(((A + B) / 2, (A + B) / 2) if symmetric else (A, B))
    a, u = jnp.linalg.eigh(first)
    b, v = (a, u) if symmetric else jnp.linalg.eigh(second)
    sums = b[:, None] + a
    # No more than this is gained in weak directions, or rounding in the directions of a stabiliser would be, too.
    sums = jnp.maximum(sums, _WEAKEST * jnp.max(sums)) + jnp.finfo(sums.dtype).tiny
    return v @ ((adjoint(v) @ right @ u) / sums) @ adjoint(u)


def solve_generator(action: AbstractAction, W: PyTree, right: PyTree, *, symmetric: bool, rtol: float) -> PyTree:
    """Solve L_W* L_W ξ = right, or herm(L_W* L_W ξ) = right among Hermitian ξ, by preconditioned conjugate gradients.

    The equations are singular where W has a stabiliser, and nearly so where the orbit is not closed. What is wrong with
    ξ there matters only through the residual (derived: μ' = −2 herm L*L ξ along the flows).

    **Arguments:** `rtol`: of the residual, relative to the right side.

    At most _STEPS products L_W* L_W ξ; allocates a few ξ.
    """

    def operator(xi: PyTree) -> PyTree:
        applied = action.adjoint(W, action.infinitesimal(W, xi))
        return action.hermitian(applied) if symmetric else applied

    def precondition(xi: PyTree) -> PyTree:
        return action.precondition(W, xi, symmetric)

    # Conjugate gradients that are asked for less than rounding leaves of the residual go astray.
    square = trees.dot(W, W)
    rounding: Any = _ROUNDING * jnp.finfo(square.dtype).eps * square
    xi, _ = jax.scipy.sparse.linalg.cg(operator, right, tol=rtol, atol=rounding, maxiter=_STEPS, M=precondition)
    return xi
