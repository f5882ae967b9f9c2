"""Coordinates of a function that is known at scattered samples only: least squares, dense or by fast transforms."""

import importlib
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array, Float
from scipy.sparse.linalg import LinearOperator, lsmr

from .. import _validation
from ..errors import (
    EmptyDataError,
    MemoryBudgetError,
    MissingExtraError,
    NonFiniteDataError,
    ParameterError,
    ShapeError,
)
from ._arguments import concrete
from ._basis import Basis, check_basis

METHODS = ("dense", "nufft")
# E with more bytes than this is not made.
_BUDGET = 2**30
# Of finufft: the transform's relative error, and with it that of the least squares.
_ACCURACY = 1e-13


@concrete
def fit(basis: Any, inputs: Any, values: Any, *, method: Any = None) -> tuple[Float[Array, "K Q"], float]:
    """Find the coordinates of a function known at scattered samples only, by least squares: θ = E⁺ f(X).

    **Arguments:**

    - `inputs` (N, …) in the box; `values` (N, Q) or (N,).
    - `method`: "dense" factorises E = `basis.evaluate(inputs)`, in N·K² operations; "nufft" iterates (LSMR) with
      nonuniform fast Fourier transforms, about N + R^d log R operations each, and never holds E: up to three inputs,
      with the extra `nufft`. By default the former while E takes less than 1 GiB.

    **Returns:** `(theta, condition)`: (K, Q), of least norm where the samples leave it open, and σ_max/σ_min of E,
    which "nufft" estimates from below. The modes are not orthonormal at scattered samples: a large condition means
    that θ is not determined by them, and infinity that it is not at all.

    **Raises:** `ShapeError`, `EmptyDataError`, `ParameterError`, `NonFiniteDataError`, `UnknownNameError`;
    `MissingExtraError`; `MemoryBudgetError` if E is too large and there are more than three inputs.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis(box=(0, 1), degree=2)
    >>> x = np.array([0.0, 0.2, 0.5, 0.9])
    >>> theta, condition = fb.canonical.fit(basis, x, np.cos(2 * np.pi * x))
    >>> theta.ravel().round(3) + 0.0, condition < 3
    (Array([0.   , 0.   , 0.707], dtype=float...), True)

    ```
    """
    check_basis(basis)
    inputs, values = _validation.as_array(inputs, "inputs"), _validation.as_array(values, "values")
    if jnp.iscomplexobj(inputs) or jnp.iscomplexobj(values):
        raise ParameterError("inputs or values are complex", "real ones", "fit real and imaginary parts on their own")
    if method is not None:
        _validation.check_name("method", method, METHODS)
    basis.evaluate(inputs[:0] if inputs.ndim else inputs)  # says what is wrong with their shape
    u = basis.to_unit(inputs.astype(float) if not jnp.issubdtype(inputs.dtype, jnp.inexact) else inputs)
    basis.check_inside(u)
    columns = values[:, None] if values.ndim == 1 else values
    if columns.ndim != 2 or len(columns) != len(u):
        raise ShapeError(
            f"values have shape {values.shape}", f"one row for each of {len(u)} samples", "pass (N, Q) or (N,)"
        )
    if len(u) == 0:
        raise EmptyDataError("there are no samples", "at least one", "check how the data was selected")
    _validation.check_finite(values, "values")
    small = len(u) * basis.size * u.dtype.itemsize <= _BUDGET
    method = ("dense" if small or basis.dimension > 3 else "nufft") if method is None else method
    if method == "nufft":
        theta, condition = _by_transforms(basis, u, columns)
    elif small:
        theta, condition = _dense(basis.evaluate_unit(u), columns)
    else:
        gigabytes = len(u) * basis.size * u.dtype.itemsize / 2**30
        raise MemoryBudgetError(
            f"{len(u)} samples and {basis.size} modes: E takes {gigabytes:.1f} GiB",
            "at most 1 GiB",
            'take fewer modes or samples, or with up to three inputs method="nufft"',
        )
    if not bool(jnp.all(jnp.isfinite(theta))):
        raise NonFiniteDataError("the least squares overflowed", "values of moderate size", "rescale the values")
    return theta, condition


