"""What is to be seen of a store without opening a run: its studies, its runs, and what changed."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

from ..study import RunRecord, StudyRecord
from ..study._manifest import MANIFEST, RUN_ID
from ._records import cut, looked_up, words
from ._served_store import ServedStore, outside

STATUSES = ("done", "running", "interrupted", "failed", "damaged")
Route = tuple[str, ...]  # ("index",), ("study", id), ("run", id) or ("compare", id, id)


@dataclass(frozen=True)
class SeenRun:
    """One run in a list. `about`: its axes and seed; `mark` differs after every change of its manifest or status."""

    id: str
    status: str
    about: str
    mark: str


@dataclass(frozen=True)
class SeenStudy:
    """One study in a list, with those of its runs that were begun."""

    id: str
    name: str
    points: int
    runs: tuple[SeenRun, ...]

    @cached_property
    def counts(self) -> dict[str, int]:
        """The number of runs by status, those that were not begun included."""
        return count(self.runs) | {"not begun": max(self.points - len(self.runs), 0)}


@dataclass(frozen=True)
class Look:
    """All that is to be seen of a store without opening a run, at one time; small, so that it can be kept.

    `loose`: the runs that belong to no study; `outside`: the runs that were left out because they lie elsewhere;
    `changed`: the time of the last change of a manifest, in seconds since 1970.
    """

    studies: tuple[SeenStudy, ...]
    runs: dict[str, SeenRun]
    loose: tuple[SeenRun, ...]
    outside: tuple[str, ...]
    changed: float | None

    def study(self, name: str) -> SeenStudy | None:
        """Give a study by its id."""
        return next((study for study in self.studies if study.id == name), None)

    def studies_of(self, run: str) -> list[SeenStudy]:
        """List the studies that a run belongs to."""
        return [study for study in self.studies if any(one.id == run for one in study.runs)]

    def state(self, route: Route) -> str | None:
        """Describe all that a page depends on, in 32 digits; None if there is no such page.

        **Raises:** `OutsideError` for the page of a run that lies elsewhere.
        """
        kind, *ids = route
        for name in set(ids) & set(self.outside):
            raise outside(f"run {name}")
        if kind == "index":
            studies = [f"{study.id} {study.name} {study.points}" for study in self.studies]
            return _digest([*studies, *(run.mark for run in self.runs.values()), str(len(self.outside))])
        if kind == "study":
            study = self.study(ids[0])
            return None if study is None else _digest([study.name, *(run.mark for run in study.runs)])
        if not all(name in self.runs for name in ids):
            return None
        return _digest([self.runs[name].mark for name in ids])

    def told(self, route: Route) -> str:
        """Say in a few words how far what a page shows is."""
        kind, *ids = route
        if kind == "index":
            return listed(count(tuple(self.runs.values()))) or "no runs yet"
        if kind == "study":
            study = self.study(ids[0])
            return "" if study is None else f"{listed(study.counts)}, of {study.points}"
        return ", ".join(self.runs[name].status for name in ids if name in self.runs)


def look(store: ServedStore) -> Look:
    """Look at a store.

    **Raises:** `StoreError` or another `OSError` if it is gone or cannot be read.
    """
    store.check()
    elsewhere, facts = _manifests(store)  # before they are read: what changes in between is seen the next time
    records = {record.id: record for record in store.records() if record.id in facts}
    claims: dict[str, list[str]] = {}
    for record in records.values():
        for study in record.studies:
            claims.setdefault(study, []).append(record.id)
    told: dict[tuple[str, str], str] = {}

    def seen(name: str, axes: Callable[[], tuple[str, ...]], study: str = "") -> SeenRun:
        about = store.told.get((study, name))
        told[study, name] = _about(records[name], axes()) if about is None else about
        mark = f"{name} {records[name].status} {facts[name]}"
        return SeenRun(name, records[name].status, told[study, name], mark)

    studies: list[SeenStudy] = []
    for study in store.studies():
        axes = cache(partial(_axes, study))
        names = [name for name in dict.fromkeys([*study.points, *claims.get(study.id, [])]) if name in records]
        runs = tuple(seen(name, axes, study.id) for name in names)
        studies.append(SeenStudy(study.id, study.name, len(study.points), runs))
    every = {name: seen(name, lambda: ()) for name in records}
    loose = every.keys() - {run.id for study in studies for run in study.runs}
    store.told = told  # a run's axes never change, since it is named after them
    changed = max((stamp for _, stamp, _ in facts.values() if stamp), default=None)
    return Look(
        tuple(studies),
        every,
        tuple(run for name, run in every.items() if name in loose),
        tuple(elsewhere),
        None if changed is None else changed / 1e9,
    )


def count(runs: tuple[SeenRun, ...]) -> dict[str, int]:
    """Count runs by status."""
    counts = Counter(run.status for run in runs)
    return {status: counts[status] for status in STATUSES}


def listed(counts: dict[str, int]) -> str:
    """List the counts that are not zero, as "3 done, 1 running"."""
    return ", ".join(f"{number} {status}" for status, number in counts.items() if number)


def _manifests(store: ServedStore) -> tuple[list[str], dict[str, tuple[int, int, int]]]:
    """Give the runs that lie elsewhere, and what the file system says about the manifests of the others."""
    elsewhere: list[str] = []
    facts: dict[str, tuple[int, int, int]] = {}
    for name in filter(RUN_ID.fullmatch, os.listdir(store.path / "runs")):
        if not store.holds_run(name):
            elsewhere.append(name)
            continue
        try:
            found = os.stat(store.path / "runs" / name / MANIFEST)
        except OSError:  # not begun yet, or unreadable, which its record then says
            facts[name] = (0, 0, 0)
        else:
            facts[name] = (found.st_ino, found.st_mtime_ns, found.st_size)
    return elsewhere, facts


def _axes(study: StudyRecord) -> tuple[str, ...]:
    """List what varies in a study, by dotted keys."""
    try:
        axes = study.document["axes"]
        return tuple(str(key) for key, values in axes.items() if len(values) > 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a study that was written by hand
        return ()


def _about(record: RunRecord, axes: tuple[str, ...]) -> str:
    """Tell a run from the others of its study: its axes, or those that it has by itself and its seed."""
    found = {key: _value(record, key) for key in axes}
    found = found or {**record.axes, **({} if record.seed is None else {"seed": record.seed})}
    return cut(", ".join(f"{key} = {words(value)}" for key, value in found.items()), 160)


def _value(record: RunRecord, key: str) -> Any:
    found = looked_up(record.point, key)
    return record.axes.get(key) if found is None else found


def _digest(lines: list[str]) -> str:
    return hashlib.blake2b("\n".join(lines).encode("utf-8", "replace"), digest_size=16).hexdigest()
