"""Balancing on disk: one interface at a time, in a copy that appears when it is whole."""

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from threadpoolctl import threadpool_limits

from .._validation import check_name, check_strength
from ..errors import (
    FileFormatError,
    NonFiniteDataError,
    OutputDirectoryError,
    ParameterError,
    RankLossError,
    SingularProductError,
)
from ._atomic import finish_replacing, flush, flush_directory, publish, replace_all, unfinished, workshop, writing
from ._interface import Interface, Skipped
from ._report import BalancedPair, WeightsReport
from ._safetensors import FilePath, opened
from ._source import Source, check_places, open_source

ProgressCallback = Callable[[int, int, str], None]
GAUGES = ("nearest", "svd")
LEFT_OUT = (".git", ".cache")  # what a download leaves beside the weights: another copy of them
_COPY_BYTES = 2**24
_ANCHOR = "weights"  # names the workshop within a directory whose files are replaced


def balance_weights(
    path: FilePath,
    out: FilePath | None = None,
    *,
    strength: float = 1.0,
    gauge: str = "nearest",
    in_place: bool = False,
    progress: ProgressCallback | None = None,
) -> WeightsReport:
    """Balance the weights in files: a copy that computes the same, with balanced factors, one interface at a time.

    Recognised are (a) the directory of a LoRA adapter, by adapter_config.json; (b) the directory of a decoder such as
    Llama, Mistral or Qwen2, by config.json, in one file or in shards: queries with keys (the moduli of their rotated
    planes), values with outputs, the linear branch of gated units with what follows; (c) one safetensors file with the
    names of LoRA pairs. All other tensors and files are copied as they are; what cannot be balanced, such as pairs
    before training (B = 0), is skipped with the reason.

    **Arguments:**

    - `path`: the directory or file. Links to files are followed; links to directories are refused.
    - `out`: where the balanced copy is to appear, apart from the input: nothing may be there, or an empty directory.
    - `strength`, `gauge` ("nearest" or "svd", for LoRA pairs): as of `balance.pair`.
    - `in_place`: replace the input's files instead, once all new ones are on the disk; then pass no `out`.
    - `progress`: called as `progress(done, total, name)` before each interface, and at the end with name "".

    **Returns:** a `WeightsReport`: for every interface imbalance, norms and condition numbers before and after, and the
    change of the function, measured on the numbers as they were rounded to the file's type.

    All headers, names and shapes are checked before anything is written. The copy is made in a directory
    `.OUT.fibration-….partial` beside `out`, brought to the disk, and renamed in one step: a killed run leaves nothing
    else, and the next one removes it. Headers and metadata are kept byte by byte. In memory are only the largest
    interface, in float64, and what its algorithm needs beside.

    **Raises:** `MissingFileError`, `FileFormatError`, `TruncatedFileError`, `FileTooLargeError`, `PickledDataError` for
    the input's files; `ShapeError` for ranks that differ; `NonFiniteDataError` for NaN; `UnknownNameError` for an
    architecture that is not recognised; `ParameterError` for paths that are not apart, and if nothing can be balanced;
    `OutputDirectoryError` if writing fails, as on a full disk. After each of them the input is as it was, and nothing
    is at `out`.

    ```python
    >>> import tempfile, numpy as np
    >>> import fibration as fb
    >>> folder = tempfile.mkdtemp()
    >>> pair = {"q.lora_A.weight": np.array([[0.1, 0.0]]), "q.lora_B.weight": np.array([[8.0], [6.0]])}
    >>> path = fb.weights.write(folder + "/adapter.safetensors", pair)
    >>> report = fb.weights.balance_weights(path, folder + "/balanced.safetensors")
    >>> fb.weights.read(folder + "/balanced.safetensors")["q.lora_B.weight"].round(12).tolist(), report.pairs[0].kind
    ([[0.8], [0.6]], 'LoRA')

    ```
    """
    began = time.perf_counter()
    check_name("gauge", gauge, GAUGES)
    check_strength(strength)
    if (out is None) != in_place:
        raise ParameterError(
            "no output" if out is None else "an output and in_place=True",
            "a path for the balanced copy, or in_place=True to replace the input's files",
            "pass one of the two",
        )
    finished = _finish_earlier(Path(path), in_place)
    source = open_source(path)
    if not source.found.interfaces:
        raise _nothing(source, source.found.skipped)
    run = _Run(source, float(strength), gauge, progress)
    if in_place:
        target = source.path
        anchor = source.root / _ANCHOR
        with workshop(anchor) as place:
            _check_room(source.root, sum((source.root / name).stat().st_size for name in run.files))
            for name in run.files:
                _copy_file(source.root / name, place / name)
            run.patch(place)
            with writing(target):
                for name in run.files:
                    shutil.copymode(source.root / name, place / name)
                replace_all(place, anchor)
    else:
        target = Path(os.path.abspath(Path(out or ""))) if Path(out or "").is_symlink() else Path(out or "").resolve()
        check_places(source.path, target)
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        with workshop(target) as place:
            new = place / target.name
            if source.path.is_dir():
                _copy_tree(source.path, new)
                run.patch(new)
            else:
                _check_room(place, source.path.stat().st_size)
                _copy_file(source.path, new)
                run.patch(place, {source.path.name: new})
            with writing(target):
                publish(new, target)
    notes = (f"finished an earlier run that was killed: {finished} files",) if finished else ()
    return WeightsReport(
        source=str(path),
        out=str(target),
        kind=source.kind,
        strength=float(strength),
        gauge=gauge,
        pairs=tuple(run.pairs),
        skipped=(*source.found.skipped, *run.skipped),
        notes=(*source.found.notes, *notes),
        tensors=len(source.places),
        bytes=run.bytes,
        seconds=time.perf_counter() - began,
    )


