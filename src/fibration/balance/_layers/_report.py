"""What balancing did to an interface: imbalance, norms, condition numbers, and how much the function changed."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._arrays import adjoint, safe_norm
from .._fibre import find_orbit
from .._product import product_svd

Numbers = tuple[float, float]


@dataclass(frozen=True)
class PairReport:
    """What balancing did to an interface left · right, measured on what was returned, after rounding.

    - `rank` of the product; of several heads the smallest. For gated units, how many of them are alive.
    - `imbalance`: before and after, ‖left* left − right right*‖ / (‖left‖² + ‖right‖²), of which only the part counts
      that the group of the layer can change: for a torus the diagonal, for rotated planes their traces. NaN beyond
      norms of 1e154, whose squares overflow.
    - `norms`: ((‖left‖, ‖right‖) before, the same after).
    - `conditions`: likewise the condition numbers, of the `rank` largest singular values; of several heads the largest.
      For gated units, the largest norm of a living unit divided by the smallest.
    - `change`: ‖new product − old product‖ / ‖old product‖: rounding to the type of the matrices.
    - `moved`: the distance travelled in parameter space, relative to the norm of the parameters.
    - `note`: what was noticed, or "".

    Norms are Frobenius. left is B, W_Q, W_O or down; right is A, W_K, W_V or up.
    """

    rank: int
    imbalance: Numbers
    norms: tuple[Numbers, Numbers]
    conditions: tuple[Numbers, Numbers]
    change: float
    moved: float
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """One head's share of a report: lengths that add as squares, `imbalance` not yet divided."""

    rank: int
    imbalance: Numbers
    norms: tuple[Numbers, Numbers]
    conditions: tuple[Numbers, Numbers]
    product: float
    change: float
    moved: float


@np.errstate(over="ignore", invalid="ignore")  # of squares, in norms that are then computed without them
def measure(
    before: tuple[Any, Any],
    after: tuple[Any, Any],
    rank: int | None = None,
    visible: Callable[[Any], Any] | None = None,
) -> Measured:
    """Measure a pair (left (m, r), right (r, n)) before and after, in float64, without a matrix of m columns or n rows.

    With [left, left'] = Q₁[R, R'] and [right*, right'*] = Q₂[S, S'], all norms and singular values are those of the
    small factors, and ‖left' right' − left right‖ = ‖R' S'* − R S*‖: one QR for each side, and no Gram matrix.

    **Arguments:** `rank`: of the product, by default as computed; `visible`: projects a moment map on the directions of
    the group.
    """
    r = before[0].shape[1]
    R: Any = np.linalg.qr(np.hstack([before[0], after[0]]), mode="r")
    S: Any = np.linalg.qr(np.hstack([adjoint(before[1]), adjoint(after[1])]), mode="r")
    lefts: list[Any] = [R[:, :r], R[:, r:]]
    rights: list[Any] = [adjoint(S[:, :r]), adjoint(S[:, r:])]
    moments = [adjoint(B) @ B - A @ adjoint(A) for B, A in zip(lefts, rights, strict=True)]
    seen = moments if visible is None else [visible(mu) for mu in moments]
    old = lefts[0] @ rights[0]
    if rank is None:
        chain = [rights[0], lefts[0]]
        rank = find_orbit(chain, product_svd(chain), None).rank
    moved = _length(float(safe_norm(new - given)) for given, new in zip(before, after, strict=True))
    return Measured(
        rank,
        (float(safe_norm(seen[0])), float(safe_norm(seen[1]))),
        (_both(safe_norm, lefts[0], rights[0]), _both(safe_norm, lefts[1], rights[1])),
        (_conditions(lefts[0], rights[0], rank), _conditions(lefts[1], rights[1], rank)),
        float(safe_norm(old)),
        float(safe_norm(lefts[1] @ rights[1] - old)) if moved else 0.0,
        moved,
    )


def report(parts: Sequence[Measured], note: str = "") -> PairReport:
    """Put the heads of one layer together."""
    norms = _gathered(_length, [part.norms for part in parts])
    conditions = _gathered(max, [part.conditions for part in parts])
    sizes = [math.hypot(*pair) for pair in norms]
    products = _length(part.product for part in parts)
    imbalances = [_length(part.imbalance[t] for part in parts) for t in (0, 1)]
    return PairReport(
        rank=min(part.rank for part in parts),
        imbalance=(_share(imbalances[0], sizes[0]), _share(imbalances[1], sizes[1])),
        norms=norms,
        conditions=conditions,
        change=_quotient(_length(part.change for part in parts), products),
        moved=_quotient(_length(part.moved for part in parts), sizes[0]),
        note=note,
    )


def _length(numbers: Iterable[float]) -> float:
    return math.hypot(*numbers)


def _gathered(
    function: Callable[[Iterable[float]], float], parts: Sequence[tuple[Numbers, Numbers]]
) -> tuple[Numbers, Numbers]:
    """Reduce the four numbers of many heads to four."""
    (a, b), (c, d) = ([function(part[t][side] for part in parts) for side in (0, 1)] for t in (0, 1))
    return (a, b), (c, d)


def _share(imbalance: float, size: float) -> float:
    """Divide by a squared length; NaN where squares are beyond the range of float64."""
    return _quotient(imbalance, size) / (size or 1.0) if math.isfinite(imbalance) else math.nan


def _quotient(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0


def _both(function: Callable[..., Any], left: Any, right: Any) -> Numbers:
    return float(function(left)), float(function(right))


def _conditions(left: Any, right: Any, rank: int) -> Numbers:
    return _both(lambda W: _condition(W, rank), left, right)


def _condition(W: Any, rank: int) -> float:
    """Divide the largest singular value by the `rank`-th."""
    if rank == 0:
        return 1.0
    values: Any = np.linalg.svd(W, compute_uv=False)
    return float(values[0] / values[rank - 1]) if values[rank - 1] > 0 else math.inf
