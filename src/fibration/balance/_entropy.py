"""Entropy of an end-to-end matrix: how many balanced chains lie over it, and the measures on matrices that follow."""

import math
from typing import Any

import jax
import numpy as np

from .. import _validation
from .._validation import check_name
from ..errors import ParameterError, ShapeError, SingularProductError
from ..trees import is_traced
from ._arrays import computable, is_inexact, namespace
from ._fibre import check_depth

FIELDS = {"real": 1, "complex": 2}  # the dimension of the field over the reals


def entropy(singular_values: Any, depth: int, field: str = "real") -> Any:
    """Compute the Boltzmann entropy S(X) = log vol(O_X), O_X the balanced chains of N square matrices over X.

    They are one orbit of K = O(d)^{N−1}. With λ_i = σ_i^{1/N} and a_ij = Σ_p λ_i^{2(N−p)} λ_j^{2(p−1)},

        S = (N − 1) log vol O(d) + ½ Σ_{i<j} log a_ij

    in the metric that the chains inherit from ½Σ‖W_p‖² (Menon and Yu, arXiv 2509.09088); for complex matrices, where
    K = U(d)^{N−1},

        S = (N − 1) log vol U(d) + Σ_{i<j} log a_ij + Σ_i (½ log N + (N − 1) log λ_i)     (derived).

    **Arguments:** `singular_values` (…, d) of an invertible X (d, d), in any order, equal ones too; `depth`: N ≥ 1;
    `field`: `"real"` or `"complex"`, that of the weights.

    **Returns:** S (…). It can be jitted and differentiated, at equal values too.

    **Raises:** `SingularProductError` for a value that is zero or negative; `ShapeError`, `NonFiniteDataError`,
    `ParameterError` for a depth, `UnknownNameError` for a field.

    ```python
    >>> import math
    >>> import fibration as fb
    >>> volume = math.exp(fb.balance.entropy([1.0, 1.0], depth=2))  # two circles of length 2π√2, stretched by √2
    >>> round(volume / math.pi, 6)
    8.0

    ```
    """
    values, back = _read_values(singular_values, depth, field)
    return back([_entropy(values, depth, field)])[0]


def log_volume_density(
    singular_values: Any, depth: int, kappa: float = 1.0, field: str = "real", of: str = "product"
) -> Any:
    """Compute log ρ_κ, ρ_κ = vol(O_X)^κ √det g^N: the measure on matrices that the balanced chains carry.

    For κ = 1 it is the push-forward of their Riemannian volume under the product, for κ = 0 the volume of the metric
    g^N(Z, Z) = ⟨Z, A⁻¹Z⟩ of the learning flow, √det g^N = ∏_{i,j} a_ij^{−½} (real) or ∏_{i,j} a_ij^{−1} (complex). The
    Langevin equation's invariant density is exp(−βE) ρ_κ.

    **Arguments:** as those of `entropy`, and `kappa`: κ ≥ 0; `of`: `"product"` for the density with respect to dX, or
    `"singular_values"` for that of σ_1 ≥ … ≥ σ_d with respect to dσ. The second is the first times the volume of all
    matrices of the same singular values,

        vol O(d)² 2^{−d(d+1)/2} ∏_{i<j} |σ_i² − σ_j²|     or
        vol U(d)² (2π)^{−d} 2^{−d(d−1)} ∏_i σ_i ∏_{i<j} (σ_i² − σ_j²)²     (complex),

    and in λ = σ^{1/N} proportional to ∏_{i<j} √((λ_i^{2N} − λ_j^{2N})(λ_i² − λ_j²)) dλ for κ = 1 (real; derived).

    **Returns:** log ρ_κ (…); −inf at equal values for `of="singular_values"`.

    **Raises:** as `entropy`; `ParameterError` for a negative κ.

    ```python
    >>> import fibration as fb
    >>> round(float(fb.balance.log_volume_density([4.0], depth=2)), 6)  # two points over X, √det g = 1/√(2σ)
    -0.346574

    ```
    """
    check_name("of", of, ("product", "singular_values"))
    check_kappa(kappa)
    values, back = _read_values(singular_values, depth, field)
    density = log_density(values, depth, kappa, field)
    return back([density + _log_volume_of_matrices(values, field) if of == "singular_values" else density])[0]


def free_energy(
    cost: Any, singular_values: Any, depth: int, *, beta: float, kappa: float = 1.0, field: str = "real"
) -> Any:
    """Compute the free energy F = E − (κ/β) S of an end-to-end matrix.

    Langevin noise on balanced chains makes the end-to-end matrix follow −grad F with noise (Menon and Yu, arXiv
    2509.09088): matrices with more balanced chains over them, those of large and different singular values, are
    favoured.

    **Arguments:** `cost`: E(X) (…); `beta`: inverse temperature; `kappa`: strength of the noise along the orbits,
    relative to that across them; the others as for `entropy`.

    **Raises:** as `entropy`; `ParameterError` unless β > 0 and κ ≥ 0.

    ```python
    >>> import fibration as fb
    >>> round(float(fb.balance.free_energy(3.0, [2.0, 1.0], depth=2, beta=10.0)), 6)
    2.65731

    ```
    """
    check_beta(beta)
    check_kappa(kappa)
    return cost - kappa / beta * entropy(singular_values, depth, field)