class _Run:
    """One run over all interfaces: reads from the source, writes into its copy, and collects what was done."""

    def __init__(self, source: Source, strength: float, gauge: str, progress: ProgressCallback | None) -> None:
        self.source, self.strength, self.gauge, self.progress = source, strength, gauge, progress
        self.files = sorted({name for one in source.found.interfaces for name in source.files(one)})
        self.pairs: list[BalancedPair] = []
        self.skipped: list[Skipped] = []
        self.bytes = 0

    def patch(self, place: Path, elsewhere: dict[str, Path] | None = None) -> None:
        """Balance all interfaces, and write them over the copies of the files in `place`.

        **Raises:** `NonFiniteDataError`; `ParameterError` if nothing could be balanced; `OutputDirectoryError`.
        """
        interfaces = self.source.found.interfaces
        paths = {name: (elsewhere or {}).get(name, place / name) for name in self.files}
        with ExitStack() as stack:
            if all(interface.kind == "LoRA" for interface in interfaces):
                # Matrices of few columns: threads only wait for one another, for seconds where cores are shared.
                stack.enter_context(threadpool_limits(1))
            read = {name: stack.enter_context(opened(self.source.root / name)) for name in self.files}
            written: dict[str, BinaryIO] = {}
            with writing(place):
                for name, path in paths.items():
                    written[name] = stack.enter_context(path.open("r+b"))
            for number, interface in enumerate(interfaces):
                self._report(number, interface.name)
                for name, new in zip(interface.tensors, self._balanced(interface, read), strict=False):
                    file, entry = self.source.places[name]
                    with writing(place):
                        put(written[file], entry.start, new)
                    self.bytes += entry.stop - entry.start
            with writing(place):
                for file in written.values():
                    flush(file)
        if not self.pairs:
            raise _nothing(self.source, (*self.source.found.skipped, *self.skipped))
        self._report(len(interfaces), "")

    def _report(self, done: int, name: str) -> None:
        if self.progress is not None:
            self.progress(done, len(self.source.found.interfaces), name)

    def _balanced(self, interface: Interface, files: dict[str, BinaryIO]) -> list[Any]:
        """Balance one interface; an empty list leaves it as it is."""
        given = self.source.arrays(interface, files)
        for name, array in zip(interface.tensors, given, strict=True):
            _check_finite(array, name, self.source.root / self.source.places[name][0])
        try:
            new, report = interface.balance(given, self.strength, self.gauge)
        except (ParameterError, RankLossError, SingularProductError) as error:
            return self._skip(interface, error.given)
        for name, old, array in zip(interface.tensors, given, new, strict=True):
            if array.dtype != old.dtype or array.shape != old.shape:  # it would damage the file
                raise FileFormatError(
                    f"{name!r} came back as {array.dtype} of shape {array.shape}",
                    f"{old.dtype} of {old.shape}",
                    "report it",
                )
            if not np.isfinite(array).all():
                return self._skip(interface, f"balanced, it is beyond the range of {old.dtype}")
        left, right = given[interface.left].shape, given[interface.right].shape
        self.pairs.append(
            BalancedPair(
                **vars(report),
                name=interface.name,
                kind=interface.kind,
                module=interface.module,
                dtype=self.source.places[interface.tensors[0]][1].dtype,
                shapes=(left, right),
            )
        )
        return new

    def _skip(self, interface: Interface, reason: str) -> list[Any]:
        self.skipped.append(Skipped(interface.name, reason))
        return []


