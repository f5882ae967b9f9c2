"""What a server may show of a store: read-only, and nothing that leads out of its directory."""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import StoreError
from ..study import RunRecord, Store, StudyRecord
from ..study._layout import MARKER
from ..study._manifest import MANIFEST, RESULTS

if TYPE_CHECKING:
    import xarray


class OutsideError(StoreError):
    """Something in a store that is a link to what lies outside of it."""


class ServedStore(Store):
    """A store without what leads out of it: such studies and runs are left out of lists, and refused by name."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(os.path.abspath(path), read_only=True)
        self.told: dict[tuple[str, str], str] = {}
        self.check()

    def check(self) -> None:
        """Check that the store is there, and that its own directories lie in it.

        **Raises:** `StoreError`.
        """
        if not (self.path / MARKER).is_file():
            raise StoreError(
                f"the store {str(self.path)!r} is gone",
                "the directory with its runs",
                "restore it, or serve another one",
            )
        for name in (MARKER, "runs", "studies", "index.sqlite"):
            if self.leads_out(self.path / name):
                raise outside(f"{name!r} of the store {str(self.path)!r}")

    def leads_out(self, path: Path) -> bool:
        """Tell whether a path is a link to what lies outside of the store."""
        if not os.path.islink(path):
            return False
        root, real = os.path.realpath(self.path), os.path.realpath(path)
        return real != root and not real.startswith(root.rstrip(os.sep) + os.sep)

    def holds_run(self, run: str) -> bool:
        """Tell whether a run, if there is one of this name, lies in the store."""
        directory = self.path / "runs" / run
        return not any(map(self.leads_out, (directory, directory / MANIFEST, directory / RESULTS)))

    def records(self, study: Any = None, status: Any = None) -> list[RunRecord]:
        """List the runs that lie in the store."""
        return [self._served(record) for record in super().records(study, status) if self.holds_run(record.id)]

    def record(self, key: Any) -> RunRecord:
        """Find a run.

        **Raises:** `OutsideError` if it lies elsewhere; `StoreError`.
        """
        record = super().record(key)
        if not self.holds_run(record.id):
            raise outside(f"run {record.id}")
        return self._served(record)

    def studies(self) -> list[StudyRecord]:
        """List the studies that lie in the store."""
        return [study for study in super().studies() if self._holds_study(study)]

    def study(self, key: Any) -> StudyRecord:
        """Find a study.

        **Raises:** `OutsideError` if it lies elsewhere; `StoreError`.
        """
        study = super().study(key)
        if not self._holds_study(study):
            raise outside(f"study {study.id}")
        return study

    def check_tree(self, path: Path) -> None:
        """Check that nothing in a directory, itself included, leads out of the store.

        **Raises:** `OutsideError`.
        """
        found = [path, *(Path(top) / name for top, inner, files in os.walk(path) for name in (*inner, *files))]
        for one in found:
            if self.leads_out(one):
                raise outside(f"{one.relative_to(self.path)} of the store")

    def _holds_study(self, study: StudyRecord) -> bool:
        names = ("", "study.toml", "study.json", "points.json")
        return not any(self.leads_out(study.path / name) for name in names)

    def _served(self, record: RunRecord) -> RunRecord:
        return ServedRecord(**{one.name: getattr(record, one.name) for one in fields(RunRecord)}, _store=self)


@dataclass(frozen=True)
class ServedRecord(RunRecord):
    """A run whose results are opened only where all of their files lie in the store."""

    _store: ServedStore = field(repr=False, compare=False)

    def open(self, name: Any) -> "xarray.Dataset":
        """Open a result.

        **Raises:** `OutsideError` if a file of it lies elsewhere; `StoreError`.
        """
        if name in self.results:
            self._store.check_tree(self.directory / RESULTS / f"{name}.zarr")
        return super().open(name)


def outside(what: str) -> OutsideError:
    """Make the error for a link that leads out of the store."""
    return OutsideError(
        f"{what} is a link that leads out of the store",
        "what lies in the directory of the store",
        "copy it there, or serve the store that it leads to",
    )
