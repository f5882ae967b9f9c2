"""Sets of multi-indices: which products of one-dimensional modes a basis holds."""

import numpy as np
from jaxtyping import Int

from .. import _validation
from ..errors import MemoryBudgetError
from ._arguments import as_count

INDEX_SETS = ("box", "l1", "ball", "hc")
# More modes than this are refused: their products with anything would not fit either.
_MOST = 10_000_000


def index_set(name: str, dimension: int, degree: int) -> Int[np.ndarray, "K d"]:
    """List the multi-indices k ∈ N₀^d of a set, by total degree and then lexicographically; the first is 0.

    - "box": maxᵢ kᵢ ≤ R, (R + 1)^d of them; "l1": Σ kᵢ ≤ R, C(R + d, d); "ball": Σ kᵢ² ≤ R²;
    - "hc", the hyperbolic cross: Π max(1, kᵢ) ≤ R. It is no smaller than "l1" in 6 dimensions or more.

    **Raises:** `UnknownNameError`, `ParameterError`, `MemoryBudgetError` beyond 10⁷ indices.
    """
    _validation.check_name("index_set", name, INDEX_SETS)
    dimension, degree = as_count("dimension", dimension), as_count("degree", degree, 0)
    if degree == 0:
        return np.zeros((1, dimension), int)
    _check_number(degree + 1, name, dimension, degree)
    # What an index has used up of the degree, the largest entry that still fits, and what an entry adds.
    start, largest, weigh = {
        "box": (0, lambda used: np.full_like(used, degree), np.maximum),
        "l1": (0, lambda used: degree - used, np.add),
        "ball": (0, lambda used: _root(degree**2 - used), lambda used, k: used + k * k),
        "hc": (1, lambda used: degree // used, lambda used, k: used * np.maximum(1, k)),
    }[name]
    indices, used = np.zeros((1, 0), int), np.full(1, start)
    for _ in range(dimension):
        counts = largest(used) + 1
        total = int(counts.sum(dtype=float))
        _check_number(total, name, dimension, degree)
        entries = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
        indices = np.column_stack([np.repeat(indices, counts, axis=0), entries])
        used = weigh(np.repeat(used, counts), entries)
    return indices[np.lexsort([*indices.T[::-1], indices.sum(axis=1)])]


def _root(squares: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Compute the integer part of the square roots."""
    root = np.sqrt(squares).astype(int)
    return root - (root * root > squares) + ((root + 1) * (root + 1) <= squares)


def _check_number(count: int | float, name: str, dimension: int, degree: int) -> None:
    if count > _MOST:
        raise MemoryBudgetError(
            f"index_set={name!r} with degree {degree} in {dimension} dimensions has more than {_MOST} indices",
            f"at most {_MOST} modes",
            "lower the degree" + (', or pass index_set="hc" or "l1"' if dimension > 1 else ""),
        )


def signed(indices: Int[np.ndarray, "K d"], name: str) -> Int[np.ndarray, "S d"]:
    """Give every non-zero entry both signs: −k stands for the sine of frequency k.

    **Raises:** `MemoryBudgetError` beyond 10⁷ of them.
    """
    count = float(np.sum(2.0 ** (indices != 0).sum(axis=1)))
    _check_number(count, name, indices.shape[1], int(indices.max()))
    for axis in range(indices.shape[1]):
        mirrored = indices[indices[:, axis] > 0].copy()
        mirrored[:, axis] *= -1
        indices = np.concatenate([indices, mirrored])
    return indices[np.lexsort([*indices.T[::-1], np.abs(indices).sum(axis=1)])]
