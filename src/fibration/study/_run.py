"""One run of a store in the hands of the process that computes it."""

import os
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from ..errors import StoreError
from ._files import flush, make_directory, partial, remove, writing
from ._machine import machine_facts
from ._manifest import RESULTS, Manifest, as_count, check_result_name
from ._plain import decode, encode_curves, encode_summary
from ._records import open_result
from ._zarr import write_dataset

if TYPE_CHECKING:
    import xarray

CHECKPOINTS = "checkpoints"
MACHINE = ("platform", "cpu cores", "devices", "backend", "float64")
LONGEST_ERROR = 20_000  # characters of a traceback, of which the last are kept


class RunWriter:
    """A run that this process holds: `id`, `point`, `directory`, `status`, and what writes into it.

    `Store.claim` makes it. `status` is "done" or "failed" if an earlier process ended the run, and "running" otherwise.
    """

    def __init__(self, directory: Path, manifest: Manifest, changed: Callable[[Manifest], None]) -> None:
        self.directory = directory
        self._manifest, self._changed = manifest, changed
        self._before, self._began = manifest.seconds, time.monotonic()

    @property
    def id(self) -> str:
        """The name of the run."""
        return self._manifest.id

    @property
    def point(self) -> dict[str, Any]:
        """The resolved point."""
        return decode(self._manifest.point)

    @property
    def status(self) -> str:
        """One of "running", "interrupted", "done" and "failed"."""
        return self._manifest.status

    @property
    def results(self) -> tuple[str, ...]:
        """The names of the results that are finished."""
        return tuple(sorted(self._manifest.results))

    @property
    def seconds(self) -> float:
        """The time spent on the run, over all resumes; it does not depend on the clock on the wall."""
        if self.status != "running":
            return self._manifest.seconds
        return self._before + time.monotonic() - self._began

    def checkpoint(self, name: Any) -> Path:
        """Give the directory for the checkpoint of one call of a solver; it is made if absent."""
        path = self.directory / CHECKPOINTS / check_result_name(name)
        with writing(path):
            make_directory(path.parent)
            return make_directory(path)

    def finished(self, name: Any) -> bool:
        """Tell whether a result was written to its end, by this process or an earlier one."""
        return check_result_name(name) in self._manifest.results

    def write(self, name: Any, dataset: Any) -> Path:
        """Write a result; it appears whole or not at all, and replaces one of the same name.

        **Raises:** `StoreError` if the run has ended, the name or the dataset cannot be stored, or the disk is full.
        """
        path = self.directory / RESULTS / f"{check_result_name(name)}.zarr"
        self._check_open()
        new, old = partial(path), partial(path.with_suffix(".old"))
        others = {other: digest for other, digest in self._manifest.results.items() if other != name}
        try:
            with writing(path):
                make_directory(path.parent)
                remove(new)
                digest = write_dataset(new, dataset)
                if os.path.lexists(path):
                    # A directory cannot be replaced in one step, so first nothing refers to the old one any more.
                    if self.finished(name):
                        self._commit(results=others)
                    remove(old)
                    os.rename(path, old)
                os.rename(new, path)
                flush(path.parent)
        finally:
            remove(new)
            remove(old)
        self._commit(results={**others, name: digest})
        return path

    def read(self, name: Any) -> "xarray.Dataset":
        """Read a finished result into memory."""
        return open_result(self.directory, self.results, name).load()

    def finish(self, summary: Any = None, curves: Any = None, *, gradients: Any = None) -> None:
        """End the run as "done".

        **Arguments:** `summary`: {name: number, text or None}; `curves`: {name: {"x": [...], "y": [...]}}, of which at
        most 128 points are kept; `gradients`: the gradient evaluations of the run, over all resumes.

        **Raises:** `StoreError` if they cannot be stored, or the run has ended already.
        """
        self._check_open()
        self._end("done", gradients, summary=encode_summary(summary), curves=encode_curves(curves))

    def fail(self, exception: BaseException, *, gradients: Any = None) -> None:
        """End the run as "failed", with the traceback; what it has written stays."""
        self._check_open()
        text = "".join(traceback.format_exception(exception))
        self._end("failed", gradients, error=text if len(text) <= LONGEST_ERROR else "…" + text[-LONGEST_ERROR:])

    def leave(self) -> None:
        """End the run as "interrupted" unless it has ended; `Store.claim` does this."""
        if self.status == "running":
            # If even this cannot be written: a run that says it is running and is not held counts as interrupted.
            with suppress(StoreError):
                self._end("interrupted", None)

    def _end(self, status: str, gradients: Any, **changes: Any) -> None:
        if gradients is not None:
            changes["gradients"] = as_count(gradients)
        self._commit(status=status, **changes)
        self._changed(self._manifest)

    def _commit(self, **changes: Any) -> None:
        """Write the manifest with changes; if that fails, nothing has changed."""
        new = replace(self._manifest, seconds=self.seconds, **changes)
        with writing(self.directory):
            new.save(self.directory)
        self._manifest = new

    def _check_open(self) -> None:
        if self.status != "running":
            raise StoreError(
                f"run {self.id} is {self.status!r}",
                "a run that has not ended",
                "look at `run.status` before computing; `store.retry` opens a failed run again",
            )


def describe_machine() -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell the versions and the machine of this process."""
    return _describe_machine(bool(jax.config.read("jax_enable_x64")))


@cache
def _describe_machine(x64: bool) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: ARG001
    facts = machine_facts()
    return {k: v for k, v in facts.items() if k not in MACHINE}, {k: v for k, v in facts.items() if k in MACHINE}
