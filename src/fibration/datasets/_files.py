import io
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager

from fibration.errors import EmptyDataError, FibrationError, FileFormatError, FileTooLargeError, TruncatedFileError

FilePath = str | os.PathLike[str]

MAX_BYTES = 4 * 2**30
# One deflate code of two bits can stand for 258 bytes, so nothing expands further than this (zlib's technical notes).
DEFLATE_RATIO = 1032
_PIECE = 2**20


@contextmanager
def open_file(path: FilePath) -> Generator[tuple[io.BufferedReader, int], None, None]:
    """Open a regular, non-empty file and yield it with its size in bytes.

    **Raises:** `FileNotFoundError` and `PermissionError` as `open` does; `FileFormatError` for a directory, pipe or
    device (which would block or never end); `EmptyDataError` for a file of no bytes.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        raise FileFormatError(f"{os.fspath(path)} is {kind}", "the path of one file", "name the file itself")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise EmptyDataError(f"{os.fspath(path)} is empty", "a file with data", "check that it was written")
        yield file, size


@contextmanager
def reading(path: FilePath, kind: str) -> Generator[None, None, None]:
    """Turn whatever a parser raises on corrupt contents into a `FileFormatError` that names the file.

    Everything is caught because the parsers (zipfile, zlib, pandas, pyarrow) promise no list of what they raise.
    """
    name = os.fspath(path)
    try:
        yield
    except FibrationError:
        raise
    except MemoryError as error:
        raise FileTooLargeError(
            f"{name} does not fit in memory", "less data", "split the file or free memory"
        ) from error
    except EOFError as error:
        raise truncated(path, f"a complete {kind} file") from error
    except Exception as error:
        said = f"{type(error).__name__}: {error}"[:200].rstrip(".")
        raise FileFormatError(
            f"{name} cannot be read as {kind} ({said})", f"a valid {kind} file", "write or download it again"
        ) from error


def truncated(path: FilePath, needed: str) -> TruncatedFileError:
    """The error for a file that stops early; `needed` says what was promised."""
    return TruncatedFileError(f"{os.fspath(path)} ends too early", needed, "write or download it again")


def check_limit(path: FilePath, claimed: int, max_bytes: int) -> None:
    """Raise `FileTooLargeError` if `claimed` bytes exceed the caller's limit."""
    if claimed > max_bytes:
        raise FileTooLargeError(
            f"{os.fspath(path)} claims {claimed:,} bytes of data",
            f"at most max_bytes = {max_bytes:,}",
            "raise `max_bytes` if you trust the file",
        )


def read_exactly(stream: io.BufferedIOBase, count: int, path: FilePath) -> bytearray:
    """Read `count` bytes; the buffer grows with what arrives, so a claim that the file does not keep costs nothing."""
    buffer = bytearray()
    while len(buffer) < count:
        piece = stream.read(min(_PIECE, count - len(buffer)))
        if not piece:
            raise truncated(path, f"{count:,} bytes where {len(buffer):,} are left")
        buffer += piece
    return buffer


def check_ended(stream: io.BufferedIOBase, path: FilePath) -> None:
    """Raise `FileFormatError` if anything follows; reading on also makes zip and gzip verify their checksums."""
    if stream.read(1):
        raise FileFormatError(
            f"{os.fspath(path)} goes on after its data end", "nothing after the data", "write or download it again"
        )
