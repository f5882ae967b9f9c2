"""Heads of an attention layer: which group leaves their function alone, and balancing under it, head by head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ..._validation import check_name
from ...errors import ParameterError, ShapeError
from .._arrays import widened
from ._pair import read_host, rounded, solve_pair
from ._report import PairReport, measure, report

Head = tuple[Any, Any]  # left (m, d), right (d, n): the function sees their product, or a rotation between them
_NAMED = 4  # notes that are spelled out


@dataclass(frozen=True)
class Group:
    """The group of one head of width d: all invertible matrices of the coordinates `free`, scalings of the `planes`.

    A plane is a set of coordinates that have one scale in common. Rotations within a plane commute with the rotation
    in front of it as well, but lengthen nothing, and are left out.
    """

    free: Int[np.ndarray, " f"]
    planes: Int[np.ndarray, "p w"]

    @classmethod
    def of_head(cls, d: int, rope: Any, rotary: int | None, *, diagonal: bool = False) -> "Group":
        """Choose by the rotary embedding; if `diagonal`, coordinates that are not rotated are scaled only."""
        turned = check_rope(d, rope, rotary)
        pairs = np.arange(turned).reshape(-1, 2) if rope == "interleaved" else np.arange(turned).reshape(2, -1).T
        rest = np.arange(turned, d)
        if not diagonal:
            return cls(rest, pairs)
        if turned and len(rest):
            pairs = np.concatenate([pairs, np.repeat(rest[:, None], 2, axis=1)])
        return cls(rest[:0], pairs if turned else rest[:, None])

    def solve(self, left: Any, right: Any, strength: float) -> tuple[Any, Any, str]:
        """Balance one head."""
        left, right, notes = left.copy(), right.copy(), []
        if len(self.free):
            (new_left, new_right), _, note = solve_pair(left[:, self.free], right[self.free], strength=strength)
            left[:, self.free], right[self.free] = new_left, new_right
            notes.append(note)
        if len(self.planes):
            sizes: list[Any] = [np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1)]
            p, q = (np.linalg.norm(size[self.planes], axis=1) for size in sizes)
            c = torus_factor(p, q, strength)
            dead = int(np.sum(np.isnan(c)))
            scale = np.ones(len(right))
            scale[self.planes] = np.where(np.isnan(c), 1, c)[:, None]
            left, right = left / scale, right * scale[:, None]
            notes.append(f"{dead} of {len(c)} scales left alone: one side is zero" if dead else "")
        return left, right, "; ".join(filter(None, notes))

    def visible(self, mu: Any) -> Any:
        """Project a moment map on the directions of the group that lengthen or shorten."""
        seen = np.zeros_like(mu)
        seen[np.ix_(self.free, self.free)] = mu[np.ix_(self.free, self.free)]
        diagonal = np.diag(mu).copy()
        for plane in map(np.unique, self.planes):
            seen[plane, plane] = diagonal[plane].mean()
        return seen


def torus_factor(
    left: Float[np.ndarray, " k"], right: Float[np.ndarray, " k"], strength: float
) -> Float[np.ndarray, " k"]:
    """Find c by which the right sides are multiplied, and the left ones divided, from their norms; NaN where one is 0.

    With p = ‖left‖, q = ‖right‖ and u = log(p/q), p² − q² = 2pq sinh u and pq stays, so that it becomes
    (1 − strength) times what it was for u' = arsinh((1 − strength) sinh u) and c = exp((u − u')/2) (derived).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.log(left) - np.log(right)
        return np.where((left > 0) & (right > 0), np.exp((u - np.arcsinh((1 - strength) * np.sinh(u))) / 2), np.nan)


def check_rope(d: int, rope: Any, rotary: int | None) -> int:
    """Count the rotated coordinates of a head."""
    if rope is True:
        raise ParameterError(
            "rope = True",
            "the layout of the rotation planes, which the weights do not show",
            'pass rope="half" if coordinate j turns with j + d/2 (Llama and others in the transformers library), '
            'rope="interleaved" if 2j turns with 2j + 1 (GPT-J, the original Llama weights)',
        )
    if rope is False or rope is None:
        if rotary is not None:
            raise ParameterError(f"rotary = {rotary} without rope", "the layout of the planes", 'pass rope="half", say')
        return 0
    check_name("rope", rope, ("half", "interleaved"))
    turned = d if rotary is None else rotary
    if not isinstance(turned, int | np.integer) or not 2 <= turned <= d or turned % 2:
        raise ParameterError(
            f"{turned!r} rotated coordinates in heads of width {d}",
            "an even number from 2 to the width of a head",
            "check heads, groups and rotary",
        )
    return int(turned)


def head_width(shapes: dict[str, int], key_name: str, heads: int, groups: int) -> int:
    """Find the width d of a head from the sizes {"W_Q": heads·groups·d, "W_K": heads·d}; `key_name` is the latter."""
    for name, count in (("heads", heads), ("groups", groups)):
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise ParameterError(f"{name} = {count!r}", "a positive integer", f"leave {name} out for 1")
    width = shapes[key_name] // heads
    wanted = {name: heads * width * (1 if name == key_name else groups) for name in shapes}
    if not width or wanted != shapes:
        raise ShapeError(
            f"sizes {shapes} for heads = {heads}, groups = {groups}",
            f"heads·d for {key_name} and heads·groups·d for the other",
            "count key heads in `heads`, and the query heads that share one in `groups`; weights are (out, in)",
        )
    return width


def read_vector(b: Any, name: str, size: int) -> Any:
    """Read a bias or gain of a size, or nothing."""
    if b is None:
        return None
    if getattr(b, "ndim", None) is None:
        b = np.asarray(b)
    if b.shape != (size,):
        raise ShapeError(f"{name} of shape {tuple(b.shape)}", f"shape ({size},)", "match it to the rows of its weight")
    return read_host(b[None], name)[0]


def widened_or_none(W: Any) -> Any:
    """Take an array to float64."""
    return None if W is None else widened(W)


def balance_heads(
    given: Sequence[Any],
    split: Callable[..., list[Head]],
    join: Callable[[list[Head]], Sequence[Any]],
    group: Group,
    strength: float,
) -> tuple[list[Any], PairReport]:
    """Balance every head, round, and measure what came out; arrays that are None stay None."""
    before = split(*map(widened_or_none, given))
    after, notes = [], []
    for number, (left, right) in enumerate(before):
        new_left, new_right, note = group.solve(left, right, strength) if strength else (left, right, "")
        after.append((new_left, new_right))
        if note:
            notes.append(f"head {number}: {note}" if len(before) > 1 else note)
    results = [None if old is None else rounded([new], [old])[0] for old, new in zip(given, join(after), strict=True)]
    final = split(*map(widened_or_none, results))
    parts = [measure(old, new, visible=group.visible) for old, new in zip(before, final, strict=True)]
    text = "; ".join(notes[:_NAMED]) + (f"; and {len(notes) - _NAMED} heads more" if len(notes) > _NAMED else "")
    return results, report(parts, text)