def put(file: BinaryIO, place: int, array: Any) -> None:
    """Write an array's numbers over those at a place of a file."""
    file.seek(place)
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _finish_earlier(path: Path, in_place: bool) -> int:
    """Finish what an in-place run had decided when it was killed, before the files are looked at."""
    root = path.resolve() if path.is_dir() else path.parent.resolve()
    anchor = root / _ANCHOR
    left = unfinished(anchor)
    if left and not in_place:
        raise FileFormatError(
            f"an in-place run was killed in {str(root)!r} while it replaced files; the others are in {left[0].name!r}",
            "files that belong together",
            "run it in place again, which finishes it",
        )
    with writing(root):
        return finish_replacing(anchor) if left else 0


def _check_finite(array: Any, name: str, path: Path) -> None:
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise NonFiniteDataError(
            f"{name!r} in {str(path)!r} holds {bad:,} numbers that are NaN or infinite",
            "finite weights",
            "go back to the last checkpoint in which they are finite",
        )


def _nothing(source: Source, skipped: tuple[Skipped, ...]) -> ParameterError:
    reasons = list(dict.fromkeys(one.reason for one in skipped))
    return ParameterError(
        f"nothing in {str(source.path)!r} can be balanced: {'; '.join(reasons[:3])}",
        "at least one pair that can",
        "an adapter before training has B = 0: train it first; otherwise leave it as it is",
    )


def _tree(root: Path) -> Iterator[tuple[Path, bool]]:
    """Go through what is to be copied: relative paths, and whether each is a directory.

    **Raises:** `FileFormatError` for links to directories or to nothing, pipes and devices.
    """
    for one in sorted(root.iterdir()):
        if one.name in LEFT_OUT or (one.name.startswith(f".{_ANCHOR}.fibration-") and one.is_dir()):
            continue
        if one.is_dir() and not one.is_symlink():
            yield one, True
            yield from _tree(one)
        elif one.is_file() and stat.S_ISREG(one.stat().st_mode):
            yield one, False
        else:
            kind = "a link to a directory or to nothing" if one.is_symlink() else "neither a file nor a directory"
            raise FileFormatError(
                f"{str(one)!r} is {kind}", "files, and links to files", "move it out of the directory"
            )


def _copy_tree(source: Path, new: Path) -> None:
    """Copy a directory: the contents of files, links followed."""
    listed = list(_tree(source))
    _check_room(new.parent, sum(path.stat().st_size for path, is_directory in listed if not is_directory))
    with writing(new):
        new.mkdir()
    for path, is_directory in listed:
        place = new / path.relative_to(source)
        if is_directory:
            with writing(place):
                place.mkdir()
        else:
            _copy_file(path, place)
    with writing(new):
        for path, is_directory in listed:
            if is_directory:
                flush_directory(new / path.relative_to(source))


def _copy_file(source: Path, new: Path) -> None:
    """Copy a file's contents, and bring them to the disk."""
    with opened(source) as old, writing(new), new.open("xb") as file:
        shutil.copyfileobj(old, file, _COPY_BYTES)
        flush(file)


def _check_room(place: Path, needed: int) -> None:
    """Say before copying, not after it, that the disk is too small."""
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OutputDirectoryError(
            f"{needed:,} bytes are to be written, and the disk of {str(place.parent)!r} has {free:,} left",
            "room for the copy",
            "make room, or choose an output on another disk",
        )
