"""The safetensors format: eight bytes of length, a header in JSON, and the tensors' bytes one after another.

A header is believed only after every number in it was compared with the file: nothing is allocated for a claim.
"""

import json
import math
import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from ..errors import (
    FileFormatError,
    FileTooLargeError,
    MissingFileError,
    PickledDataError,
    TruncatedFileError,
    UnknownNameError,
)
from ._atomic import replaced_file

FilePath = str | os.PathLike[str]

MAX_HEADER_BYTES = 100_000_000  # as of the library that defines the format
_LENGTH_BYTES = 8
_ALIGNMENT = 8
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F32": np.float32,
        "F64": np.float64,
        "C64": np.complex64,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
    }.items()
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: its type as the file calls it, its shape, and its first byte and the one after its last."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a file says that it holds, checked against its size: `entries` by name, `metadata`, and the file's bytes."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    size: int


class Tensors(Mapping[str, Any]):
    """The tensors of one safetensors file by name, as read-only NumPy arrays that are read when they are used.

    `metadata`: the texts that the file holds beside its tensors; `dtypes`: the tensors' types as the file names them.

    **Raises:** `FileFormatError` for a tensor of a type that this reader does not know; `KeyError` for an unknown name.

    ```python
    >>> import tempfile, numpy as np
    >>> import fibration as fb
    >>> path = tempfile.mkdtemp() + "/a.safetensors"
    >>> _ = fb.weights.write(path, {"w": np.array([1.0, 2.0])}, {"made by": "hand"})
    >>> tensors = fb.weights.read(path)
    >>> print(tensors["w"], tensors.metadata, tensors.dtypes)
    [1. 2.] {'made by': 'hand'} {'w': 'F64'}

    ```
    """

    path: Path
    metadata: dict[str, str]
    dtypes: dict[str, str]

    def __init__(self, path: FilePath) -> None:
        with opened(path) as file:
            self._header = read_header(file, path)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.path, self.metadata = Path(path), dict(self._header.metadata)
        self.dtypes = {name: entry.dtype for name, entry in self._header.entries.items()}

    def __getitem__(self, name: str) -> Any:
        """Look up one tensor; its bytes stay in the file until they are used."""
        entry = self._header.entries[name]
        dtype, count = known_dtype(entry, name, self.path), math.prod(entry.shape)
        if count == 0:
            return np.zeros(entry.shape, dtype)
        array = np.frombuffer(self._map, dtype, count, entry.start).reshape(entry.shape)
        return array if array.flags.aligned else array.copy()

    def __iter__(self) -> Iterator[str]:
        """Go through the names, in the order of the header."""
        return iter(self._header.entries)

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self._header.entries)

    def __repr__(self) -> str:
        return f"<{len(self)} tensors of {self.path.name}>"


def read(path: FilePath) -> Tensors:
    """Open a safetensors file: its tensors by name, each read only when it is used.

    The header is checked in full first: its length and every offset against the file's size, shapes against types,
    and that tensors neither overlap nor leave gaps. Nothing is unpickled, and no file can make it allocate more than
    the file itself holds. While the tensors are in use the file must not be cut short by others; one that is replaced,
    as `write` does, is safe.

    **Arguments:** `path`: one file.

    **Returns:** `Tensors`, a mapping from names to NumPy arrays; bfloat16 and the 8-bit types are those of `ml_dtypes`.

    **Raises:** `MissingFileError`; `FileFormatError` with what is wrong; `TruncatedFileError` for a file that ends too
    early; `FileTooLargeError` for a header beyond the format's limit of 100 MB; `PickledDataError` for a pickle.

    **Source:** the format as documented by the library `safetensors`.

    ```python
    >>> import tempfile, numpy as np
    >>> import fibration as fb
    >>> path = fb.weights.write(tempfile.mkdtemp() + "/a.safetensors", {"w": np.eye(2, dtype=np.float16)})
    >>> {name: (array.dtype.name, array.shape) for name, array in fb.weights.read(path).items()}
    {'w': ('float16', (2, 2))}

    ```
    """
    return Tensors(path)


