import ast
import io
import math
import os
import re
import struct
import zipfile
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fibration.datasets._dataset import Dataset, as_dataset
from fibration.datasets._files import (
    DEFLATE_RATIO,
    MAX_BYTES,
    FilePath,
    check_ended,
    check_limit,
    open_file,
    read_exactly,
    reading,
    truncated,
)
from fibration.errors import FileFormatError, FileTooLargeError, PickledDataError, UnknownNameError

_LONGEST_HEADER = 10_000  # numpy's own limit
_LARGEST_READ = 2**22


class _Header(NamedTuple):
    dtype: np.dtype[Any]
    fortran: bool
    shape: tuple[int, ...]
    length: int


class _Cautious:
    """A file that refuses one huge read: zipfile reads a table of contents of any claimed length in one go."""

    def __init__(self, file: io.BufferedReader, path: FilePath) -> None:
        self._file, self._path = file, path
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(min(size, _LARGEST_READ) if size >= 0 else _LARGEST_READ)
        if len(data) == _LARGEST_READ:
            raise FileTooLargeError(
                f"{os.fspath(self._path)} has a table of contents over {_LARGEST_READ:,} bytes",
                "an archive of fewer arrays",
                "save `inputs` and `targets` in a file of their own",
            )
        return data


def load_npz(
    path: FilePath, inputs: str = "inputs", targets: str = "targets", *, max_bytes: int = MAX_BYTES
) -> Dataset:
    """Load two arrays from an archive written by `numpy.savez` or `numpy.savez_compressed`.

    Pickled objects are refused, not loaded. Before any array is allocated, its claimed size is compared with the size
    of its entry, with what the compressed bytes could expand to, and with `max_bytes`.

    **Arguments:** `path`: the file; `inputs`: name of an array (N, …) of real numbers, with (N,) read as (N, 1);
    `targets`: name of an array (N,) of integers, which are classes, or (N, Q) or (N,) of real numbers; `max_bytes`: the
    most bytes that both arrays may take together.

    **Returns:** inputs (N, …), targets (N,) int64 or (N, Q) floating. Floating types are kept; integers become float64
    and are not scaled.

    **Raises:** `FileNotFoundError`; `UnknownNameError` if an array is missing; `PickledDataError`; `FileFormatError`
    (not an archive, encrypted, corrupt, not real numbers); `TruncatedFileError`; `FileTooLargeError`; `ShapeError`;
    `EmptyDataError`; `NonFiniteDataError`.

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from fibration.datasets import load_npz
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(Path(folder) / "data.npz", inputs=np.ones((4, 3)), targets=np.arange(4))
    ...     x, y = load_npz(Path(folder) / "data.npz")
    >>> x.shape, y
    ((4, 3), array([0, 1, 2, 3]))

    ```
    """
    with open_file(path) as (file, size):
        start = file.read(6)
        _refuse_other_formats(start, path)
        with reading(path, ".npz"):
            try:
                archive = zipfile.ZipFile(cast(BinaryIO, _Cautious(file, path)))
            except zipfile.BadZipFile as error:
                raise truncated(path, "a complete .npz archive") from error
            with archive:
                x, used = _load_member(archive, inputs, path, size, max_bytes)
                y, _ = _load_member(archive, targets, path, size, max_bytes - used)
    return as_dataset(x, y, os.fspath(path))


def _refuse_other_formats(start: bytes, path: FilePath) -> None:
    name = os.fspath(path)
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        raise PickledDataError(f"{name} is a Python pickle", "an .npz archive", "save the arrays with `numpy.savez`")
    if start == b"\x93NUMPY":
        raise FileFormatError(
            f"{name} is a single .npy array", "an .npz archive of two", "use `numpy.savez(file, inputs=…, targets=…)`"
        )
    if not b"PK\x03\x04".startswith(start[:4]):
        raise FileFormatError(f"{name} starts with {start!r}", "an .npz archive", "save it with `numpy.savez`")


