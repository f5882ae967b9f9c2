"""Runs studies into a store: every point that is not there yet, in this process or on a cluster."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from .._validation import check_name
from ..errors import FibrationError, RunBusyError, StoreError, StudyFileError
from ..solvers._options import ProgressCallback
from ._build import data_of
from ._document import StudyFile, identity, read_study
from ._manifest import run_id
from ._point import OverBudget, run_point
from ._run import CHECKPOINTS
from ._schema import Point
from ._store import Store
from ._studies import StudyRecord

OUTCOMES = ("done", "kept", "failed", "over budget", "busy", "lost")


@dataclass(frozen=True)
class StudyOutcome:
    """How a study went: for each point's run what became of it.

    `outcomes`: run -> "done" (now), "kept" (done before, not run again), "failed" (its traceback is in the store),
    "over budget" (its checkpoint is kept; `resume` goes on), "busy" (another process is at it) or "lost" (its worker
    died too often).
    """

    study: StudyRecord
    outcomes: Mapping[str, str]

    @property
    def complete(self) -> bool:
        """Whether every point is done."""
        return all(outcome in ("done", "kept") for outcome in self.outcomes.values())

    def __str__(self) -> str:
        counts = Counter(self.outcomes.values())
        told = ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name])
        return f"{self.study.name}: {len(self.outcomes)} points, {told}"


def run_study(
    study: str | PathLike[str] | StudyFile,
    store: str | PathLike[str] | Store,
    *,
    cluster: str | None = None,
    workers: int | None = None,
    retry: bool = False,
    mesh: Any = None,
    progress: Callable[[str], ProgressCallback] | None = None,
    each: Callable[[str, str], None] | None = None,
) -> StudyOutcome:
    """Run every point of a study that the store does not hold yet.

    A run that was killed goes on from its last checkpoint, and ends bit-identically. A point that fails is recorded
    with its traceback, and the others go on.

    **Arguments:**

    - `study`: a study file; `store`: a directory, made if it is absent.
    - `cluster`: `None` runs one point after another in this process; "local" starts a worker process for each core
      (`workers` of them), each with one thread, for which a script calls this under `if __name__ == "__main__":`;
      "tcp://host:port" uses the scheduler of a dask cluster whose workers see the same directories and have Fibration
      installed.
    - `retry`: also run points again that failed.
    - `mesh`: shards each problem's samples over devices; without a cluster.
    - `progress`: makes a progress callback for each flow or descent from its name, without a cluster; `each`: is called
      with every run's id and outcome.

    **Returns:** a `StudyOutcome`.

    **Raises:** `StudyFileError`, before anything runs, for keys and data that will not do; `MissingFileError`,
    `StoreError`; `ClusterError` if the cluster cannot be reached, or
    is gone: what was done is in the store.

    ```python
    if __name__ == "__main__":
        outcome = fb.study.run_study("study.toml", "store", cluster="local")
    ```
    """
    file = study if isinstance(study, StudyFile) else read_study(study)
    check_data(file)
    held = store if isinstance(store, Store) else Store(store, create=True)
    record = held.add_study(file.text, document(file), [identity(point) for point in file.points])
    todo = list(zip(record.points, file.points, strict=True))
    if cluster is None:
        found: Iterable[tuple[str, str]] = _one_by_one(held, record.id, todo, retry, mesh, progress)
    else:
        from ._sweep import on_cluster

        found = on_cluster(held, record.id, todo, retry, cluster, workers)
    outcomes: dict[str, str] = {}
    for run, outcome in found:
        outcomes[run] = outcome
        if each is not None:
            each(run, outcome)
    return StudyOutcome(record, outcomes)


def stored_study(store: Store, study: str) -> StudyFile:
    """Read a study from the text that the store kept of its file; pass it to `run_study` to go on with it.

    **Arguments:** `study`: its name, id, or the beginning of it.

    **Raises:** `StoreError` if there is no such study, or several; `MissingFileError` if a data file is gone;
    `StudyFileError` if one has changed since.
    """
    record = store.study(study)
    origin = str(record.document.get("origin", ""))
    file = read_study(record.path / "study.toml", base=Path(origin).parent if origin else None, origin=origin or None)
    if [run_id(identity(point)) for point in file.points] != record.points:
        where = ", ".join(sorted({str(point["data"]["path"]) for point in file.points if "path" in point["data"]}))
        raise StudyFileError(
            f"{where or 'the meaning of its keys'} has changed since the study {record.id} was begun",
            "the data that its points name by its hash",
            f"restore it, or `fibration run {shlex.quote(origin)}`, which begins another study",
        )
    return file


def check_data(file: StudyFile) -> None:
    """Read each of a study's data sets once, before anything is run.

    **Raises:** `StudyFileError` for data that cannot be read, or that do not fit the loss.
    """
    for point in {
        repr([point["data"], point["loss"], point["network"]["kind"]]): point for point in file.points
    }.values():
        try:
            data_of(Point.model_validate(dict(point)))
        except StudyFileError:
            raise
        except FibrationError as error:
            raise StudyFileError(f"{file.path.name}: [data]: {error.given}", error.needed, error.fix) from error


def document(file: StudyFile) -> dict[str, Any]:
    """Collect what the store keeps of a study beside its text: name, description, axes, and where it came from."""
    axes = {axis: list(values) for axis, values in file.axes.items()}
    return {
        "name": file.study.name,
        "description": file.study.description,
        "axes": axes,
        "origin": file.origin,
    }


def _one_by_one(
    store: Store,
    study: str,
    todo: list[tuple[str, Mapping[str, Any]]],
    retry: bool,
    mesh: Any,
    progress: Callable[[str], ProgressCallback] | None,
) -> Iterator[tuple[str, str]]:
    for run, point in todo:
        yield run, run_one(store, point, study, retry=retry, mesh=mesh, progress=progress)


def run_one(
    store: Store,
    point: Mapping[str, Any],
    study: str,
    *,
    retry: bool = False,
    mesh: Any = None,
    progress: Callable[[str], ProgressCallback] | None = None,
) -> str:
    """Run one point unless it is done; tell what became of it.

    A failure of the point is recorded and returned; one of the store is raised, since nothing more can be kept.
    """
    if jax.process_count() > 1:
        return _together(store, point, study, retry=retry, mesh=mesh, progress=progress)
    return _alone(store, point, study, retry=retry, mesh=mesh, progress=progress)


def _alone(store: Store, point: Mapping[str, Any], study: str, *, retry: bool, **options: Any) -> str:
    try:
        if retry:
            _clear_failure(store, point)
        with store.claim(identity(point), study=study) as run:
            if run.status in ("done", "failed"):
                return "kept" if run.status == "done" else "failed"
            return _attempt(point, run, **options)
    except RunBusyError:
        return "busy"


def _attempt(point: Mapping[str, Any], run: Any, **options: Any) -> str:
    try:
        run_point(point, run, **options)
    except OverBudget:
        return "over budget"
    except StoreError:
        raise
    except Exception as error:  # whatever it is, it belongs in the record
        run.fail(error)
        return "failed"
    return "done"


class _Follower:
    """A run in the hands of a process that computes along with the first one, which alone writes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def checkpoint(self, name: str) -> Path:
        return self.directory / CHECKPOINTS / name

    def finished(self, name: str) -> bool:  # noqa: ARG002
        return True

    def finish(self, *_: Any, **__: Any) -> None: ...

    def fail(self, *_: Any) -> None: ...


