"""Sets of multi-indices: which products of one-dimensional modes a basis holds."""

import math

import numpy as np
from jaxtyping import Int

from .. import _validation
from ..errors import MemoryBudgetError, ParameterError

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
    if dimension < 1 or degree < 0 or degree != int(degree):
        raise ParameterError(
            f"dimension = {dimension}, degree = {degree}", "a dimension of at least 1, a degree ≥ 0", "pass integers"
        )
    # What an index has used up of the degree, and what one more entry adds: axis by axis, nothing outside is made.
    start, room, weigh = {
        "box": (0, degree, np.maximum),
        "l1": (0, degree, lambda used, k: used + k),
        "ball": (0, degree**2, lambda used, k: used + k * k),
        "hc": (1, degree, lambda used, k: used * np.maximum(1, k)),
    }[name]
    if degree == 0:
        return np.zeros((1, dimension), int)
    entries = np.arange(degree + 1)
    indices, used = np.zeros((1, 0), int), np.full(1, start)
    for _ in range(dimension):
        if len(indices) * math.ceil(math.sqrt(degree + 1)) > _MOST:
            raise MemoryBudgetError(
                f"index_set={name!r} with degree {degree} in {dimension} dimensions",
                f"at most {_MOST} modes",
                'lower the degree, or pass index_set="hc" or "l1"',
            )
        sums = weigh(used[:, None], entries[None])
        rows, columns = np.nonzero(sums <= room)
        indices, used = np.column_stack([indices[rows], entries[columns]]), sums[rows, columns]
    return indices[np.lexsort([*indices.T[::-1], indices.sum(axis=1)])]


def signed(indices: Int[np.ndarray, "K d"]) -> Int[np.ndarray, "S d"]:
    """Give every non-zero entry both signs: −k stands for the sine of frequency k."""
    for axis in range(indices.shape[1]):
        mirrored = indices[indices[:, axis] > 0].copy()
        mirrored[:, axis] *= -1
        indices = np.concatenate([indices, mirrored])
    return indices[np.lexsort([*indices.T[::-1], np.abs(indices).sum(axis=1)])]