def _load_member(
    archive: zipfile.ZipFile, name: str, path: FilePath, size: int, max_bytes: int
) -> tuple[NDArray[Any], int]:
    """One array of the archive, and the bytes it takes."""
    where = f"{os.fspath(path)}[{name!r}]"
    entries = {entry.filename: entry for entry in archive.infolist()}
    entry = entries.get(f"{name}.npy", entries.get(name))
    if entry is None:
        known = ", ".join(sorted(key.removesuffix(".npy") for key in entries)[:20])
        raise UnknownNameError(
            f"{os.fspath(path)} has no array {name!r}", f"one of: {known}", "name it with `inputs=` or `targets=`"
        )
    if entry.flag_bits & 1:
        raise FileFormatError(f"{where} is encrypted", "an archive without password", "save it with `numpy.savez`")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FileFormatError(
            f"{where} is compressed by method {entry.compress_type}",
            "an entry that is stored or deflated",
            "save it with `numpy.savez` or `numpy.savez_compressed`",
        )
    if entry.compress_size > size - entry.header_offset:
        raise truncated(path, f"{entry.compress_size:,} bytes for the entry {name!r}")
    ratio = 1 if entry.compress_type == zipfile.ZIP_STORED else DEFLATE_RATIO
    with archive.open(entry) as opened:
        stream = cast(io.BufferedIOBase, opened)
        header = _read_header(stream, where)
        claimed = math.prod(header.shape) * header.dtype.itemsize
        check_limit(path, claimed, max_bytes)
        if header.length + claimed > min(entry.file_size, ratio * entry.compress_size):
            raise truncated(path, f"{claimed:,} bytes for an array of shape {header.shape}")
        if header.length + claimed < entry.file_size:
            raise FileFormatError(
                f"{where} holds more than its shape {header.shape}", "nothing after the array", "save it again"
            )
        data = read_exactly(stream, claimed, path)
        check_ended(stream, path)
    flat = np.frombuffer(data, header.dtype)
    return (flat.reshape(header.shape[::-1]).T if header.fortran else flat.reshape(header.shape)), claimed


def _read_header(stream: io.BufferedIOBase, where: str) -> _Header:
    """Read the header of a .npy file, versions 1 to 3 (https://numpy.org/doc/stable/reference/generated/numpy.lib.format).

    NumPy's reader fetches a header of any claimed length before it checks the length, so it cannot be used here.
    """
    start = bytes(read_exactly(stream, 8, where))
    if start[:6] != b"\x93NUMPY":
        raise FileFormatError(f"{where} is not an array", "an array in .npy format", "save it with `numpy.savez`")
    if not 1 <= start[6] <= 3:
        raise FileFormatError(f"{where} is .npy version {start[6]}", "version 1, 2 or 3", "save it with this numpy")
    width = 2 if start[6] == 1 else 4
    (length,) = struct.unpack("<H" if width == 2 else "<I", read_exactly(stream, width, where))
    if length > _LONGEST_HEADER:
        raise FileTooLargeError(
            f"{where} has a header of {length:,} bytes", f"at most {_LONGEST_HEADER:,}", "save it again"
        )
    text = read_exactly(stream, length, where).decode("utf-8" if start[6] == 3 else "latin1")
    fields: object = ast.literal_eval(text.strip())
    if not isinstance(fields, dict) or set(cast(dict[object, object], fields)) != {"descr", "fortran_order", "shape"}:
        raise FileFormatError(f"{where} has the header {text[:100]!r}", "a .npy header", "save it with `numpy.savez`")
    known = cast(dict[str, Any], fields)
    descr, shape = known["descr"], known["shape"]
    if "O" in str(descr):
        raise PickledDataError(
            f"{where} holds pickled Python objects",
            "an array of numbers",
            "convert it with `astype(float)` and save again",
        )
    # The pattern also keeps out types of no or enormous width, such as V0 and S1000000000.
    if not isinstance(descr, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f(2|4|8|16))", descr):
        raise FileFormatError(
            f"{where} has elements of type {descr!r}"[:200], "real numbers", "convert and save it again"
        )
    if not isinstance(shape, tuple) or not isinstance(known["fortran_order"], bool):
        raise FileFormatError(f"{where} has the shape {shape!r}"[:200], "a tuple of whole numbers", "save it again")
    sizes = cast(tuple[object, ...], shape)
    if len(sizes) > 32 or not all(type(size) is int and 0 <= size < 2**63 for size in sizes):
        raise FileFormatError(f"{where} has the shape {shape!r}"[:200], "at most 32 whole numbers", "save it again")
    return _Header(np.dtype(descr), known["fortran_order"], cast(tuple[int, ...], shape), 8 + width + length)
