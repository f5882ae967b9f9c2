"""Balanced truncation: fewer states, with a bound on the error."""

import dataclasses
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from ..._validation import check_name
from ...errors import ParameterError
from ._read import System, read_system
from ._realization import Balancing, balance_system
from ._split import joined, split

_NAMED = 8
_EQUAL = 1e-10  # relative: the tenth digit is safe from the rounding of Gramians that are not ill-conditioned


@dataclasses.dataclass(frozen=True, eq=False)
class Truncation:
    """A reduced system and what is known of its error, `lower_bound` ≤ ‖H − H_r‖_∞ ≤ `error_bound`.

    It unpacks into its first two fields: `system, error_bound = truncate(…)`.

    - `system`: the reduced system, of the kind that was given; a `LinearSystem` if that were matrices.
    - `error_bound`: 2 Σ of the distinct Hankel singular values that were cut.
    - `lower_bound`: the largest of them: no stable system of this order is nearer.
    - `order`: the number of its states, `unstable` of which belong to the unstable part, which is kept.
    - `hsv`: all Hankel singular values of the stable part; `kept` of them were kept.
    """

    system: Any
    error_bound: float
    lower_bound: float
    order: int
    unstable: int
    hsv: Float[np.ndarray, " n"] = dataclasses.field(repr=False)

    @property
    def kept(self) -> int:
        """The number of states that are left of the stable part."""
        return self.order - self.unstable

    def __iter__(self) -> Iterator[Any]:
        return iter((self.system, self.error_bound))


def truncate(
    A: Any,
    Bm: Any = None,
    C: Any = None,
    D: Any = None,
    *,
    order: Any = None,
    tolerance: Any = None,
    dt: Any = None,
    unstable: str = "raise",
) -> Truncation:
    """Reduce a linear system to the balanced states with the largest Hankel singular values.

    With σ_r > σ_{r+1} the reduced system is stable and balanced, and

        σ_{r+1} ≤ ‖H − H_r‖_∞ ≤ 2 (σ_{r+1} + … + σ_n), where values that are equal, in ten digits, count once.

    It is what a truncated singular value decomposition is for a chain of two factors (see `realization`); there the
    error would be σ_{r+1}, here the lower bound need not be met, since H_r has a Hankel operator of its own.

    **Arguments:**

    - `A` (n, n), `Bm` (n, m), `C` (p, n), `D` (p, m), zero by default; or only one object with the attributes A, B, C,
      D and dt: `scipy.signal.StateSpace` or `dlti`, `control.StateSpace`, a `LinearSystem`.
    - `order`: the number of states to keep, or `tolerance`: the error ‖H − H_r‖_∞ that may be made, absolute, for the
      lowest order whose bound is not above it. One of the two.
    - `dt`: None for continuous time; True or the sampling time for discrete time.
    - `unstable`: "raise"; or "split", to keep the part of the unstable poles as it is and reduce the other. The order
      counts both.

    **Returns:** a `Truncation`, which unpacks into the reduced system, of the kind and type that was given, and the
    error bound. The static gain is not kept; the gain at infinite frequency (D) is.

    **Raises:** `UnstableSystemError`, which names the poles, for unstable ones unless they are split off, and for
    marginal ones always. `ParameterError` for an order that is not available: above that of a minimal realisation, or
    between equal Hankel singular values, with those that are; for both or neither of order and tolerance. Further
    those of `gramians`.

    **Source:** Moore (IEEE Trans. Automat. Control 26, 1981); the bound: Enns (CDC 1984), Glover (Int. J. Control 39,
    1984), and for discrete time Hinrichsen and Pritchard (Int. J. Control 51, 1990).

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> A, B, C = np.diag([-1.0, -2.0, -50.0]), np.ones((3, 1)), np.ones((1, 3))
    >>> reduced, error_bound = fb.balance.truncate(A, B, C, order=2)
    >>> reduced.A.shape, round(error_bound, 4)
    ((2, 2), 0.0143)
    >>> fb.balance.truncate(A, B, C, tolerance=0.02).order
    2

    ```
    """
    check_name("unstable", unstable, ("raise", "split"))
    system = read_system(A, Bm, C, D, dt)
    if (order is None) == (tolerance is None):
        raise ParameterError(
            f"order = {order!r} and tolerance = {tolerance!r}", "one of the two", "pass order=r, or tolerance=error"
        )
    stable, kept_apart = split(system) if unstable == "split" else (system, None)
    apart = 0 if kept_apart is None else len(kept_apart.A)
    found = _nothing(system) if stable is None else balance_system(stable)
    allowed = available(found)
    cut = _checked_order(order, apart, found, allowed) if tolerance is None else _lowest(tolerance, found, allowed)
    reduced = found.truncated(system if stable is None else stable, cut)
    reduced = reduced if kept_apart is None else joined(reduced, kept_apart)
    rest = found.values[cut:]
    return Truncation(
        system=system.rebuild([reduced.A, reduced.B, reduced.C, reduced.D]),
        error_bound=error_bound(found, cut),
        lower_bound=float(rest[0]) if len(rest) else 0.0,
        order=cut + apart,
        unstable=apart,
        hsv=found.values,
    )