def _dense(matrix: Float[Array, "N K"], columns: Float[Array, "N Q"]) -> tuple[Float[Array, "K Q"], float]:
    theta, _, _, sigma = jnp.linalg.lstsq(matrix, columns.astype(matrix.dtype))
    least = float(sigma[-1]) if matrix.shape[0] >= matrix.shape[1] else 0.0
    return theta, float(sigma[0]) / least if least > 0 else float("inf")


def _by_transforms(
    basis: Basis, u: Float[Array, "N d"], columns: Float[Array, "N Q"]
) -> tuple[Float[Array, "K Q"], float]:
    forward, adjoint = transforms(basis, u)
    n, eps = len(u), float(jnp.finfo(u.dtype).eps)
    shape = (n, basis.size)
    E = LinearOperator(shape, matvec=forward, rmatvec=adjoint, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    solved = [
        lsmr(E, np.asarray(column, float), atol=eps, btol=eps, conlim=1 / eps, maxiter=10 * basis.size)
        for column in columns.T
    ]
    theta = jnp.asarray(np.stack([one[0] for one in solved], axis=1), u.dtype)
    return theta, float("inf") if n < basis.size else float(max(one[6] for one in solved))


def transforms(
    basis: Basis, u: Float[Array, "N d"]
) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """Make θ ↦ Eθ and its adjoint r ↦ Eᵀr at points of the unit cube, by nonuniform fast Fourier transforms.

    **Raises:** `MissingExtraError`; `ParameterError` for more than three inputs.
    """
    if basis.dimension > 3:
        raise ParameterError(
            f'method="nufft" for {basis.dimension} inputs', "at most three", 'pass method="dense" and fewer modes'
        )
    if importlib.util.find_spec("jax_finufft") is None:
        raise MissingExtraError(
            "jax_finufft cannot be imported", "the extra `nufft`", "pip install 'fibration[nufft]', or method=\"dense\""
        )
    finufft = importlib.import_module("jax_finufft")
    accuracy = max(_ACCURACY, 10 * float(jnp.finfo(u.dtype).eps))
    spread = _exponentials(basis)
    shape = (2 * basis.degree + 1,) * basis.dimension
    angles = tuple((math.pi if basis.kind == "cosine" else 2 * math.pi) * u[:, axis] for axis in range(basis.dimension))
    kind = jnp.result_type(u.dtype, jnp.complex64)

    @jax.jit
    def evaluate(coefficients: Array) -> Array:
        return finufft.nufft2(coefficients.astype(kind), *angles, iflag=1, eps=accuracy).real

    @jax.jit
    def project(residuals: Array) -> Array:
        return finufft.nufft1(shape, residuals.astype(kind), *angles, iflag=-1, eps=accuracy)

    def forward(theta: np.ndarray) -> np.ndarray:
        return np.asarray(evaluate(jnp.asarray((spread @ theta.ravel()).reshape(shape))))

    def adjoint(residuals: np.ndarray) -> np.ndarray:
        return (spread.conj().T @ np.asarray(project(jnp.asarray(residuals.ravel()))).ravel()).real

    return forward, adjoint


def _exponentials(basis: Basis) -> scipy.sparse.csr_matrix:
    """Write each mode as a sum of exponentials e^{ik·x}, |kᵢ| ≤ R: a sparse matrix from modes to their coefficients."""
    side = 2 * basis.degree + 1
    rows, coefficients = np.zeros((basis.size, 1), int), np.ones((basis.size, 1), complex)
    for column in basis.indices.T:
        k = np.abs(column)[:, None]
        # √2 cos = (e^{ikx} + e^{−ikx})/√2, √2 sin = (e^{ikx} − e^{−ikx})/(√2 i), and 1 = (1 + 1)/2 at k = 0.
        part = np.where(column < 0, -1j, 1)[:, None] * np.where(k == 0, 0.5, math.sqrt(0.5))
        both = np.concatenate([part, np.where(column[:, None] < 0, -1, 1) * part], axis=1)
        place = np.concatenate([basis.degree + k, basis.degree - k], axis=1)
        rows = (rows[:, :, None] * side + place[:, None, :]).reshape(basis.size, -1)
        coefficients = (coefficients[:, :, None] * both[:, None, :]).reshape(basis.size, -1)
    columns = np.broadcast_to(np.arange(basis.size)[:, None], rows.shape)
    entries = (coefficients.ravel(), (rows.ravel(), columns.ravel()))
    return scipy.sparse.csr_matrix(entries, shape=(side**basis.dimension, basis.size))
