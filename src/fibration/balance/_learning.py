"""The learning flow on the balanced manifold: gradient flow of the end-to-end matrix, preconditioned by itself."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Real

from ..errors import ParameterError, ShapeError, SingularProductError
from ..trees import is_traced
from ._arrays import adjoint, read_matrix
from ._fibre import check_depth

_NORMAL = 1e-4  # the part of a vector normal to the stratum that is rounding, even in float32


def preconditioner(X: Any, Z: Any, depth: int) -> Inexact[Array, "m n"]:
    """Compute A_{N,X}(Z) = Σ_{p=1}^N (XX*)^{(N−p)/N} Z (X*X)^{(p−1)/N}, what depth N does to a gradient Z.

    A balanced chain W' = −∇(E∘φ)(W) moves its product X by X' = −A_{N,X}(dE(X)) (Arora, Cohen and Hazan,
    arXiv 1802.06509, theorem 1). In the frame of the singular vectors u_i, v_j the entry of Z is multiplied by

        a_ij = Σ_{p=1}^N λ_i^{2(N−p)} λ_j^{2(p−1)} = (σ_i² − σ_j²)/(λ_i² − λ_j²),   λ = σ^{1/N}, 0⁰ = 1,

    computed as the sum, so that equal singular values do no harm.

    **Arguments:** `X`, `Z` (m, n), real or complex, of any rank; `depth`: N ≥ 1. Singular values of X within rounding
    of zero, max(m, n) ε σ_1, count as zero, since they enter as σ^{2/N}.

    **Returns:** (m, n), a JAX array. Only a thin singular value decomposition is made.

    It can be differentiated (once) in X and Z, at repeated singular values too. Where X is rank-deficient the
    derivative is the one along matrices of its rank: there is no other.

    **Raises:** `ShapeError`, `NonFiniteDataError`, `ParameterError`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> fb.balance.preconditioner(jnp.diag(jnp.array([4.0, 1.0])), jnp.ones((2, 2)), depth=2).round(4)  # σ_i + σ_j
    Array([[8., 5.],
           [5., 2.]], dtype=float32)

    ```
    """
    check_depth(depth)
    matrix, gradient = _matrices({"X": X, "Z": Z})
    return _compiled(matrix, gradient, int(depth))


def metric(X: Any, Y: Any, Z: Any, depth: int) -> Real[Array, ""]:
    """Compute g^N(Y, Z) = Re⟨Y, A_{N,X}⁻¹ Z⟩, the Riemannian metric at X on the matrices of its rank r.

    φ: W ↦ W_N … W_1 is a Riemannian submersion of the balanced manifold onto it (Menon, arXiv 2411.09004, for square
    X of full rank), and the learning flow is its gradient flow: g^N(Y, −X') = Re⟨Y, dE(X)⟩ for every tangent Y.

    **Arguments:** `X`, `Y`, `Z` (m, n); `Y` and `Z` tangent to the matrices of rank r: (1 − UU*) Z (1 − VV*) = 0.

    **Raises:** `SingularProductError` for a `Y` or `Z` that is not tangent, since it would raise the rank and is
    infinitely long; `ShapeError`, `NonFiniteDataError`, `ParameterError`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> X = jnp.diag(jnp.array([4.0, 1.0]))
    >>> float(fb.balance.metric(X, X, X, depth=2))  # Σ σ_i² / (2 σ_i)
    2.5

    ```
    """
    check_depth(depth)
    matrix, *vectors = _matrices({"X": X, "Y": Y, "Z": Z})
    U, x, V, y, _ = _frames(matrix, int(depth))
    inside = (x[:, None] > 0) | (y > 0)
    tangents: list[Any] = []
    for name, vector in zip("YZ", vectors, strict=True):
        in_frame = adjoint(U) @ vector @ V
        tangents.append(jnp.where(inside, in_frame, 0))
        normal = jnp.linalg.norm(in_frame - tangents[-1])
        if not is_traced(normal) and float(normal) > _NORMAL * float(jnp.linalg.norm(vector)):
            raise SingularProductError(
                f"X of rank {int(jnp.sum(x > 0))} and a {name} with a part of norm {normal:.1e} that raises the rank",
                "vectors tangent to the matrices of the rank of X; others are infinitely long",
                f"project first: subtract (1 − UU*) {name} (1 − VV*)",
            )
    a = jnp.where(inside, _coefficients(x, y, int(depth)), 1)
    return jnp.sum((tangents[0].conj() * tangents[1]).real / a)


class LearningFlow(eqx.Module):
    """The learning flow X' = −A_{N,X}(dE(X)): what the gradient flow of a balanced chain does to its product.

    A field for `solvers.solve`. It is the gradient flow of E in the metric g^N. Singular values move by
    σ_i' = −N σ_i^{2−2/N} Re⟨u_i, dE(X) v_i⟩, so that the rank and the sign of det X stay what they are.

    **Arguments:**

    - `gradient`: dE, any function of X: `problem.gradient` for a problem whose parameters are X. For complex X it is
      ∂E/∂Re X + i ∂E/∂Im X, the conjugate of what `jax.grad` returns.
    - `depth`: N ≥ 1, the number of matrices.
    - `rank`: r, to replace X by its best approximation of rank r wherever it is evaluated. For X of rank r that
      changes nothing but rounding, which otherwise enters as σ^{2/N}: pass it for a rank-deficient X and a large N.

    **Raises:** `ParameterError` for a depth or rank that is no positive integer.

    **Source:** Arora, Cohen and Hazan, arXiv 1802.06509, theorem 1; Bah, Rauhut, Terstiege and Westdickenberg,
    arXiv 1910.05505, for rectangular matrices and strata of fixed rank.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> flow = fb.balance.LearningFlow(lambda X: X - 1.0, depth=2)  # x' = 2x(1 − x), the logistic equation
    >>> run = fb.solvers.solve(flow, jnp.array([[0.5]]), 1.0, rtol=1e-4)
    >>> bool(abs(run.final_params[0, 0] - 1 / (1 + jnp.exp(-2.0))) < 1e-3)
    True

    ```
    """

    gradient: Callable[..., Any]
    depth: int = eqx.field(static=True)
    rank: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_depth(self.depth)
        if self.rank is not None and (not isinstance(self.rank, int | np.integer) or self.rank < 1):
            raise ParameterError(f"rank = {self.rank!r}", "a positive integer", "leave it out for full rank")

    def __call__(self, time: Any, X: Any) -> Inexact[Array, "m n"]:  # noqa: ARG002
        """Compute −A_{N,X}(dE(X)), (m, n); one gradient and one thin singular value decomposition."""
        matrix = jnp.asarray(read_matrix(X)) if self.rank is None else truncated(X, self.rank)
        return -preconditioner(matrix, self.gradient(matrix), self.depth)


def truncated(X: Any, rank: int) -> Inexact[Array, "m n"]:
    """Compute the best approximation of rank r. Its derivative is the projection on the tangent space at it."""
    matrix = jnp.asarray(read_matrix(X))
    left, _, right = jnp.linalg.svd(jax.lax.stop_gradient(matrix), full_matrices=False)
    U, V = left[:, :rank], adjoint(right[:rank])
    rows, columns = U @ (adjoint(U) @ matrix), (matrix @ V) @ adjoint(V)
    return rows + columns - U @ (adjoint(U) @ columns)


def _matrices(given: dict[str, Any]) -> list[Any]:
    read = {name: read_matrix(X, name) for name, X in given.items()}
    if len({X.shape for X in read.values()}) > 1:
        raise ShapeError(
            ", ".join(f"{name} {X.shape}" for name, X in read.items()),
            "matrices of one shape",
            "pass the gradient with respect to X itself",
        )
    dtype = jnp.result_type(*read.values())
    return [jnp.asarray(X, dtype) for X in read.values()]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _preconditioned(X: Any, Z: Any, depth: int) -> Any:
    """Compute A_{N,X}(Z) from a thin decomposition: only the terms p = 1 and p = N leave its frame."""
    U, values, Vh = jnp.linalg.svd(X, full_matrices=False)
    x = _powers(values, X.shape, depth)
    return _in_frame(U, x, adjoint(Vh), x, Z, depth)


@_preconditioned.defjvp
def _(depth: int, primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    """Differentiate, with d(P^k) = U (F_k ∘ U* d(XX*) U) U* for P = (XX*)^{1/N} (Daleckii and Krein)."""
    (X, Z), (dX, dZ) = primals, tangents
    U, x, V, y, S = _frames(X, depth)
    D, C = adjoint(U) @ dX @ V, adjoint(U) @ Z @ V
    gram, cogram = D @ S.T + S @ adjoint(D), S.T @ D + adjoint(D) @ S  # d(XX*) and d(X*X) in the frame
    change = jnp.zeros_like(C)
    for p in range(1, depth + 1):
        change += (_divided_difference(x, depth - p, depth) * gram) @ (C * y ** (p - 1))
        change += (x[:, None] ** (depth - p) * C) @ (_divided_difference(y, p - 1, depth) * cogram)
    value, linear = (_in_frame(U, x, V, y, matrix, depth) for matrix in (Z, dZ))
    return value, linear + U @ change @ adjoint(V)


_compiled = jax.jit(_preconditioned, static_argnums=2)


def _in_frame(U: Any, x: Any, V: Any, y: Any, Z: Any, depth: int) -> Any:
    """Compute Σ_p U x^{N−p} U* Z V y^{p−1} V*, with U 1 U* = 1 and V 1 V* = 1 even if the frames are thin."""
    if depth == 1:
        return Z
    ends = (U * x ** (depth - 1)) @ (adjoint(U) @ Z) + ((Z @ V) * y ** (depth - 1)) @ adjoint(V)
    between = [x[:, None] ** (depth - p) * y ** (p - 1) for p in range(2, depth)]
    return ends + U @ (sum(between) * (adjoint(U) @ Z @ V)) @ adjoint(V) if between else ends


def _frames(X: Any, depth: int) -> tuple[Any, ...]:
    """Decompose X = U S V* with square U, V; x (m,) and y (n,) are σ^{2/N}, filled up with zeros."""
    U, values, Vh = jnp.linalg.svd(X, full_matrices=True)
    (m, n), k = X.shape, len(values)
    powers = _powers(values, X.shape, depth)
    S = jnp.zeros((m, n), values.dtype).at[jnp.arange(k), jnp.arange(k)].set(jnp.where(powers > 0, values, 0))
    return U, jnp.pad(powers, (0, m - k)), adjoint(Vh), jnp.pad(powers, (0, n - k)), S


def _powers(values: Any, shape: tuple[int, ...], depth: int) -> Float[Array, " k"]:
    """Compute λ² = σ^{2/N}, and zero for singular values within rounding of zero."""
    noise = max(shape) * jnp.finfo(values.dtype).eps * values[0]
    return jnp.where(values > noise, values, 0) ** (2 / depth)


def _coefficients(x: Any, y: Any, depth: int) -> Float[Array, "m n"]:
    """Compute a_ij = Σ_p x_i^{N−p} y_j^{p−1}."""
    return sum(
        (x[:, None] ** (depth - p) * y ** (p - 1) for p in range(1, depth + 1)), jnp.zeros((len(x), len(y)), x.dtype)
    )


def _divided_difference(x: Any, k: int, depth: int) -> Float[Array, "m m"]:
    """Compute F_k = (x_i^k − x_j^k)/(x_i^N − x_j^N) as a quotient of sums, and zero where x_i = x_j = 0."""
    below = _coefficients(x, x, depth)
    return _coefficients(x, x, k) / jnp.where(below > 0, below, 1)
