"""The singular values of a product of matrices, not formed where a layer is narrow, and their rounding error."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import NonFiniteDataError, ParameterError
from ..trees import is_traced
from ._arrays import Matrices, adjoint, namespace, safe_norm

_POWER_STEPS = 12
_SMALL = 64  # widths below which a decomposition costs less than the steps


@dataclass(frozen=True, eq=False)
class Frame:
    """Columns `basis` · `core`, where the basis (d, k) is tall and the core (k, r) small, or `core` alone.

    Multiplying by the core first saves a tall product.
    """

    core: Any
    basis: Any = None

    @functools.cached_property
    def dense(self) -> Any:
        """The product."""
        return self.core if self.basis is None else self.basis @ self.core

    def times(self, small: Any) -> Any:
        """Compute basis · (core · small)."""
        return self.core @ small if self.basis is None else self.basis @ (self.core @ small)

    def leading(self, rank: int) -> "Frame":
        """Leave the other columns out."""
        return Frame(self.core[:, :rank], self.basis)


@dataclass(frozen=True, eq=False)
class ProductSVD:
    """X = U diag(σ) V* of a chain's product, with as many singular values as its narrowest layer is wide.

    `left_frame` of U (d_N, k), `values` σ (k,), decreasing, `right_frame` of V (d_0, k); `noise`: singular values below
    it are rounding.
    """

    left_frame: Frame
    values: Any
    right_frame: Frame
    noise: Any

    @property
    def left(self) -> Any:
        """U."""
        return self.left_frame.dense

    @property
    def right(self) -> Any:
        """V."""
        return self.right_frame.dense

    def threshold(self, rtol: float | None) -> Any:
        """Say which singular values count as zero: those up to rtol·σ_1, or up to the noise."""
        check_rtol(rtol)
        return self.noise if rtol is None else rtol * self.values[0]

    def rank(self, rtol: float | None = None) -> int:
        """Count the singular values that are none of them zero."""
        return int(np.sum(np.asarray(self.values) > self.threshold(rtol)))

    def leading(self, rank: int) -> "ProductSVD":
        """Leave the others out."""
        return ProductSVD(self.left_frame.leading(rank), self.values[:rank], self.right_frame.leading(rank), self.noise)

    def significant(self, rtol: float | None = None) -> Any:
        """Replace those that count as zero by zero."""
        xp = namespace(self.values)
        return xp.where(self.values > self.threshold(rtol), self.values, 0)


def check_rtol(rtol: float | None) -> None:
    """Raise `ParameterError` for an rtol outside [0, 1)."""
    if rtol is not None and not 0 <= rtol < 1:
        raise ParameterError(f"rtol = {rtol}", "a number in [0, 1)", "leave it out for the bound of rounding")


@dataclass(frozen=True, eq=False)
class _Factor:
    """A matrix and a bound of its error: norms are Frobenius, ‖·‖₂ is estimated."""

    matrix: Any
    error: Any

    @classmethod
    def given(cls, W: Any) -> "_Factor":
        """Take a matrix that is known to rounding."""
        xp = namespace(W)
        return cls(W, float(xp.finfo(W.dtype).eps) * safe_norm(W))

    def after(self, before: "_Factor") -> "_Factor":
        """Multiply: errors are stretched by the other factor, and rounding is added."""
        A, B = self.matrix, before.matrix
        xp = namespace(A)
        rounding = float(xp.finfo(A.dtype).eps) * safe_norm(A) * safe_norm(B)
        return _Factor(A @ B, spectral_norm(A) * before.error + spectral_norm(B) * self.error + rounding)


def spectral_norm(W: Any) -> Any:
    """Compute ‖W‖₂ of a small matrix, and estimate it otherwise: it is used in bounds of rounding errors only."""
    xp = namespace(W)
    if min(W.shape) <= _SMALL:
        return xp.linalg.norm(W, 2)
    v = xp.asarray(np.random.default_rng(0).normal(size=W.shape[1]), W.dtype)
    size = xp.asarray(0.0)
    for _ in range(_POWER_STEPS):
        v = adjoint(W) @ (W @ v)
        size = safe_norm(v)
        v = v / xp.where(size > 0, size, 1)
    return xp.sqrt(size)


@np.errstate(over="ignore", invalid="ignore")
def product_svd(matrices: Matrices) -> ProductSVD:
    """Decompose W_N … W_1: multiply from both ends down to the narrowest layer, and factorise there.

    Both halves are reduced by QR to squares of the narrowest width, so that X is formed only if an end is narrowest.
    The noise is a running bound: every product stretches the errors of its factors by each other's norm and adds its
    own rounding (derived). ε ∏‖W_p‖ is far too large for factors that do not line up.
    """
    widths = [matrices[0].shape[1], *(W.shape[0] for W in matrices)]
    waist = int(np.argmin(widths))
    if waist in (0, len(matrices)):
        whole = _multiplied(matrices)
        left, values, right = _svd(whole.matrix)
        return ProductSVD(Frame(left), values, Frame(right), whole.error + _decomposition(whole.matrix, values))
    lower, upper = _multiplied(matrices[:waist]), _multiplied(matrices[waist:])
    xp = namespace(matrices[0])
    Q_up, R_up = xp.linalg.qr(upper.matrix)
    Q_low, R_low = xp.linalg.qr(adjoint(lower.matrix))
    reduced = _Factor(R_up, upper.error).after(_Factor(adjoint(R_low), lower.error))
    left, values, right = _svd(reduced.matrix)
    noise = reduced.error + _decomposition(reduced.matrix, values)
    return ProductSVD(Frame(left, Q_up), values, Frame(right, Q_low), noise)


def _multiplied(matrices: Matrices) -> _Factor:
    """Multiply a part of the chain, beginning at its narrower end."""
    product = _Factor.given(matrices[0])
    if len(matrices) > 1 and matrices[0].shape[1] > matrices[-1].shape[0]:
        product = _Factor.given(matrices[-1])
        for before in reversed(matrices[:-1]):
            product = product.after(_Factor.given(before))
        return product
    for after in matrices[1:]:
        product = _Factor.given(after).after(product)
    return product


def _svd(X: Any) -> tuple[Any, Any, Any]:
    if not is_traced(X) and not np.all(np.isfinite(X)):
        raise NonFiniteDataError(
            "a product of matrices that overflows",
            "entries whose products are finite",
            "divide the matrices by numbers",
        )
    left, values, right = namespace(X).linalg.svd(X, full_matrices=False)
    return left, values, adjoint(right)


def _decomposition(X: Any, values: Any) -> Any:
    """Bound the rounding of the decomposition itself."""
    return max(X.shape) * float(namespace(X).finfo(X.dtype).eps) * values[0]
