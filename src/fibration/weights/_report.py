"""What balancing did to weights on disk."""

from dataclasses import dataclass

import ml_dtypes

from ..balance import PairReport
from ._interface import Skipped
from ._safetensors import DTYPES

Numbers = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class BalancedPair(PairReport):
    """A `PairReport` of one interface, measured on the numbers that were written, and which interface it is.

    - `name` and `kind`: "LoRA", "query and key", "value and output" or "gated"; `module`: by which pairs are grouped.
    - `dtype`: the type in the file; `shapes` of the two sides, left (B) and right (A).
    """

    name: str
    kind: str
    module: str
    dtype: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class WeightsReport:
    """What `balance_weights` did.

    - `source`, `out`: the paths; equal if the input was replaced. `kind`: "LoRA adapter", "LoRA file" or "checkpoint".
    - `strength`, `gauge`: as given; `pairs`: what was balanced; `skipped`: what was not, and why; `notes`: what else to
      know.
    - `tensors`: how many there are in all; `bytes`: how many bytes were written anew, in the balanced tensors.
    - `seconds`: how long it took.
    """

    source: str
    out: str
    kind: str
    strength: float
    gauge: str
    pairs: tuple[BalancedPair, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    tensors: int
    bytes: int
    seconds: float

    @property
    def worst_change(self) -> float:
        """The largest relative change of a product: rounding to the type in the file."""
        return max(pair.change for pair in self.pairs)

    def by_module(self) -> dict[str, tuple[BalancedPair, ...]]:
        """Group the pairs by module, in the order of their first appearance."""
        groups: dict[str, list[BalancedPair]] = {}
        for pair in self.pairs:
            groups.setdefault(pair.module, []).append(pair)
        return {module: tuple(pairs) for module, pairs in groups.items()}

    def worst(self, count: int = 10) -> tuple[BalancedPair, ...]:
        """List the pairs that were furthest from balance, the worst first."""
        return tuple(sorted(self.pairs, key=lambda pair: -pair.imbalance[0])[:count])


def rounding(dtype: str) -> float:
    """Tell half a unit in the last place of a file's type, relative to a number.

    ```python
    >>> rounding("BF16"), rounding("F32") == 2**-24
    (0.00390625, True)

    ```
    """
    return float(ml_dtypes.finfo(DTYPES[dtype]).eps) / 2


def ratio(norms: Numbers) -> float:
    """Divide the larger norm of a pair by the smaller: 1 for a balanced one."""
    low, high = sorted(norms)
    return high / low if low > 0 else float("inf")