def log_density(values: Any, depth: int, kappa: Any, field: str) -> Any:
    """Compute log ρ_κ with respect to dX, without looking at what is given."""
    off, diagonal = _log_coefficient_sums(values, depth)
    return kappa * _entropy(values, depth, field) - FIELDS[field] * (off + diagonal / 2)


def log_coefficients(values: Any, depth: int) -> Any:
    """Compute log a_ij (…, d, d), by the sum a_ij = Σ_p λ_i^{2(N−p)} λ_j^{2(p−1)}: right at equal values too.

    a_ij are the eigenvalues of the learning flow's preconditioner A_{N,X}.
    """
    xp = namespace(values)
    logs = 2 / depth * xp.log(values)  # log λ²
    powers = np.arange(depth)[:, None, None]
    terms = powers[::-1] * logs[..., None, :, None] + powers * logs[..., None, None, :]
    highest = terms.max(axis=-3, keepdims=True)
    return xp.log(xp.sum(xp.exp(terms - highest), axis=-3)) + highest[..., 0, :, :]


def log_volume_of_group(d: int, field: str) -> float:
    """Compute log vol O(d) or log vol U(d) for the Frobenius metric on the matrices.

    O(d)/O(d − 1) is the sphere S^{d−1}; since a skew entry appears twice, each direction in it has length √2. U(d) has
    the sphere S^{2d−1} and one direction, the phase of the first entry, that appears once.
    """
    dimension = FIELDS[field]
    return sum(
        dimension * (k - 1) / 2 * math.log(2)
        + math.log(2)
        + dimension * k / 2 * math.log(math.pi)
        - math.lgamma(dimension * k / 2)
        for k in range(1, d + 1)
    )


def check_kappa(kappa: float) -> None:
    """Raise `ParameterError` unless κ is a non-negative number."""
    if not 0 <= kappa < math.inf:
        raise ParameterError(f"kappa = {kappa}", "a number of at least 0", "pass kappa=1 for isotropic noise")


def check_beta(beta: float) -> None:
    """Raise `ParameterError` unless β is a positive number."""
    if not 0 < beta < math.inf:
        raise ParameterError(
            f"beta = {beta}", "a positive inverse temperature", "pass beta=1.0, or larger for less noise"
        )


def _entropy(values: Any, depth: int, field: str) -> Any:
    off, diagonal = _log_coefficient_sums(values, depth)
    # The phases of each singular pair have the Gram determinant N λ^{2(N−1)} = a_ii.
    orbit = off / 2 if field == "real" else off + diagonal / 2
    return (depth - 1) * log_volume_of_group(values.shape[-1], field) + orbit


def _log_coefficient_sums(values: Any, depth: int) -> tuple[Any, Any]:
    """Compute Σ_{i<j} log a_ij and Σ_i log a_ii."""
    xp = namespace(values)
    logs = log_coefficients(values, depth)
    diagonal = xp.trace(logs, axis1=-2, axis2=-1)
    return (xp.sum(logs, axis=(-2, -1)) - diagonal) / 2, diagonal


def _log_volume_of_matrices(values: Any, field: str) -> Any:
    """Compute the log of the volume, dX against dσ, of U diag(σ) V* over all U and V, for σ_1 ≥ … ≥ σ_d."""
    xp, d = namespace(values), values.shape[-1]
    rows, columns = np.triu_indices(d, 1)
    squares = values**2
    with np.errstate(divide="ignore"):
        gaps = xp.sum(xp.log(xp.abs(squares[..., rows] - squares[..., columns])), axis=-1)
    if field == "real":
        return 2 * log_volume_of_group(d, field) - d * (d + 1) / 2 * math.log(2) + gaps
    constant = 2 * log_volume_of_group(d, field) - d * math.log(2 * math.pi) - d * (d - 1) * math.log(2)
    return constant + 2 * gaps + xp.sum(xp.log(values), axis=-1)


def _read_values(singular_values: Any, depth: int, field: str) -> tuple[Any, Any]:
    check_depth(depth)
    check_name("field", field, FIELDS)
    array = singular_values if isinstance(singular_values, jax.Array) else np.asarray(singular_values)
    array = array if is_inexact(array) else array.astype(float)
    if array.ndim == 0 or array.shape[-1] == 0 or array.dtype.kind == "c":
        raise ShapeError(
            f"singular values of shape {array.shape} and type {array.dtype}",
            "one row (d,) of real numbers, or rows (…, d)",
            "pass `np.linalg.svd(X, compute_uv=False)`",
        )
    _validation.check_finite(array, "singular_values")
    if not is_traced(array) and not np.all(np.asarray(array) > 0):
        raise SingularProductError(
            f"a singular value of {float(np.min(np.asarray(array)))}",
            "positive ones: the balanced chains over a singular matrix form no single orbit of O(d)^{N−1} of full size",
            "add a multiple of the identity to X, or drop its zero singular values and count those of a smaller matrix",
        )
    matrices, back = computable([array])
    return matrices[0], back
