"""Files and directories of a store: whole or absent, whatever the process dies of, and locks that die with it.

Everything is made beside the place where it is to be, under a name that begins with a dot and ends in `.partial`,
brought to the disk, and renamed. What a killed process left under such a name is removed by the next one that holds the
lock.
"""

import errno
import os
import random
import shutil
import time
from collections.abc import Collection, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from ..errors import RunBusyError, StoreError

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None

PARTIAL = ".partial"

MEANINGS = {
    errno.ENOSPC: ("the disk is full", "room on the disk", "make room"),
    errno.EDQUOT: (
        "the quota on this disk is used up",
        "room within the quota",
        "make room, or ask for a larger quota",
    ),
    errno.EFBIG: ("a file would grow past the size that is allowed here", "larger files", "raise `ulimit -f`"),
    errno.EROFS: ("the file system is read-only", "a disk that can be written to", "copy the store to another disk"),
    errno.EACCES: ("permission is denied", "the right to write there", "mend the permissions"),
    errno.EPERM: ("the operation is not permitted", "the right to write there", "mend the permissions"),
    errno.ENOLCK: ("the file system has no locks", "a file system with locks", "keep the store on a local disk"),
    errno.ENOTSUP: ("the file system has no locks", "a file system with locks", "keep the store on a local disk"),
}


@contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Turn what the operating system says against writing into a `StoreError` that says what its number means."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        meaning, needed, fix = MEANINGS.get(
            error.errno or 0, (error.strerror or str(error), "a directory that can be written to", "mend that")
        )
        raise StoreError(
            f"{str(path)!r} cannot be written: {meaning}",
            needed,
            f"{fix}, then run the same again: what was finished before is kept",
        ) from error


@contextmanager
def reading(path: Path) -> Generator[None, None, None]:
    """Turn what the operating system says against reading a directory of a store into a `StoreError`."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(
            f"{str(path)!r} cannot be read: {error.strerror or error}",
            "the directory of a store",
            "restore it, or mend its permissions",
        ) from error


def partial(path: Path) -> Path:
    """Give the temporary name beside `path`; only one process at a time may make the same `path`."""
    return path.with_name(f".{path.name}{PARTIAL}")


def write_file(path: Path, contents: bytes) -> None:
    """Write or replace a file, atomically."""
    temporary = partial(path)
    try:
        with temporary.open("wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Bring to the disk what is in a file, or the names in a directory where the system can do that."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what some network file systems answer for directories
            raise
    finally:
        os.close(descriptor)


def flush_all(paths: Collection[Path]) -> None:
    """Bring many small files and directories to the disk at the same time, since each waits for the disk."""
    list(_threads(os.getpid()).map(flush, paths))


@cache
def _threads(process: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """The threads that wait for the disk; a forked process needs its own."""
    return ThreadPoolExecutor(8, thread_name_prefix="fibration-store")


def make_directory(path: Path) -> Path:
    """Make a directory whose parent exists, and bring its name to the disk; nothing happens if it is there."""
    try:
        path.mkdir()
    except FileExistsError:
        return path
    flush(path.parent)
    return path


def sweep(directory: Path) -> None:
    """Remove the unfinished files and directories in a directory whose lock is held."""
    with suppress(FileNotFoundError):
        for entry in list(os.scandir(directory)):
            if entry.name.startswith(".") and entry.name.endswith(PARTIAL):
                remove(Path(entry.path))


def remove(path: Path) -> None:
    """Remove a file or a directory with all that is in it, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


class Lock:
    """A lock on a file, which is made if absent, or on a directory; the system releases it when the process dies.

    Whoever holds it holds it alone; whoever only asks whether it is held (`held`) shares it for an instant.
    """

    def __init__(self, path: Path) -> None:
        self._file: int | None = None
        self._is_directory = path.is_dir()
        if fcntl is not None:
            self._file = os.open(path, os.O_RDONLY if self._is_directory else os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, patience: float = 0.0) -> bool:
        """Take the lock, or tell that another holds it; `patience`: the seconds for which to wait for that one."""
        end = time.monotonic() + patience
        while self._file is not None and not _flock(self._file, alone=True):
            # If it can be shared, somebody asks at this instant whether it is held, which is no reason to give up.
            if _flock(self._file, alone=False):
                _unlock(self._file)
            elif time.monotonic() >= end:
                return False
            time.sleep(random.uniform(1e-4, 2e-3))  # noqa: S311
        if self._file is not None and not self._is_directory:
            with suppress(OSError):  # only a help for the reader of an error
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, str(os.getpid()).encode(), 0)
        return True

    def holder(self) -> str:
        """Tell the number of the process that holds the lock, as far as it is known."""
        if self._file is not None:
            with suppress(OSError):
                text = os.pread(self._file, 20, 0).decode("ascii", "replace")
                if text.isdigit():
                    return text
        return "unknown"

    def close(self) -> None:
        """Release the lock, for forked children too, and close the file."""
        if self._file is not None:
            with suppress(OSError):
                _unlock(self._file)
            os.close(self._file)
            self._file = None


@contextmanager
def alone_in(directory: Path, patience: float = 60.0) -> Generator[None, None, None]:
    """Hold a directory's lock, for which a process waits that adds to the directory."""
    lock = Lock(directory)
    try:
        if not lock.take(patience):
            raise RunBusyError(
                f"another process has been adding to {str(directory)!r} for {patience:g} s",
                "one process at a time that adds a study or makes a store",
                "end that process, then run the same again",
            )
        yield
    finally:
        lock.close()


def held(path: Path) -> bool:
    """Tell whether a living process holds the lock on `path`; writes nothing.

    Where there are no locks, and where the file cannot be opened, it may be held.
    """
    if fcntl is None:
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not _flock(descriptor, alone=False)
    except OSError:
        return True
    finally:
        os.close(descriptor)


def _flock(file: int, *, alone: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(file: int) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_UN)