def error_bound(found: Balancing, order: int) -> float:
    """Compute 2 Σ of the distinct Hankel singular values from number order + 1 on."""
    rest = found.values[order:]
    if not len(rest):
        return 0.0
    return float(2 * np.sum(rest[np.concatenate([[True], parted(rest)])]))


def available(found: Balancing) -> list[int]:
    """List the orders that do not cut between Hankel singular values that are equal to rounding."""
    values = np.append(found.values[: found.rank], 0.0)
    return [0, *(np.flatnonzero(parted(values, found.noise)) + 1).tolist()]


def parted(values: Float[np.ndarray, " n"], noise: float = 0.0) -> Any:
    """Tell neighbours that differ (n − 1,) from those that are equal: in ten digits, or within rounding."""
    return values[:-1] - values[1:] > np.maximum(noise, _EQUAL * values[:-1])


def _nothing(system: System) -> Balancing:
    """Balance a stable part that has no states."""
    n = len(system.A)
    return Balancing(np.zeros(0), 0, 0.0, np.zeros((0, n)), np.zeros((n, 0)))


def _checked_order(order: Any, apart: int, found: Balancing, allowed: list[int]) -> int:
    """Check an order of the whole system; return that of its stable part."""
    try:
        wanted = operator.index(order) - apart
    except TypeError as error:
        raise ParameterError(f"order = {order!r}", "a whole number of states", "pass an int") from error
    if wanted in allowed:
        return wanted
    held = f"; {apart} of them unstable, and kept" if apart else ""
    nearest = ", ".join(str(r + apart) for r in sorted(sorted(allowed, key=lambda r: abs(r - wanted))[:_NAMED]))
    few = "among them " if len(allowed) > _NAMED else ""
    if 0 < wanted < found.rank:
        a, b = found.values[wanted - 1 : wanted + 1]
        given = f"order = {order}, which cuts between the equal Hankel singular values {a:.6g} and {b:.6g}"
    else:
        minimal = "" if found.rank == len(found.values) else ", as many as a minimal realisation has"
        given = f"order = {order} of a system with {found.rank + apart} states{minimal}{held}"
    raise ParameterError(given, f"one of the orders that are possible, {few}{nearest}", "choose one of them")


def _lowest(tolerance: Any, found: Balancing, allowed: list[int]) -> int:
    """Find the lowest order whose error bound is within the tolerance, or what is left after rounding."""
    try:
        goal = float(tolerance)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"tolerance = {tolerance!r}", "a number", "pass the error that may be made") from error
    if not goal >= 0:
        raise ParameterError(f"tolerance = {tolerance}", "a number ≥ 0", "pass the error that may be made, ‖H − H_r‖_∞")
    return next((r for r in allowed if error_bound(found, r) <= goal), allowed[-1])
