"""Linear systems (A, B, C, D): Gramians, balanced realisations and truncations, flows, Euclidean balancing."""

from ._euclidean import euclidean_realization
from ._flows import balancing_flow
from ._gramians import gramians, hankel_singular_values
from ._read import LinearSystem
from ._realization import BalancedRealization, realization
from ._truncation import Truncation, truncate

__all__ = [
    "BalancedRealization",
    "LinearSystem",
    "Truncation",
    "balancing_flow",
    "euclidean_realization",
    "gramians",
    "hankel_singular_values",
    "realization",
    "truncate",
]
