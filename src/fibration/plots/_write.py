"""Files that are either whole or absent."""

import os
from pathlib import Path

from ..errors import OutputDirectoryError


def write_atomically(path: Path, contents: bytes) -> Path:
    """Write a file through a temporary neighbour that replaces it; the directory is made if absent.

    **Raises:** `OutputDirectoryError` if the directory cannot be made or written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(contents)
            os.replace(temporary, path)
        finally:
            if temporary.exists():
                temporary.unlink()
    except OSError as error:
        raise OutputDirectoryError(
            f"{str(path)!r} cannot be written: {error.strerror or error}",
            "a directory that can be made and written to",
            "pass another path, or mend its permissions",
        ) from error
    return path
