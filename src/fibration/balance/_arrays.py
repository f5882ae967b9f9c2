"""Matrices as they come (NumPy or JAX, real or complex, of any precision), and as they are computed with."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _validation, trees
from ..errors import NonFiniteDataError, ShapeError
from ..trees import PyTree, is_traced

Matrix = Any  # a NumPy or JAX array (m, n), or what becomes one
Matrices = list[Any]


def read_matrix(X: Any, name: str = "X") -> Any:
    """Turn what a user calls a matrix into a finite NumPy or JAX array of real or complex numbers.

    **Raises:** `ShapeError`, `NonFiniteDataError`.
    """
    try:
        array = X if isinstance(X, jax.Array) else np.asarray(X)
        array = array if is_inexact(array) else array.astype(float)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"{name} is {X!r:.80}", "a matrix of numbers", "pass a two-dimensional array") from error
    if array.ndim != 2 or 0 in array.shape:
        raise ShapeError(
            f"{name} has shape {array.shape}",
            "a matrix with at least one row and one column",
            "flatten a convolution's filters first; a vector needs a second axis, `w[None]` or `w[:, None]`",
        )
    if not is_traced(array):
        finite = np.isfinite(widened(array))
        if not finite.all():
            bad = np.argwhere(~finite)
            row, column = bad[0]
            raise NonFiniteDataError(
                f"{name} holds {len(bad)} entries that are NaN or infinite, the first in row {row}, column {column}",
                "finite entries",
                "go back to the last checkpoint in which they are finite",
            )
    return array


def read_chain(Ws: Any) -> Matrices:
    """Turn a list of matrices, W_1 first, or one array (N, d, d), into arrays of one kind that can be multiplied.

    **Raises:** `ShapeError` unless they are two or more that fit; `NonFiniteDataError`.
    """
    Ws = list(Ws) if getattr(Ws, "ndim", 0) == 3 else Ws
    if not isinstance(Ws, list | tuple) or len(Ws) < 2:
        given = f"a list of {len(Ws)} matrices" if isinstance(Ws, list | tuple) else f"{type(Ws).__name__}"
        raise ShapeError(
            f"the chain is {given}",
            "a list of two or more matrices, W_1, the first that acts, first",
            "pass the parameters that `networks.deep_linear` returns, or [A, B] for the product B A",
        )
    matrices = [read_matrix(W, f"W_{number}") for number, W in enumerate(Ws, 1)]
    _validation.check_chain(matrices)
    xp = np if all(isinstance(W, np.ndarray) for W in matrices) else jnp
    dtype = xp.result_type(*matrices)
    return [xp.asarray(W, dtype) for W in matrices]


def is_inexact(array: Any) -> bool:
    """Tell whether an array holds real or complex floating-point numbers, those of machine learning too."""
    return bool(jnp.issubdtype(array.dtype, jnp.inexact))


def namespace(array: Any) -> Any:
    """Choose the module that computes with an array: `numpy` or `jax.numpy`."""
    return np if isinstance(array, np.ndarray) else jnp


def widened(array: Any, traced: bool | None = None) -> Any:
    """Take an array to NumPy's float64 or complex128; within a transformation, to at least float32."""
    if is_traced(array) if traced is None else traced:
        return jnp.asarray(array).astype(jnp.promote_types(array.dtype, jnp.float32))
    array = np.asarray(array)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64, copy=False)


def computable(matrices: Matrices) -> tuple[Matrices, Callable[[Matrices], Matrices]]:
    """Take matrices to NumPy in float64, whatever JAX's default, and say how to take results back to where they were.

    Within a JAX transformation they stay JAX arrays, of their own precision but at least float32.
    """
    dtype, xp = matrices[0].dtype, namespace(matrices[0])

    def back(results: Matrices) -> Matrices:
        return [xp.asarray(result).astype(dtype) for result in results]

    return all_widened(matrices), back


def all_widened(matrices: Matrices) -> Matrices:
    """Take matrices to where they are computed with together: one that is traced keeps the others with it."""
    traced = any(is_traced(W) for W in matrices)
    return [widened(W, traced) for W in matrices]


def largest(tree: PyTree) -> float:
    """Find a power of two near the largest entry; 1 if all are zero."""
    found = max(float(jnp.max(jnp.abs(leaf), initial=0.0)) for leaf in trees.coordinates(tree))
    return 2.0 ** round(np.log2(found)) if found > 0 else 1.0


def in_float64(tree: PyTree) -> PyTree:
    """Take floating-point and complex leaves to JAX arrays of double precision; JAX must have been told to allow it."""

    def convert(leaf: Any) -> Any:
        if not eqx.is_inexact_array_like(leaf):
            return leaf
        wide = np.asarray(leaf)
        return jnp.asarray(wide.astype(np.complex128 if wide.dtype.kind == "c" else np.float64))

    return jax.tree.map(convert, tree)


def like(given: PyTree, computed: PyTree) -> PyTree:
    """Round leaves to the types of others, NumPy where those are NumPy."""

    def convert(old: Any, new: Any) -> Any:
        if not eqx.is_inexact_array_like(old):
            return old
        rounded = np.asarray(new).astype(old.dtype)
        return rounded if isinstance(old, np.ndarray) else jnp.asarray(rounded)

    return jax.tree.map(convert, given, computed)


def adjoint(W: Any) -> Any:
    """Compute the conjugate transpose W*."""
    return W.conj().T


def hermitian(W: Any) -> Any:
    """Compute the Hermitian part ½(W + W*)."""
    return (W + adjoint(W)) / 2


def squared_norm(W: Any) -> Any:
    """Compute ‖W‖² (Frobenius)."""
    return namespace(W).vdot(W, W).real


def safe_norm(W: Any) -> Any:
    """Compute ‖W‖ (Frobenius) where its square would overflow or vanish."""
    if isinstance(W, np.ndarray) and 1e-280 < (square := squared_norm(W)) < 1e280:
        return np.sqrt(square)
    xp = namespace(W)
    largest = xp.max(xp.abs(W))
    scale = xp.where(largest > 0, largest, 1)
    return scale * xp.sqrt(squared_norm(W / scale))
