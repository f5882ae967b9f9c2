"""The run store: a directory in which the runs of declared studies live.

```
STORE/
  store.json                          the format of the store
  index.sqlite                        a cache of the manifests, which may be deleted at any time
  studies/<study>/study.toml          the study file, as it was added
                  study.json          its contents, and the names of its runs
                  points.json         its resolved points
  runs/<run>/manifest.json            what is known about the run
             results/<name>.zarr      one `xarray.Dataset` each: `xarray.open_zarr(path)`
             checkpoints/<name>/      for the solvers
             lock                     held by the process that computes the run
```

The manifests are the truth. Each change is one file or directory that is written beside its place, brought to the disk
and renamed, so that a process may be killed at any instant; and no two processes write into one run, since each holds
the run's lock, which the system releases when it dies. Nothing depends on the clock on the wall.
"""

import os
import re
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import RunBusyError, StoreError
from ._files import Lock, make_directory, reading, sweep, writing
from ._index import Index, ReadOnlyIndex, Row
from ._layout import check_format, create_store
from ._manifest import (
    RESULTS,
    RUN_ID,
    Manifest,
    ManifestDamageError,
    encode_point,
    explain,
    load,
    result_directories,
    run_id,
    set_aside,
    signature,
)
from ._records import LOCK, RunRecord, read_row, record_of, row_of
from ._run import RunWriter, describe_machine
from ._studies import Studies, StudyRecord
from ._zarr import hash_directory

ALLOWED = ("running", "interrupted", "done", "failed", "damaged")


