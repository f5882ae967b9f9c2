"""What is known in closed form of the squared-moment flow: its rates, and for two factors its path."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from ..errors import ConditioningWarning, ParameterError, ShapeError, SingularProductError
from ._arrays import adjoint, hermitian, read_matrix, widened
from ._fibre import check_depth

_ILL = 1e-8  # 1/(the condition number) below which the path loses too many digits to say nothing


def squared_moment_rates(singular_values: Any, depth: int, hidden_widths: Sequence[int] | None = None) -> np.ndarray:
    """Compute the exponential rates of the squared-moment flow near balance, in increasing order.

    With λ = σ^{1/N} they are 2(λ_i² + λ_j² − 2 λ_i λ_j cos(kπ/N)) for i ≥ j and k = 1 … N − 1, and 2λ_i² once for each
    direction in which a hidden layer is wider than the rank (derived). The slowest is 8 σ_min^{2/N} sin²(π/2N), or
    2 σ_min^{2/N} if a hidden layer is wide; the largest over the smallest is how stiff the flow is.

    **Arguments:** `singular_values` (r,): those of X that are not zero; `depth`: N; `hidden_widths`: d_1 … d_{N−1}, as
    wide as the rank by default.

    **Raises:** `ParameterError` for a depth below 1, for singular values that are not positive, and for hidden widths
    that are not N − 1 or below the rank.

    ```python
    >>> import fibration as fb
    >>> print(fb.balance.squared_moment_rates([0.4, 1.0], depth=2).round(3))
    [1.6 2.8 4. ]

    ```
    """
    check_depth(depth)
    values = np.atleast_1d(np.asarray(singular_values, float))
    widths = [len(values)] * (depth - 1) if hidden_widths is None else [int(width) for width in hidden_widths]
    if values.ndim != 1 or not np.all((values > 0) & np.isfinite(values)):
        raise ParameterError(f"singular values {values}", "positive numbers", "leave out those that are zero")
    if len(widths) != depth - 1 or min(widths, default=len(values)) < len(values):
        raise ParameterError(
            f"hidden widths {widths} for {len(values)} singular values and depth {depth}",
            f"{depth - 1} widths of at least {len(values)}",
            "leave them out if they are as wide as the rank",
        )
    scales = values ** (1 / depth)
    first, second = np.triu_indices(len(scales))
    angles = np.cos(np.pi * np.arange(1, depth) / depth)
    squares = scales[first] ** 2 + scales[second] ** 2
    rates = [2 * (squares[:, None] - 2 * (scales[first] * scales[second])[:, None] * angles).ravel()]
    rates += [np.repeat(2 * scales**2, width - len(scales)) for width in widths]
    return np.sort(np.concatenate(rates))


def riccati_path(A: Any, Bm: Any, times: Any) -> Float[np.ndarray, "T d d"] | Shaped[np.ndarray, "T d d"]:
    """Compute P(t) = g(t)* g(t) along the squared-moment flow of two factors, in closed form.

    With A = W_1 W_1* and B = W_2* W_2 it solves P' = 2(B − P A P), P(0) = I:

        P(t) = A^{−1/2} {S tanh 2tS + sech 2tS [A⁻¹ + S⁻¹ tanh 2tS]⁻¹ sech 2tS} A^{−1/2},

    where S = (A^{1/2} B A^{1/2})^{1/2} has the singular values of X = W_2 W_1 for eigenvalues (derived). Its limit is
    the geometric mean A⁻¹ # B, of the polar gauge.

    **Arguments:** `A`, `Bm` (d, d): Hermitian, A positive definite, B positive semi-definite; `times` (T,): t ≥ 0.

    **Returns:** P (T, d, d), in float64.

    **Raises:** `SingularProductError` if A is singular, with a `ConditioningWarning` if its condition number is above
    1e8. `ParameterError` unless they are Hermitian and semi-definite; `ShapeError`, `NonFiniteDataError`.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> path = fb.balance.riccati_path(np.diag([1.0, 4.0]), np.diag([9.0, 1.0]), [0.0, 10.0])
    >>> print(path[1].round(6))
    [[3.  0. ]
     [0.  0.5]]

    ```
    """
    first, B = (_read_gram(matrix, name) for matrix, name in ((A, "A"), (Bm, "Bm")))
    instants = np.asarray(times, float)
    if first.shape != B.shape or instants.ndim != 1 or not np.all((instants >= 0) & np.isfinite(instants)):
        raise ShapeError(
            f"A of shape {first.shape}, Bm of shape {B.shape} and times {times!r:.80}",
            "two matrices of one size, and a vector of finite times t ≥ 0",
            "pass W_1 W_1* and W_2* W_2 of one pair",
        )
    a, u = np.linalg.eigh(first)
    if a[0] <= len(a) * np.finfo(float).eps * a[-1]:
        raise SingularProductError(
            f"A = W_1 W_1* with eigenvalues from {a[0]:.1e} to {a[-1]:.1e}",
            "a positive definite A",
            'follow the flow numerically: `flow(Ws, t, "squared_moment")`',
        )
    if a[0] < _ILL * a[-1]:
        warnings.warn(
            f"A has the condition number {a[-1] / a[0]:.0e}: the path loses as many digits",
            ConditioningWarning,
            stacklevel=2,
        )
    root, inverse_root, inverse = ((u * a**power) @ adjoint(u) for power in (0.5, -0.5, -1.0))
    squares, v = np.linalg.eigh(hermitian(root @ B @ root))
    s = np.sqrt(np.maximum(squares, 0))
    path = [np.empty((0, len(a), len(a)), root.dtype)]
    for t in instants:
        x = 2 * t * s
        sech, tanh = 1 / np.cosh(np.minimum(x, 700.0)), np.tanh(x)
        over = np.where(s > 0, tanh / np.where(s > 0, s, 1), 2 * t)  # tanh(2ts)/s
        middle = np.linalg.inv(adjoint(v) @ inverse @ v + np.diag(over))
        inner = np.diag(s * tanh) + sech[:, None] * middle * sech
        path.append(hermitian(inverse_root @ v @ inner @ adjoint(v) @ inverse_root)[None])
    return np.concatenate(path)


def _read_gram(matrix: Any, name: str) -> Any:
    """Read a Hermitian, positive semi-definite matrix."""
    gram = widened(read_matrix(matrix, name))
    size = np.max(np.abs(gram))
    if gram.shape[0] != gram.shape[1]:
        raise ShapeError(f"{name} of shape {gram.shape}", "a square matrix", "pass W_1 W_1* and W_2* W_2")
    if np.max(np.abs(gram - adjoint(gram))) > 1e-10 * size or np.linalg.eigvalsh(gram)[0] < -1e-10 * len(gram) * size:
        raise ParameterError(
            f"{name} is not Hermitian and positive semi-definite", "a Gram matrix", "pass W_1 W_1* and W_2* W_2"
        )
    return hermitian(gram)
