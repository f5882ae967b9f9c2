"""A study's axes, and where on them its runs are."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..plots._numbers import distinct, listed
from ..study import RunRecord
from ._records import cut, flattened, looked_up, words

STATUSES = ("done", "running", "interrupted", "failed", "damaged")
_MOST_AXES = 8  # of those found by comparing runs


@dataclass(frozen=True)
class Axis:
    """What varies: its dotted key, the names of its values, and for each record which of them it has, or -1.

    `told`: what each record has, in words; `numbers`: the values, if all are numbers.
    """

    key: str
    names: tuple[str, ...]
    places: np.ndarray
    told: tuple[str, ...]
    numbers: np.ndarray | None = None


@dataclass(frozen=True)
class Sweep:
    """The records of a study on its axes. `axes`: those with several values, without the seed; `total`: of points."""

    records: Sequence[RunRecord]
    axes: tuple[Axis, ...]
    seeds: Axis
    total: int

    @property
    def by_length(self) -> tuple[Axis, ...]:
        """The axes, that with most values first."""
        return tuple(sorted(self.axes, key=lambda axis: -len(axis.names)))

    @property
    def drawn(self) -> tuple[Axis, ...]:
        """The axes that plots are drawn over: the seeds where nothing else varies."""
        return self.by_length or ((self.seeds,) if len(self.seeds.names) > 1 else ())

    def where(self, index: int) -> str:
        """Tell in words which point a record is of."""
        axes = [*self.axes, *([self.seeds] if len(self.seeds.names) > 1 else [])]
        return ", ".join(f"{axis.key} = {axis.told[index]}" for axis in axes)


def sweep(axes: Mapping[str, Sequence[Any]], records: Sequence[RunRecord]) -> Sweep:
    """Place records on the axes of a study; if there are more than places, on what tells them apart."""
    axes = {key: tuple(values) for key, values in axes.items()}
    total = math.prod(len(values) for values in axes.values())
    if len(records) > max(total, 1):
        axes, total = _differing(records), len(records)
    made = {key: _axis(key, values, records) for key, values in axes.items()}
    seeds = made.pop("seed", None) or _axis("seed", _sorted({looked_up(r.point, "seed") for r in records}), records)
    varied = tuple(axis for axis in made.values() if len(axis.names) > 1)
    return Sweep(records, varied, seeds, max(total, len(records)))


def statuses(study: Sweep) -> str:
    """Say how many points are done, failed, and so on."""
    counts = Counter(record.status for record in study.records)
    told = [(counts[status], status) for status in STATUSES]
    told += [(count, status) for status, count in counts.items() if status not in STATUSES]
    told += [(study.total - len(study.records), "not begun")]
    told = [(count, status) for count, status in told if count]
    if study.total == 1:
        return f"The only point: {told[0][1]}." if told else "There is no point."
    if len(told) == 1:
        return f"All {study.total:,} points: {told[0][1]}."
    return f"Of {study.total:,} points {listed([_are(count, status) for count, status in told])}."


def _are(count: int, status: str) -> str:
    one = count == 1
    verbs = {"failed": "", "interrupted": "was " if one else "were ", "not begun": "has " if one else "have "}
    return f"{count:,} {verbs.get(status, 'is ' if one else 'are ')}{status}"


def _axis(key: str, values: Sequence[Any], records: Sequence[RunRecord]) -> Axis:
    found = [_found(record, key) for record in records]
    places = np.array([_place(values, one) for one in found], int)
    numeric = bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if numeric and not all(isinstance(v, int) for v in values):
        names = distinct([float(v) for v in values])
    else:
        names = [words(v) for v in values]
    told = tuple(names[i] if i >= 0 else cut(words(one)) for i, one in zip(places, found, strict=True))
    return Axis(key, tuple(names), places, told, np.array(values, float) if numeric else None)


def _found(record: RunRecord, key: str) -> Any:
    """Look up what a record has on an axis: in its point, or, where a point holds none, among its axes."""
    found = looked_up(record.point, key)
    return record.axes.get(key) if found is None else found


def _place(values: Sequence[Any], found: Any) -> int:
    """Find which value a point has; of several that agree, the one that says most."""
    agreeing = [i for i, value in enumerate(values) if _agrees(value, found)]
    return max(agreeing, key=lambda i: len(list(flattened(values[i], "value"))), default=-1)


def _agrees(asked: Any, found: Any) -> bool:
    """Compare a value of a study file with what a point made of it: defaults filled in, paths absolute."""
    if isinstance(asked, Mapping) and isinstance(found, Mapping):
        return all(key in found and _agrees(inner, found[key]) for key, inner in asked.items())
    if isinstance(asked, list | tuple) and isinstance(found, list | tuple):
        return len(asked) == len(found) and all(map(_agrees, asked, found))
    if isinstance(asked, str) and isinstance(found, str):
        return asked == found or found.endswith("/" + asked.removeprefix("./"))
    return isinstance(asked, bool) == isinstance(found, bool) and asked == found


def _differing(records: Sequence[RunRecord]) -> dict[str, tuple[Any, ...]]:
    """List what is not the same in all points, with its values."""
    points = [dict(flattened(record.point)) for record in records if record.point]
    keys = dict.fromkeys(key for point in points for key in point if key not in ("data.sha256",))
    varied: dict[str, tuple[Any, ...]] = {}
    for key in keys:
        values: list[Any] = []
        for point in points:
            if (found := point.get(key)) not in values:
                values.append(found)
        if len(values) > 1 and (key == "seed" or len(varied) < _MOST_AXES):
            varied[key] = _sorted(values)
    return varied


def _sorted(values: Any) -> tuple[Any, ...]:
    try:
        return tuple(sorted(values))
    except TypeError:
        return tuple(values)
