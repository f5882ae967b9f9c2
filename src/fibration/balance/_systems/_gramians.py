"""Gramians of stable systems, through factors that are computed without squaring anything."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import Complex, Float, Shaped

from .._arrays import adjoint, hermitian
from ._poles import check_stable
from ._read import System, read_system

_solve_triangular: Any = scipy.linalg.get_lapack_funcs("trtrs", dtype=complex)
_LOPSIDED = 16.0  # ratio of rows to columns, relative to the others, from which states are rescaled
_SWEEPS = 20
_TINY = 1e-100  # poles beside which I − λ̄ T₁ is the identity


def gramians(A: Any, Bm: Any = None, C: Any = None, dt: Any = None) -> tuple[Any, Any]:
    """Compute the controllability and the observability Gramian of a stable system.

    In continuous time they solve A W_c + W_c A* + B B* = 0 and A* W_o + W_o A + C* C = 0; in discrete time
    A W_c A* − W_c + B B* = 0 and A* W_o A − W_o + C* C = 0. With the operator R from past inputs to the state and the
    operator O from the state to future outputs they are W_c = R R* and W_o = O* O, the two squares in the moment map
    of the pair (R, O): W_c − W_o.

    **Arguments:**

    - `A` (n, n), `Bm` (n, m), `C` (p, n): a system, real or complex; or only one object with the attributes A, B, C, D
      and dt, as of `scipy.signal` and python-control.
    - `dt`: None for continuous time; True or the sampling time for discrete time.

    **Returns:** W_c and W_o (n, n), Hermitian and positive semi-definite, of the type given.

    **Raises:** `UnstableSystemError`, which names the poles, if one is not inside the left half-plane or the unit
    circle; `ShapeError`, `NonFiniteDataError`, `ParameterError`.

    **Source:** Hammarling's method (IMA J. Numer. Anal. 2, 1982) on a complex Schur form, its steps derived.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> Wc, Wo = fb.balance.gramians(np.array([[-1.0]]), np.array([[2.0]]), np.array([[4.0]]))
    >>> Wc, Wo
    (array([[2.]]), array([[8.]]))

    ```
    """
    system = read_system(A, Bm, C, dt=dt)
    factors = gramian_factors(system)
    scale = factors.scale[:, None]
    controllability, observability = factors.controllability / scale, factors.observability * scale
    return system.back(_square(controllability)), system.back(_square(observability))


def hankel_singular_values(A: Any, Bm: Any = None, C: Any = None, dt: Any = None) -> Any:
    """Compute the Hankel singular values of a stable system: the square roots of the eigenvalues of W_c W_o.

    They are the singular values of the Hankel operator, from past inputs to future outputs, do not depend on the
    coordinates of the state, and say how much each balanced state matters.

    **Arguments:** as of `gramians`.

    **Returns:** σ_1 ≥ … ≥ σ_n ≥ 0, computed from factors of the Gramians: small ones have absolute errors of rounding
    times σ_1 in well-scaled coordinates, where the eigenvalues of W_c W_o would have those of its square root.

    **Raises:** as `gramians`.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> fb.balance.hankel_singular_values(np.array([[-1.0]]), np.array([[2.0]]), np.array([[4.0]]))
    array([4.])

    ```
    """
    system = read_system(A, Bm, C, dt=dt)
    factors = gramian_factors(system)
    return system.back(np.linalg.svd(adjoint(factors.observability) @ factors.controllability, compute_uv=False))


@dataclass(frozen=True)
class Factors:
    """Factors of the Gramians in rescaled coordinates x̃ = diag(scale) x: W̃_c = L_c L_c*, W̃_o = L_o L_o*."""

    controllability: Any
    observability: Any
    scale: Float[np.ndarray, " n"]

    @property
    def noise(self) -> float:
        """What rounding makes of a Hankel singular value that is zero."""
        sizes = np.linalg.norm(self.observability) * np.linalg.norm(self.controllability)
        return float(len(self.scale) * np.finfo(float).eps * sizes)


def gramian_factors(system: System) -> Factors:
    """Compute square factors of both Gramians from one Schur form.

    **Raises:** `UnstableSystemError`.
    """
    scale = equilibrium(system)
    A, B, C = scale[:, None] * system.A / scale, scale[:, None] * system.B, system.C / scale
    form: Any = scipy.linalg.schur(A, output="real" if np.isrealobj(A) else "complex")
    T, Q = scipy.linalg.rsf2csf(*form) if np.isrealobj(A) else form
    check_stable(np.diag(T), A, system.discrete)
    solve = hammarling_discrete if system.discrete else hammarling
    # T* is lower triangular: with the states in the opposite order it is upper triangular, too.
    flipped = adjoint(T)[::-1, ::-1]
    controllability, observability = Q @ solve(T, adjoint(Q) @ B), Q @ solve(flipped, adjoint(C @ Q)[::-1])[::-1]
    if np.isrealobj(A):
        controllability, observability = as_real(controllability), as_real(observability)
    return Factors(controllability, observability, scale)


def _square(L: Any) -> Any:
    return hermitian(L @ adjoint(L))


def as_real(L: Any) -> Any:
    """Find a real square factor of the real matrix L L* = Re L Re Lᵀ + Im L Im Lᵀ, for L (n, n)."""
    return np.linalg.qr(np.concatenate([L.real.T, L.imag.T]), mode="r").T  # pyright: ignore[reportAttributeAccessIssue]


def hammarling(T: Complex[np.ndarray, "n n"], B: Shaped[np.ndarray, "n m"]) -> Complex[np.ndarray, "n n"]:
    """Solve T X + X T* + B B* = 0 for upper triangular T by X = U U*, U upper triangular, without forming X or B B*.

    Write T = [T₁ t; 0 λ], B = [B₁; b*] and U = [U₁ u; 0 τ]. The last entry gives 2 Re(λ) τ² = −‖b‖², the last column
    (T₁ + λ̄ I) u = −t τ − B₁ b/τ, and what is left is the same equation for T₁ and B₁ − u b*/τ (derived).
    """
    n = len(T)
    shifted, rest = np.array(T, complex, order="F"), np.array(B, complex)
    poles, U = np.diag(T).copy(), np.zeros((n, n), complex)
    diagonal = np.einsum("ii->i", shifted)
    for k in range(n - 1, -1, -1):
        size = np.linalg.norm(rest[k])
        if size == 0:
            continue
        root = np.sqrt(-2 * poles[k].real)
        U[k, k] = tau = size / root
        direction = rest[k] * (root / size)  # b*/τ
        if k:
            diagonal[:k] = poles[:k] + poles[k].conj()
            right = -tau * T[:k, k] - rest[:k] @ direction.conj()
            U[:k, k] = u = _solve_triangular(shifted[:, :k], right)[0]
            rest[:k] -= np.multiply.outer(u, direction)
    return U


def hammarling_discrete(T: Complex[np.ndarray, "n n"], B: Shaped[np.ndarray, "n m"]) -> Complex[np.ndarray, "n n"]:
    """Solve T X T* − X + B B* = 0 for upper triangular T by X = U U*, U upper triangular.

    In the notation of `hammarling`, with β = b/‖b‖, w = B₁ β and s² = 1 − |λ|²: τ = ‖b‖/s,
    (I − λ̄ T₁) u = λ̄ τ t + s w, and what is left is the same equation for T₁ and B₁ + (s v − λ w − w) β*, where
    v = T₁ u + τ t (derived).
    """
    n = len(T)
    upper, rest = np.array(T, complex, order="F"), np.array(B, complex)
    shifted, poles, U = upper.copy(order="F"), np.diag(T).copy(), np.zeros((n, n), complex)
    diagonal = np.einsum("ii->i", shifted)
    for k in range(n - 1, -1, -1):
        size = np.linalg.norm(rest[k])
        if size == 0:
            continue
        pole = poles[k]
        s = np.sqrt((1 - abs(pole)) * (1 + abs(pole)))
        U[k, k] = tau = size / s
        if k:
            direction = rest[k] / size
            w, t = rest[:k] @ direction.conj(), tau * T[:k, k]
            u = right = pole.conj() * t + s * w
            if abs(pole) > _TINY:
                diagonal[:k] = poles[:k] - 1 / pole.conj()
                u = _solve_triangular(shifted[:, :k], -right / pole.conj())[0]
            U[:k, k] = u
            v = upper[:k, :k] @ u + t
            rest[:k] += np.multiply.outer(s * v - (1 + pole) * w, direction)
    return U


def equilibrium(system: System) -> Float[np.ndarray, " n"]:
    """Find powers of two d such that the rows and the columns of a state have similar sizes in diag(d)·(A, B, C).

    That is balancing under the torus of diagonal matrices, one state after the other, as Osborne did it for matrices
    (J. ACM 7, 1960): it makes results independent of the units of the states. Most systems need none of it.
    """
    n = len(system.A)
    coupling = np.abs(system.A)
    np.fill_diagonal(coupling, 0)
    out = np.concatenate([coupling, np.abs(system.C)])  # columns: what a state acts on
    into = np.concatenate([coupling, np.abs(system.B)], axis=1)  # rows: what acts on a state
    d = np.ones(n)
    columns, rows = np.linalg.norm(out, axis=0), np.linalg.norm(into, axis=1)
    both = (columns > 0) & (rows > 0)
    ratios = columns[both] / rows[both]
    if not len(ratios) or ratios.max() < _LOPSIDED * ratios.min():
        return d
    for _ in range(_SWEEPS):
        unchanged = True
        for i in np.flatnonzero(both):
            columns, rows = np.linalg.norm(out[:, i]), np.linalg.norm(into[i])
            if not (columns > 0 and rows > 0):
                continue
            factor = 2.0 ** np.round(np.log2(columns / rows) / 2)
            if factor != 1 and columns / factor + rows * factor < 0.9 * (columns + rows):
                unchanged = False
                d[i] *= factor
                out[:, i] /= factor
                out[i] *= factor
                into[i] *= factor
                into[:n, i] /= factor
        if unchanged:
            break
    return d
