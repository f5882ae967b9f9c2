"""Affine maps: the coordinates of a construction, the best affine classifier, and maps through given points."""

import warnings

import numpy as np
from jaxtyping import Float

from ..errors import ClassMeansError, ConditioningWarning
from ._statistics import ClassStatistics
from ._types import Coordinates

DEGENERATE, DELICATE = 1e-10, 1e-6  # ratios of singular values
NOISIER = 2.0  # the noise in linear coordinates, against that in affine ones, up to which they serve


def interpolate(
    points: Float[np.ndarray, "Q n"], targets: Float[np.ndarray, "Q P"]
) -> tuple[Float[np.ndarray, "P n"], Float[np.ndarray, " P"]]:
    """Find A and c of smallest |A| with Ap_j + c = y_j, for affinely independent points.

    A = (Y − ȳuᵀ)(P − p̄uᵀ)⁺ and c = ȳ − Ap̄, which no shift of the points changes (derived).
    """
    middle, mean = points.mean(axis=0), targets.mean(axis=0)
    rcond = 10 * max(points.shape) * np.finfo(float).eps
    solved = np.linalg.lstsq(points - middle, targets - mean, rcond=rcond)[0]
    return solved.T, mean - middle @ solved


def best_affine(
    statistics: ClassStatistics, targets: Float[np.ndarray, "Q P"]
) -> tuple[Float[np.ndarray, "P M"], Float[np.ndarray, " P"], float]:
    """Find the affine map x → Ax + c of least squares, and its cost, from means and scatter alone.

    min over (A, c) of Σ_j D_j|Ax̄_j + c − y_j|² + tr(ASAᵀ); the cost is the square root of the minimum,
    which means and scatter tell down to 10⁻⁸ of the targets' spread.
    """
    share = statistics.totals / statistics.totals.sum()
    centre, middle = share @ statistics.means, share @ targets
    # In features of spread one, which features in other units do not change.
    matrix, cost = _least_squares(statistics, statistics.means - centre, targets - middle, statistics.spreads)
    return matrix, middle - matrix @ centre, cost


def best_linear(statistics: ClassStatistics, targets: Float[np.ndarray, "Q P"]) -> float:
    """Compute the least cost of a linear map x → Ax, which depends on where the origin is."""
    sizes = np.sqrt(np.maximum(np.diagonal(statistics.scatter), 0) + statistics.totals @ statistics.means**2)
    return _least_squares(statistics, statistics.means, targets, np.where(sizes > 0, sizes, 1.0))[1]


def _least_squares(
    statistics: ClassStatistics,
    means: Float[np.ndarray, "Q M"],
    targets: Float[np.ndarray, "Q P"],
    sizes: Float[np.ndarray, " M"],
) -> tuple[Float[np.ndarray, "P M"], float]:
    """Minimise Σ_j D_j|Ax̄_j − y_j|² + tr(ASAᵀ) over A, for features of these sizes; return A and the root."""
    totals, scatter = statistics.totals, statistics.scatter
    near = means / sizes
    second = scatter / np.outer(sizes, sizes) + (near * totals[:, None]).T @ near
    values, vectors = np.linalg.eigh(second)
    # Samples that are all one point leave nothing but rounding.
    kept = values > max(10 * len(values) * np.finfo(float).eps * values[-1], 1e-24 * totals.sum())
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    matrix = ((targets * totals[:, None]).T @ near) @ inverse / sizes
    misfit = means @ matrix.T - targets
    square = totals @ np.sum(misfit**2, axis=1) + np.trace(matrix @ scatter @ matrix.T)
    return matrix, float(np.sqrt(max(square, 0.0)))


def independence(statistics: ClassStatistics, *, linear: bool) -> float:
    """Measure how far the class means are from linearly (`linear`), else affinely dependent; 0 where they are.

    The ratio of the smallest to the largest of the singular values that have to be positive, with all features at
    spread one.
    """
    means = statistics.means if linear else statistics.means - statistics.centre
    needed = len(means) if linear else len(means) - 1
    sizes = np.linalg.svd(means / statistics.spreads, compute_uv=False)
    if needed == 0:
        return 1.0
    # Means that differ by rounding alone are one point.
    return float(sizes[needed - 1] / sizes[0]) if needed <= min(means.shape) and sizes[0] > 1e-12 else 0.0


def barycentric(statistics: ClassStatistics, *, linear: bool, shrinkage: float | None = None) -> Coordinates:
    """Find coordinates in which the class means are the unit vectors, with the least noise.

    Of all T with Tx̄_j (+ t) = e_j, the one of least scatter: with S′ = S + εI, T = (X̄ᵀS′⁻¹X̄)⁻¹X̄ᵀS′⁻¹ if `linear`
    (t = 0); else with the means less their mean, and z = u/Q + T(x − x̄), which shifts of the data leave as it is.
    All features are taken at spread one. ε = tr(S)/N by default, which tells apart directions without noise from those
    that few samples show without noise.

    **Raises:** `ClassMeansError` if the means are linearly (`linear`), else affinely dependent. Warns with
    `ConditioningWarning` where they nearly are.
    """
    n_classes, dimension = statistics.means.shape
    scale = statistics.spreads
    centre = np.zeros(dimension) if linear else statistics.centre
    means = (statistics.means - centre) / scale
    needed = n_classes if linear else n_classes - 1
    ratio = independence(statistics, linear=linear)
    if ratio < (DELICATE if linear else DEGENERATE):  # the affine ones are better than delicate linear ones
        kind = "linearly" if linear else "affinely"
        raise ClassMeansError(
            f"{n_classes} class means in {dimension} dimensions are {kind} dependent (singular values in the ratio "
            f"{ratio:.1e})",
            f"{kind} independent class means, in {needed} dimensions at least",
            'leave `method="auto"`, which goes on to constructions that do without, or add features that tell the '
            "classes apart",
        )
    if ratio < DELICATE:
        warnings.warn(
            f"the class means are nearly dependent: the ratio of their singular values is {ratio:.1e}",
            ConditioningWarning,
            stacklevel=4,
        )
    noise = statistics.scatter / np.outer(scale, scale)
    size = np.trace(noise)
    extra = size / statistics.counts.sum() if shrinkage is None else shrinkage * size
    extra = max(extra, 1e-14 * (size + np.sum(means**2)))
    # T = (S′^{-½}X̄)⁺S′^{-½}; the means less their mean have one singular value that is zero but for rounding.
    values, vectors = np.linalg.eigh(noise)
    whitening = vectors / np.sqrt(np.maximum(values, 0) + extra)
    left, sizes, right = np.linalg.svd(means @ whitening, full_matrices=False)
    left, sizes, right = left[:, :needed], sizes[:needed], right[:needed]
    matrix = (left / sizes) @ right @ whitening.T / scale
    # One step of refinement: Tx̄_j = e_j to rounding.
    wanted = np.eye(n_classes) - (0 if linear else 1 / n_classes)
    matrix = matrix + (wanted - matrix @ (scale * means).T) @ matrix
    offset = (0 if linear else 1 / n_classes) - matrix @ centre
    return Coordinates(matrix, np.broadcast_to(offset, (n_classes,)).copy())
