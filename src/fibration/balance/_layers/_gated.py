"""Gated units: the linear branch against the projection down."""

from typing import Any

import numpy as np

from ..._validation import check_strength
from ...errors import ShapeError
from .._arrays import namespace, widened
from ._heads import read_vector, torus_factor
from ._pair import PairReport, read_host
from ._report import Measured, report

_UNITS = 512  # that are taken to float64 at a time


def gated(up: Any, down: Any, b_up: Any = None, *, strength: float = 1.0) -> tuple[tuple[Any, Any, Any], PairReport]:
    """Balance the linear branch of gated units, such as SwiGLU's: down·(σ(gate x) ∘ (up x + b)) stays what it is.

    Row k of up, with its bias, times c_k and column k of down divided by c_k change nothing, for any c_k ≠ 0, whatever
    the gate is; the gate itself cannot be rescaled. c_k = (‖down_k‖/‖(up_k, b_k)‖)^½ makes the two norms equal, and
    their squares' sum lowest.

    **Arguments:** `up` (h, m), `down` (m', h), as torch stores them: (out, in); `b_up` (h,) or None; a bias of the
    output stays. `strength` from 0 to 1: differences of squared norms become (1 − strength) times what they were.

    **Returns:** `(up', down', b_up'), report`: arrays of the kinds and types given, and a `PairReport` with left down,
    right up; `change` compares the products down_k ⊗ up_k of all units, of which the function is made.

    Units of which one side is zero are left alone, and counted in the note. A few units at a time are taken to float64.

    **Raises:** `ShapeError`, `NonFiniteDataError`, `ParameterError`.

    **Source:** derived.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> (up, down, _), report = fb.balance.gated(np.array([[4.0], [0.0]]), np.array([[1.0, 2.0]]))
    >>> up.tolist(), down.tolist(), report.note
    ([[2.0], [0.0]], [[2.0, 2.0]], '1 of 2 units left alone: one side is zero')

    ```
    """
    check_strength(strength)
    given = [read_host(up, "up"), read_host(down, "down")]
    if given[0].shape[0] != given[1].shape[1]:
        raise ShapeError(
            f"up of shape {given[0].shape} and down of shape {given[1].shape}",
            "as many rows in up as columns in down, one for each hidden unit",
            "pass weights as torch stores them, (out, in)",
        )
    bias = read_vector(b_up, "b_up", len(given[0]))
    given.append(bias)
    arrays: list[Any] = [None if W is None else np.asarray(W) for W in given]
    rows, columns, shifts = arrays
    results: list[Any] = [None if W is None else np.empty_like(W) for W in arrays]
    measured = []
    for first in range(0, len(rows), _UNITS):
        units = slice(first, first + _UNITS)
        left, right = _widened(rows, columns, shifts, units)
        c = torus_factor(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1), strength)
        c = np.where(np.isnan(c), 1, c)[:, None]
        width = rows.shape[1]
        results[0][units] = (right[:, :width] * c).astype(rows.dtype)
        results[1][:, units] = (left / c).T.astype(columns.dtype)
        if bias is not None:
            results[2][units] = (right[:, width] * c[:, 0]).astype(shifts.dtype)
        measured.append(_measure((left, right), _widened(results[0], results[1], results[2], units), c))
    new_up, new_down, new_bias = (
        None if W is None else namespace(old).asarray(W) for W, old in zip(results, given, strict=True)
    )
    return (new_up, new_down, new_bias), _report(np.concatenate(measured, axis=1))


def _widened(up: Any, down: Any, bias: Any, units: slice) -> tuple[Any, Any]:
    """Take some units to float64: left and right, one row for each unit."""
    right = widened(up[units])
    if bias is not None:
        right = np.hstack([right, widened(bias[units])[:, None]])
    return widened(down[:, units]).T, right


def _measure(before: tuple[Any, Any], after: tuple[Any, Any], c: Any) -> Any:
    """Compute for each unit ‖left‖, ‖right‖ before, the same after, the squared change of left ⊗ right, and way.

    left' ⊗ right' − left ⊗ right = left' ⊗ b + e ⊗ c right with the rounding errors b = right' − c right and
    e = left' − left/c, so that nothing cancels.
    """
    (left, right), (new_left, new_right) = before, after
    b, e, f = new_right - c * right, new_left - left / c, c * right

    def dot(x: Any, y: Any) -> Any:
        return np.sum(x * y, axis=1)

    change = dot(new_left, new_left) * dot(b, b) + dot(e, e) * dot(f, f) + 2 * dot(new_left, e) * dot(b, f)
    way = dot(new_left - left, new_left - left) + dot(new_right - right, new_right - right)
    norms = [np.linalg.norm(W, axis=1) for W in (left, right, new_left, new_right)]
    return np.stack([*norms, np.maximum(change, 0), way])


def _report(units: Any) -> PairReport:
    """Sum over units (6, h)."""
    sizes, change, way = units[:4], units[4], units[5]
    alive = (sizes[0] > 0) & (sizes[1] > 0)
    part = Measured(
        rank=int(alive.sum()),
        imbalance=(_length(sizes[0] ** 2 - sizes[1] ** 2), _length(sizes[2] ** 2 - sizes[3] ** 2)),
        norms=((_length(sizes[0]), _length(sizes[1])), (_length(sizes[2]), _length(sizes[3]))),
        conditions=(
            (_spread(sizes[0, alive]), _spread(sizes[1, alive])),
            (_spread(sizes[2, alive]), _spread(sizes[3, alive])),
        ),
        product=_length(sizes[0] * sizes[1]),
        change=float(np.sqrt(change.sum())),
        moved=float(np.sqrt(way.sum())),
    )
    dead = len(alive) - part.rank
    return report([part], f"{dead} of {len(alive)} units left alone: one side is zero" if dead else "")


def _length(numbers: Any) -> float:
    return float(np.linalg.norm(numbers))


def _spread(sizes: Any) -> float:
    return float(sizes.max() / sizes.min()) if len(sizes) else 1.0
