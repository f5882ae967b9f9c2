"""What a store tells about its runs; immutable, and read from the index where that is possible."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import StoreError
from ._files import held
from ._index import Row
from ._manifest import (
    RESULTS,
    Manifest,
    ManifestDamageError,
    explain,
    parse,
    read,
    result_directories,
    signature,
)
from ._plain import decode, dumps
from ._zarr import read_dataset

if TYPE_CHECKING:
    import xarray

LOCK = "lock"


@dataclass(frozen=True)
class RunRecord:
    """One run of a store, as its manifest tells.

    `status`: "running", "interrupted" (also a run whose process died), "done", "failed", or "damaged" (a manifest that
    cannot be read); `axes`: the values on the axes of the sweep; `studies`: those that claimed the run; `created`: the
    time of the first claim, UTC, only to be shown; `seconds`: the time in the process, over all resumes; `gradients`:
    the gradient evaluations that were reported; `summary`: one number or text for each name; `error`: the traceback of
    a failed run, or what to do about a damaged one; `results`: the names that `open` takes; `sequence`: its place in
    the order of first claims.
    """

    id: str
    status: str
    axes: dict[str, Any]
    seed: int | None
    studies: tuple[str, ...]
    created: str
    seconds: float
    gradients: int | None
    summary: dict[str, Any]
    error: str | None
    results: tuple[str, ...]
    sequence: int
    _directory: str = field(repr=False)
    _text: bytes = field(repr=False)

    @property
    def directory(self) -> Path:
        """The directory of the run."""
        return Path(self._directory)

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        return json.loads(self._text)

    @cached_property
    def point(self) -> dict[str, Any]:
        """The resolved point; empty if the manifest is damaged."""
        return decode(self._manifest["point"])

    @property
    def versions(self) -> dict[str, Any]:
        """The versions of Python and of the libraries."""
        return self._manifest["versions"]

    @property
    def machine(self) -> dict[str, Any]:
        """The machine: platform, devices, precision."""
        return self._manifest["machine"]

    @cached_property
    def curves(self) -> dict[str, dict[str, list[float]]]:
        """The curves: for each name "x" and "y", of at most 128 points."""
        return decode(self._manifest["curves"])

    def open(self, name: Any) -> "xarray.Dataset":
        """Open a result; its arrays are read when they are used.

        **Raises:** `StoreError` if there is no such result, or if it cannot be read.
        """
        return open_result(self.directory, self.results, name)


def open_result(directory: Path, names: Any, name: Any) -> "xarray.Dataset":
    """Open one of the results of a run's directory."""
    if name not in names:
        raise StoreError(
            f"no result {str(name)[:120]!r} in run {directory.name}",
            f"one of {', '.join(map(repr, names))}" if names else "a run with results; this one has none yet",
            "pass one of its `results`, or run the study",
        )
    return read_dataset(directory / RESULTS / f"{name}.zarr")


def read_row(directory: Path, mark: str | None) -> Row | None:
    """Read a run's manifest for the index; None if there is none. `mark`: its signature, taken before.

    A manifest that changes while it is read gets a signature that is out of date, and is read again the next time.
    """
    try:
        contents = read(directory)
        return None if contents is None else row_of(parse(contents, directory.name), contents, mark or "")
    except ManifestDamageError as damage:
        sentence = explain(damage)
    except OSError as error:
        sentence = f"The manifest cannot be read: {error.strerror or error}. Mend its permissions."
    damaged = Manifest(directory.name, {}, results=dict.fromkeys(result_directories(directory), ""), error=sentence)
    return row_of(damaged, damaged.contents(), mark or "", "damaged")


def row_of(manifest: Manifest, contents: bytes, mark: str, status: str | None = None) -> Row:
    """Make the row of a manifest."""
    facts = {
        "status": status or manifest.status,
        "axes": manifest.axes,
        "seed": manifest.seed,
        "studies": manifest.studies,
        "created": manifest.created,
        "seconds": float(manifest.seconds),
        "gradients": manifest.gradients,
        "summary": manifest.summary,
        "error": manifest.error,
        "results": sorted(manifest.results),
        "sequence": manifest.sequence,
    }
    return Row(manifest.id, mark, dumps(facts), contents, manifest.sequence)


def record_of(row: Row, directory: str) -> RunRecord:
    """Make the record of a row; a run that nobody holds any more is not running."""
    facts = json.loads(row.facts)
    if facts["status"] == "running" and not held(Path(directory, LOCK)):
        # Its process wrote the last manifest before it let the lock go: what is there now is final.
        row = read_row(Path(directory), signature(directory)) or row
        facts = json.loads(row.facts)
        if facts["status"] == "running" and not held(Path(directory, LOCK)):
            facts["status"] = "interrupted"
    facts["axes"], facts["summary"] = decode(facts["axes"]), decode(facts["summary"])
    facts["studies"], facts["results"] = tuple(facts["studies"]), tuple(facts["results"])
    return RunRecord(id=row.run, _directory=directory, _text=row.manifest, **facts)
