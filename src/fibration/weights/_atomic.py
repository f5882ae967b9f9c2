"""Files and directories that appear whole or not at all.

Everything is made in a directory beside the place where it is to be, `.NAME.fibration-….partial`, and renamed when it
is on the disk. Its maker holds a lock on it, so that the next run can tell one that was left by a killed run.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import OutputDirectoryError

try:
    import fcntl
except ImportError:  # not on Windows, where what a killed run left stays until it is deleted by hand
    fcntl = None

PARTIAL, READY = ".partial", ".ready"


@contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Turn what the operating system says against writing into an error that names the output."""
    try:
        yield
    except OutputDirectoryError:
        raise
    except OSError as error:
        raise OutputDirectoryError(
            f"{str(path)!r} cannot be written: {error.strerror or error}; nothing of it is left, and no input changed",
            "a directory that can be written to, with room on its disk",
            "pass another path, make room, or mend its permissions",
        ) from error


@contextmanager
def workshop(path: Path) -> Generator[Path, None, None]:
    """Make the temporary directory in which `path` is made; whatever is left in it at the end is removed.

    What runs that were killed left for the same path is removed first.
    """
    with writing(path):
        sweep(path)
        made = Path(tempfile.mkdtemp(PARTIAL, _prefix(path), path.parent))
    lock = os.open(made, os.O_RDONLY) if fcntl else None
    try:
        if fcntl and lock is not None:
            with suppress(OSError):  # where there are no locks, `sweep` cannot lock either, and removes nothing
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def sweep(path: Path) -> list[Path]:
    """Remove the temporary directories of runs that were killed; those of running ones are locked."""
    removed: list[Path] = []
    if fcntl is None:
        return removed
    for left in _beside(path, PARTIAL):
        try:
            lock = os.open(left, os.O_RDONLY)
        except OSError:
            continue  # it went away by itself, or is another user's
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)
            removed.append(left)
        except OSError:
            continue
        finally:
            os.close(lock)
    return removed


@contextmanager
def replaced_file(path: Path) -> Generator[BinaryIO, None, None]:
    """Write a file that appears, or replaces another, when it is whole and on the disk."""
    with workshop(path) as place:
        new = place / path.name
        with writing(path):
            with new.open("wb") as file:
                yield file
                flush(file)
            os.replace(new, path)
            flush_directory(path.parent)


def flush(file: BinaryIO) -> None:
    """Bring a file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_directory(path: Path) -> None:
    """Bring the names in a directory to the disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(new: Path, path: Path) -> None:
    """Let what was made appear under its name: one rename, which replaces nothing but an empty directory."""
    if new.is_dir():
        flush_directory(new)
        os.rename(new, path)  # fails if `path` is anything but an empty directory or nothing
    else:
        try:
            os.link(new, path)  # unlike a rename, fails if something is there
        except FileExistsError:
            raise
        except OSError:
            os.rename(new, path)  # a file system without hard links
    flush_directory(path.parent)


def replace_all(place: Path, path: Path) -> None:
    """Replace files beside `path` by those made in its workshop `place`: all of them, whenever the process is killed.

    One file needs one rename. Of several, the renaming of `place` to `.ready` is the decision: whoever comes next
    finishes (`finish_replacing`).
    """
    names = sorted(one.name for one in place.iterdir())
    if len(names) == 1:
        os.replace(place / names[0], path.parent / names[0])
        flush_directory(path.parent)
        return
    flush_directory(place)
    os.rename(place, place.with_name(place.name.removesuffix(PARTIAL) + READY))
    flush_directory(path.parent)
    finish_replacing(path)


def unfinished(path: Path) -> list[Path]:
    """List what a run left that was killed while it replaced the files beside `path`."""
    return _beside(path, READY)


def finish_replacing(path: Path) -> int:
    """Finish the replacement of files beside `path` that a killed run had decided; count them."""
    count = 0
    for ready in unfinished(path):
        for new in sorted(ready.iterdir()):
            os.replace(new, path.parent / new.name)
            count += 1
        flush_directory(path.parent)
        ready.rmdir()
    return count


def _prefix(path: Path) -> str:
    return f".{path.name}.fibration-"


def _beside(path: Path, suffix: str) -> list[Path]:
    pattern = re.compile(re.escape(_prefix(path)) + r"[^.]*" + re.escape(suffix))
    if not path.parent.is_dir():
        return []
    return sorted(
        one for one in path.parent.iterdir() if pattern.fullmatch(one.name) and one.is_dir() and not one.is_symlink()
    )