def write(path: FilePath, tensors: Mapping[Any, Any], metadata: Mapping[Any, Any] | None = None) -> Path:
    """Write a safetensors file; one that exists is replaced in one step, and is never seen half written.

    **Arguments:** `path`: its directory must exist; `tensors`: arrays by name, NumPy or JAX, written as they are;
    `metadata`: texts by name.

    **Returns:** the file's path.

    **Raises:** `UnknownNameError` for an array of a type that the format does not have, or names and metadata that are
    not texts; `OutputDirectoryError` if the file cannot be written: nothing is left of it then.

    ```python
    >>> import tempfile, numpy as np
    >>> import fibration as fb
    >>> fb.weights.write(tempfile.mkdtemp() + "/a.safetensors", {"w": np.eye(2)}).name
    'a.safetensors'

    ```
    """
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    texts = dict(metadata or {})
    if not all(isinstance(text, str) for text in (*arrays, *texts, *texts.values())) or "__metadata__" in arrays:
        raise UnknownNameError(
            "names or metadata that are not texts, or a tensor called __metadata__",
            "texts, as the format holds nothing else",
            "write numbers as str(number)",
        )
    for name, array in arrays.items():
        if array.dtype.newbyteorder("=") not in NAMES:
            raise UnknownNameError(
                f"{name!r} of type {array.dtype}", f"one of {', '.join(map(str, NAMES))}", "convert it with `astype`"
            )
    # The widest types first, so that every tensor is aligned to its own type.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": texts} if texts else {}
    place = 0
    for name in order:
        array = arrays[name]
        dtype = NAMES[array.dtype.newbyteorder("=")]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [place, place + array.nbytes]}
        place += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    with replaced_file(Path(path)) as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for name in order:
            array = arrays[name]
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            file.write(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
    return Path(path)


def opened(path: FilePath) -> BinaryIO:
    """Open a regular file for reading.

    **Raises:** `MissingFileError`; `FileFormatError` for a directory, a pipe (which would block) or a device.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise FileFormatError(f"{os.fspath(path)!r} is {kind}", "one safetensors file", "name the file itself")
        return open(path, "rb")
    except OSError as error:
        raise MissingFileError(
            f"{os.fspath(path)!r} cannot be opened: {error.strerror or error}",
            "a file that exists and may be read",
            "check its path and permissions",
        ) from error


def read_header(file: BinaryIO, path: FilePath) -> Header:
    """Read the header of an open file, and check it in full.

    **Raises:** as of `read`.
    """
    size = os.fstat(file.fileno()).st_size
    first = file.read(_LENGTH_BYTES)
    _check_kind(first, path)
    if len(first) < _LENGTH_BYTES:
        raise TruncatedFileError(
            f"{os.fspath(path)!r} has {size} bytes", "eight bytes of length and a header", "write or download it again"
        )
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER_BYTES:
        raise FileTooLargeError(
            f"{os.fspath(path)!r} claims a header of {length:,} bytes",
            f"at most {MAX_HEADER_BYTES:,}",
            "check that it is a safetensors file; if it is, write or download it again",
        )
    if length > size - _LENGTH_BYTES:
        raise TruncatedFileError(
            f"{os.fspath(path)!r} claims a header of {length:,} bytes and has {size - _LENGTH_BYTES:,} after its start",
            "a header within the file",
            "write or download it again",
        )
    said = _parsed(file.read(length), path)
    metadata = said.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _broken(path, "its __metadata__ is not a table of texts")
    start = _LENGTH_BYTES + length
    entries = {name: _entry(name, value, start, path) for name, value in said.items()}
    _check_places(entries, start, size, path)
    return Header(entries, metadata, size)


def known_dtype(entry: Entry, name: str, path: FilePath) -> np.dtype[Any]:
    """Look up a tensor's type.

    **Raises:** `FileFormatError` if there is none of that name.
    """
    if entry.dtype not in DTYPES:
        raise FileFormatError(
            f"{name!r} in {os.fspath(path)!r} is of type {entry.dtype}", f"one of {', '.join(DTYPES)}", "leave it alone"
        )
    return DTYPES[entry.dtype]


def load(file: BinaryIO, entry: Entry, name: str, path: FilePath) -> Any:
    """Read one tensor into memory of its own: pages of a map would count for the whole file."""
    array = np.empty(entry.shape, known_dtype(entry, name, path))
    file.seek(entry.start)
    if file.readinto(array.reshape(-1).view(np.uint8).data) != entry.stop - entry.start:  # pyright: ignore[reportAttributeAccessIssue]
        raise TruncatedFileError(
            f"{os.fspath(path)!r} ended while {name!r} was read", "a file that nobody cuts short", "call again"
        )
    return array


def _check_kind(first: bytes, path: FilePath) -> None:
    """Name the files that are often met where a safetensors file was meant."""
    if first.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")) and first[2:] != bytes(6):
        raise PickledDataError(
            f"{os.fspath(path)!r} is a pickle or an archive of one, which is never loaded",
            "a safetensors file",
            "load it where you trust it, and save it with `safetensors.torch.save_file`",
        )
    if first == b"version ":
        raise FileFormatError(
            f"{os.fspath(path)!r} is a pointer of Git LFS", "the file it stands for", "fetch it: git lfs pull"
        )


def _parsed(text: bytes, path: FilePath) -> dict[str, Any]:
    """Parse the header's JSON: an object without duplicate names."""

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands twice")
        return found

    if not text.startswith(b"{"):
        raise _broken(path, "its header does not begin with a brace")
    try:
        said = json.loads(text.decode("utf-8"), object_pairs_hook=table)
        "".join(said).encode("utf-8")  # no halves of characters, which could not be printed
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header is not JSON that can be read: {str(error)[:120]}") from error
    return said


def _entry(name: str, value: Any, start: int, path: FilePath) -> Entry:
    """Check what is said of one tensor by itself."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _broken(path, f"{name!r} does not have just dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise _broken(path, f"{name!r} has dtype {dtype!r:.40}, shape {shape!r:.80} and data_offsets {offsets!r:.80}")
    if dtype in DTYPES:
        needed = math.prod(shape) * DTYPES[dtype].itemsize
        if offsets[1] - offsets[0] != needed:
            raise _broken(
                path,
                f"{name!r} has data_offsets {offsets} where its {dtype} numbers of shape {tuple(shape)} need "
                f"{needed:.4g} bytes",
            )
    return Entry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _naturals(values: Any) -> bool:
    """Tell a list of natural numbers that a file can mean: below 2^63, and no more of them than NumPy has axes."""
    return (
        isinstance(values, list)
        and len(values) <= 64
        and all(type(value) is int and 0 <= value < 2**63 for value in values)
    )


def _check_places(entries: dict[str, Entry], start: int, size: int, path: FilePath) -> None:
    """Check that tensors fill the file, one after another."""
    place = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.stop < entry.start:
            raise _broken(path, f"{name!r} ends before it begins")
        if entry.stop > size:
            raise TruncatedFileError(
                f"{os.fspath(path)!r} has {size:,} bytes, and {name!r} would end at byte {entry.stop:,}",
                "a file as long as its header says",
                "write or download it again",
            )
        if entry.start != place:
            raise _broken(path, f"{name!r} {'overlaps what is' if entry.start < place else 'leaves a gap'} before it")
        place = entry.stop
    if place != size:
        raise _broken(path, f"{size - place:,} bytes follow after its tensors")


def _broken(path: FilePath, how: str) -> FileFormatError:
    return FileFormatError(f"{os.fspath(path)!r}: {how}", "a valid safetensors file", "write or download it again")