class Store:
    """A store of runs in a directory, which any number of processes may use at the same time.

    ```python
    >>> import tempfile, numpy as np, xarray as xr
    >>> store = Store(tempfile.mkdtemp(), create=True)
    >>> point = {"width": 8, "seed": 0, "axes": {"width": 8}}
    >>> study = store.add_study('name = "widths"', {"name": "widths"}, [point])
    >>> with store.claim(point, study=study.id) as run:
    ...     path = run.write("descent", xr.Dataset({"cost": ("time", np.array([1.0, 0.5]))}))
    ...     run.finish({"cost": 0.5}, {"cost": {"x": [0, 1], "y": [1.0, 0.5]}})
    >>> [(record.status, record.axes, record.summary) for record in store.records(study="widths")]
    [('done', {'width': 8}, {'cost': 0.5})]
    >>> store.record(run.id).open("descent")["cost"].values
    array([1. , 0.5])
    >>> store.close()

    ```

    **Arguments:** `path`: the directory; `create`: make a store there if the directory is absent or empty; `read_only`:
    write nothing, not even the index, so that it works on a file system that cannot be written to.

    **Raises:** `StoreError` if there is no store, if a newer Fibration wrote it, or if it cannot be made.
    """

    path: Path
    read_only: bool

    def __init__(self, path: str | os.PathLike[str], *, create: bool = False, read_only: bool = False) -> None:
        self.path, self.read_only = Path(path), read_only
        if create and not read_only:
            create_store(self.path)
        check_format(self.path)
        self._runs, self._studies = self.path / "runs", Studies(self.path / "studies")
        index = self.path / "index.sqlite"
        self._index = ReadOnlyIndex(index) if read_only else Index(index, self._read_all)

    def __reduce__(self) -> tuple[Any, ...]:
        """A store sent to another process is opened there again."""
        return _reopen, (str(self.path.absolute()), self.read_only)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}{', read_only=True' if self.read_only else ''})"

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the index go; the store stays usable."""
        self._index.close()

    def add_study(
        self, text: str, document: Mapping[str, Any], points: Sequence[Any], *, name: str | None = None
    ) -> StudyRecord:
        """Put a study into the store, or find it there if its contents and points are the same.

        **Arguments:** `text`: the study file; `document`: its contents; `points`: the resolved points; `name`: by
        default the document's "name".

        **Raises:** `StoreError` if something in them is not plain data, or nothing can be written.
        """
        self._check_writable("a study is added")
        return self._studies.add(text, document, points, document.get("name") if name is None else name)

    def studies(self) -> list[StudyRecord]:
        """List the studies, in the order in which they were added."""
        return self._studies.all()

    def study(self, key: Any) -> StudyRecord:
        """Find a study by its id, its name, or the beginning of its id.

        **Raises:** `StoreError` if there is none, or more than one.
        """
        return self._studies.find(key)

    @contextmanager
    def claim(self, point: Any, study: Any = None) -> Generator[RunWriter, None, None]:
        """Take hold of the run of a point, until the block ends or the process dies.

        The run goes on where an earlier process left it. One that is "done" or "failed" keeps that status and takes no
        writing. A block that is left without `finish` or `fail` leaves the run "interrupted".

        **Arguments:** `point`: the resolved point; `study`: the id of a study, to which the run then belongs.

        **Raises:** `RunBusyError` if another process, or another block of this one, holds the run; `StoreError`.
        """
        self._check_writable("a run is claimed")
        encoded, name = encode_point(point), run_id(point)
        belongs = None if study is None else self._studies.known(study)
        directory = self._runs / name
        with writing(directory):
            make_directory(directory)
            lock = Lock(directory / LOCK)
        try:
            with writing(directory):
                taken = lock.take()
            if not taken:
                raise RunBusyError(
                    f"run {name} is being computed by process {lock.holder()}",
                    "a run that no living process holds",
                    "wait for that process, or end it: the run then goes on from its last checkpoint",
                )
            run = RunWriter(directory, self._start(directory, encoded, belongs), self._note)
            try:
                yield run
            finally:
                run.leave()
        finally:
            lock.close()

    def records(self, study: Any = None, status: Any = None) -> list[RunRecord]:
        """List the runs that were claimed, in the order of their first claims.

        **Arguments:** `study`: only the points of this study (id, name or beginning of the id), and the runs that were
        claimed for it; `status`: only runs with this status.
        """
        if status is not None and status not in ALLOWED:
            raise StoreError(f"status {str(status)[:60]!r}", f"one of {', '.join(ALLOWED)}", "pass one of these")
        wanted = None if study is None else self.study(study)
        records = [record_of(row, f"{self._runs}/{run}") for run, row in self._rows().items()]
        if wanted is not None:
            points = set(wanted.points)
            records = [record for record in records if record.id in points or wanted.id in record.studies]
        if status is not None:
            records = [record for record in records if record.status == status]
        return sorted(records, key=lambda record: (record.sequence, record.id))

    def record(self, key: Any) -> RunRecord:
        """Find a run by its id, or by a beginning of it that no other run has.

        **Raises:** `StoreError` if there is none, or more than one.
        """
        if not isinstance(key, str) or not re.fullmatch(r"[0-9a-f]{1,16}", key):
            raise StoreError(
                f"the run {str(key)[:120]!r}",
                "up to 16 of the digits 0-9 and a-f",
                "see `fibration list`, or `records()`",
            )
        with reading(self._runs):
            names = [name for name in os.listdir(self._runs) if name.startswith(key) and RUN_ID.fullmatch(name)]
        found = [(name, row) for name in names[:100] if (row := self._row(name)) is not None]
        if len(found) != 1:
            raise StoreError(
                f"{len(found) or 'no'} runs in {str(self.path)!r} begin with {key!r}",
                f"one of {', '.join(name for name, _ in found[:10])}" if found else "a run that was claimed",
                "pass more digits" if found else "see `fibration list`, or `records()`",
            )
        name, row = found[0]
        return record_of(row, f"{self._runs}/{name}")

    def retry(self, run: Any) -> None:
        """Clear a failure, so that the next claim of the run goes on from its last checkpoint.

        **Raises:** `StoreError` if the run has not failed; `RunBusyError` if a process holds it.
        """
        self._check_writable("a run is opened again")
        record = self._find(run)
        with writing(record.directory):
            lock = Lock(record.directory / LOCK)
        try:
            if not lock.take():
                raise RunBusyError(
                    f"run {record.id} is held by process {lock.holder()}", "a run at rest", "wait for it"
                )
            manifest = self._load(record.directory)
            if manifest is None or manifest.status != "failed":
                raise StoreError(
                    f"run {record.id} is {'damaged' if manifest is None else manifest.status!r}",
                    "a run that failed",
                    "run its study again: only failed runs have to be cleared first",
                )
            with writing(record.directory):
                manifest = replace(manifest, status="interrupted", error=None)
                manifest.save(record.directory)
            self._note(manifest)
        finally:
            lock.close()

    def verify(self, run: Any) -> list[str]:
        """Compare the results of a run with the hashes in its manifest; one sentence for each thing that is wrong."""
        record = self._find(run)
        try:
            manifest = load(record.directory)
        except ManifestDamageError as damage:
            return [explain(damage)]
        listed = {} if manifest is None else manifest.results
        problems = [
            f"The result {name!r} is there, but not finished: it is not in the manifest."
            for name in result_directories(record.directory)
            if name not in listed
        ]
        for name, expected in listed.items():
            try:
                found = hash_directory(record.directory / RESULTS / f"{name}.zarr")
            except OSError as error:
                problems.append(f"The result {name!r} cannot be read: {error.strerror or error}.")
                continue
            if found != expected:
                problems.append(f"The files of the result {name!r} are not those that were written.")
        return problems

    def rebuild_index(self) -> int:
        """Make the index anew from the manifests, and count them.

        **Raises:** `StoreError` if it cannot be written.
        """
        self._check_writable("the index is rebuilt")
        self._index.clear()
        rows = self._index.rows()
        if not self._index.update([]):
            raise StoreError(
                f"{str(self.path / 'index.sqlite')!r} cannot be written",
                "a directory that can be written to",
                "make room or mend its permissions; the manifests are read meanwhile",
            )
        return len(rows)

    def _check_writable(self, what: str) -> None:
        if self.read_only:
            raise StoreError(
                f"{what} in a store that was opened with read_only=True",
                "a store that may be written to",
                f"open it with Store({str(self.path)!r})",
            )

    def _start(self, directory: Path, point: dict[str, Any], study: str | None) -> Manifest:
        """Read or make the manifest of a run whose lock is held, and clear away what a killed process left."""
        with writing(directory):
            sweep(directory)
            sweep(directory / RESULTS)
            old = self._load(directory)
            new = old or Manifest(directory.name, point)
            if old is None:
                set_aside(directory)
                with suppress(OverflowError, ValueError, OSError):  # a clock that shows no year
                    new.created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time()))
                number = self._index.next_sequence()
                new.sequence = len(os.listdir(self._runs)) if number is None else number
            if study is not None and study not in new.studies:
                new = replace(new, studies=[*new.studies, study])
            if new.status not in ("done", "failed"):
                versions, machine = describe_machine()
                new = replace(new, status="running", versions=versions, machine=machine)
            if new != old or old is None:
                new.save(directory)
                self._note(new)
        return new

    def _load(self, directory: Path) -> Manifest | None:
        try:
            return load(directory)
        except ManifestDamageError:
            return None

    def _note(self, manifest: Manifest) -> None:
        """Tell the index what the manifest of a run that this process holds now says."""
        mark = signature(self._runs / manifest.id)
        if mark is not None:
            self._index.update([row_of(manifest, manifest.contents(), mark)])

    def _rows(self) -> dict[str, Row]:
        """Give a row for each run, from the index where its signature is that of the manifest."""
        cached = self._index.rows()
        rows: dict[str, Row] = {}
        fresh: list[Row] = []
        for name in self._names():
            mark, row = signature(f"{self._runs}/{name}"), cached.get(name)
            if row is None or row.signature != mark:
                row = read_row(self._runs / name, mark)
                if row is not None:
                    fresh.append(row)
            if row is not None:
                rows[name] = row
        gone = cached.keys() - rows.keys()
        if fresh or gone:
            self._index.update(fresh, gone)
        return rows

    def _row(self, name: str) -> Row | None:
        mark, row = signature(self._runs / name), self._index.row(name)
        if row is not None and row.signature == mark:
            return row
        return read_row(self._runs / name, mark)

    def _names(self) -> list[str]:
        with reading(self._runs):
            return [name for name in os.listdir(self._runs) if RUN_ID.fullmatch(name)]

    def _read_all(self) -> Iterator[Row]:
        for name in self._names():
            row = read_row(self._runs / name, signature(self._runs / name))
            if row is not None:
                yield row

    def _find(self, run: Any) -> RunRecord:
        return self.record(run.id if isinstance(run, RunRecord) else run)


def _reopen(path: str, read_only: bool) -> Store:
    return Store(path, read_only=read_only)
