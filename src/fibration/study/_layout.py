"""The directory of a store and the number of its format."""

import os
from pathlib import Path

from .._version import __version__
from ..errors import StoreError
from ._files import alone_in, make_directory, partial, remove, write_file, writing
from ._plain import dumps, loads

FORMAT = 1
MARKER, DIRECTORIES = "store.json", ("runs", "studies")


def create_store(path: Path) -> None:
    """Make a store in a directory that is absent or empty; nothing happens if one is there."""
    marker = path / MARKER
    if os.path.lexists(path) and not path.is_dir():
        kind = "a link that leads nowhere" if path.is_symlink() and not path.exists() else "no directory"
        raise StoreError(f"{str(path)!r} is {kind}", "a directory for the store, or a free name", "pass another path")
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        if marker.exists():
            return
        with alone_in(path):
            if marker.exists():
                return
            remove(partial(marker))
            foreign = [name for name in sorted(os.listdir(path)) if name not in DIRECTORIES]
            if foreign:
                raise StoreError(
                    f"the directory {str(path)!r} holds {foreign[0]!r} and no store",
                    "a store, or a directory that is absent or empty",
                    "pass another path",
                )
            for name in DIRECTORIES:
                make_directory(path / name)
            write_file(marker, f"{dumps({'format': FORMAT, 'fibration': __version__})}\n".encode())


def check_format(path: Path) -> None:
    """Check that there is a store that this version reads."""
    try:
        facts = loads((path / MARKER).read_bytes())
    except OSError as error:
        raise StoreError(
            f"{str(path)!r} holds no store that can be read: {error.strerror or error}",
            f"the directory of a run store, the one with {MARKER}",
            "pass the path of a store; `fibration run` makes one, and `Store(path, create=True)` does",
        ) from error
    except ValueError:
        facts = None
    number = facts.get("format") if isinstance(facts, dict) else None
    if not isinstance(number, int) or number < 1:
        raise StoreError(
            f"{str(path / MARKER)!r} does not tell the format of a store",
            f"what Fibration wrote there: {dumps({'format': FORMAT, 'fibration': __version__})}",
            "restore the file; the runs beside it are whole",
        )
    if number > FORMAT:
        raise StoreError(
            f"the store {str(path)!r} has format {number}, which a newer Fibration wrote",
            f"a store of format {FORMAT} or older for Fibration {__version__}",
            "upgrade Fibration: `pip install --upgrade fibration`",
        )