def _together(store: Store, point: Mapping[str, Any], study: str, *, retry: bool, **options: Any) -> str:
    """Run a point over several processes: the first one holds the run, and tells the others whether to compute."""
    agree = multihost_utils.broadcast_one_to_all
    if jax.process_index() > 0:
        if not agree(np.zeros((), bool)):
            return "kept"
        return _attempt(point, _Follower(store.path / "runs" / run_id(identity(point))), **options)
    if retry:
        _clear_failure(store, point)
    told = False
    try:
        with store.claim(identity(point), study=study) as run:
            open_run = run.status not in ("done", "failed")
            told = True
            agree(np.asarray(open_run))
            if not open_run:
                return "kept" if run.status == "done" else "failed"
            return _attempt(point, run, **options)
    except RunBusyError:
        return "busy"
    finally:
        if not told:
            agree(np.zeros((), bool))


def _clear_failure(store: Store, point: Mapping[str, Any]) -> None:
    if run_id(identity(point)) in {record.id for record in store.records(status="failed")}:
        store.retry(run_id(identity(point)))


def template(name: str) -> Path:
    """Find a study file that comes with the library: "sweep", "demo" or "demo-quick".

    **Raises:** `UnknownNameError`.
    """
    folder = Path(__file__).with_name("templates")
    check_name("name", name, sorted(path.stem for path in folder.glob("*.toml")))
    return folder / f"{name}.toml"
