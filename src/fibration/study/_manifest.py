"""The manifest of a run: everything that is known about it but its arrays, in one JSON file."""

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ._files import write_file
from ._plain import decode, digest, dumps, encode, loads

MANIFEST, RESULTS = "manifest.json", "results"
STATUSES = ("running", "interrupted", "done", "failed")  # as written; a manifest that cannot be read is "damaged"
RUN_ID = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_HASH = re.compile(r"[0-9a-f]{64}")


class ManifestDamageError(Exception):
    """What is wrong with a manifest, as a sentence without its beginning and its full stop."""


@dataclass
class Manifest:
    """A manifest as it is in the file: `point`, `summary` and `curves` are encoded (`_plain`)."""

    id: str
    point: dict[str, Any]
    status: str = "running"
    studies: list[str] = field(default_factory=list)
    sequence: int = 0
    created: str = ""
    seconds: float = 0.0
    gradients: int | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def axes(self) -> dict[str, Any]:
        """The values on the axes of the sweep, which the point holds under "axes"."""
        axes = self.point.get("axes")
        return axes if isinstance(axes, dict) else {}

    @property
    def seed(self) -> int | None:
        """The seed, which the point holds under "seed"."""
        seed = self.point.get("seed")
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None

    def contents(self) -> bytes:
        """Give the contents of the file: JSON, one line for each field."""
        lines = [f' "{one.name}": {dumps(getattr(self, one.name))}' for one in fields(self)]
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()

    def save(self, directory: Path) -> None:
        """Write the manifest, atomically."""
        write_file(directory / MANIFEST, self.contents())


def run_id(point: Any) -> str:
    """Give the name of the run of a resolved point: 16 digits of the SHA-256 of its canonical JSON.

    The order of keys does not matter; 1 and 1.0 differ.

    ```python
    >>> run_id({"width": 8, "axes": {"width": 8}}) == run_id({"axes": {"width": 8}, "width": 8})
    True

    ```
    """
    return digest(encode_point(point), 16)


def encode_point(point: Any) -> dict[str, Any]:
    """Check and encode a resolved point."""
    if not isinstance(point, dict):
        raise StoreError(f"the point is of type {type(point).__name__}", "a dictionary", "pass the resolved point")
    return encode(point, "point")


def read(directory: Path) -> bytes | None:
    """Read the manifest file of a run's directory; None if there is none, and nothing that would need one.

    **Raises:** `ManifestDamageError` if there are results without one; `OSError` if the file cannot be read.
    """
    try:
        with open(f"{directory}/{MANIFEST}", "rb") as file:  # a third of the time that `Path` takes
            return file.read()
    except FileNotFoundError:
        if result_directories(directory):
            raise ManifestDamageError("is missing, although there are results") from None
        return None


def load(directory: Path) -> Manifest | None:
    """Read and check the manifest in a run's directory; None if there is none, and nothing that would need one.

    **Raises:** as `read` and `parse`.
    """
    contents = read(directory)
    return None if contents is None else parse(contents, directory.name)


def parse(contents: bytes, run: str) -> Manifest:
    """Check the contents of a manifest and give them names.

    **Raises:** `ManifestDamageError`.
    """
    try:
        values = loads(contents)
    except ValueError as error:
        raise ManifestDamageError(f"is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ManifestDamageError("is not a JSON object")
    for name, right in _CHECKS.items():
        if name not in values:
            raise ManifestDamageError(f"lacks {name!r}")
        if not right(values[name]):
            raise ManifestDamageError(f"holds {str(values[name])[:40]!r} as {name!r}")
    if digest(values["point"], 16) != run or values["id"] != run:
        raise ManifestDamageError("holds another point than the one that the directory is named after")
    return Manifest(**{name: values[name] for name in _CHECKS})


def explain(damage: ManifestDamageError | str) -> str:
    """Make a sentence of what is wrong with a manifest that says what to do."""
    return (
        f"The manifest {damage}. The results that are there stay. Restore {MANIFEST} from a copy, or run the study "
        f"again: it sets the file aside as {MANIFEST}.damaged-1 and goes on from the checkpoints."
    )


def set_aside(directory: Path) -> None:
    """Rename a damaged manifest to the first free `manifest.json.damaged-N`."""
    number = 1
    while os.path.lexists(directory / f"{MANIFEST}.damaged-{number}"):
        number += 1
    if os.path.lexists(directory / MANIFEST):
        os.rename(directory / MANIFEST, directory / f"{MANIFEST}.damaged-{number}")


def signature(directory: Path | str) -> str | None:
    """Describe the manifest file as the file system does; it differs after every change. None if there is no file."""
    try:
        facts = os.stat(f"{directory}/{MANIFEST}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return "unreadable"
    return f"{facts.st_ino} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"


def check_result_name(name: Any) -> str:
    """Check the name of a result or checkpoint, which becomes the name of a directory."""
    if isinstance(name, str) and _NAME.fullmatch(name) and ".." not in name:
        return name
    raise StoreError(
        f"the name {str(name)[:120]!r}",
        "at most 100 letters, digits, '_', '-' and single '.', none of the last two in front",
        "choose another name",
    )


def as_count(value: Any) -> int:
    """Check a number of gradient evaluations."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if _count(number) and number == value:
        return number
    raise StoreError(f"gradients = {str(value)[:60]}", "a whole number, not negative", "leave it out if unknown")


def result_directories(directory: Path) -> list[str]:
    """List the results that are there, finished or not listed in a manifest."""
    try:
        names = os.listdir(directory / RESULTS)
    except OSError:
        return []
    return sorted(name[:-5] for name in names if name.endswith(".zarr") and not name.startswith("."))


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _hashes(values: Any) -> bool:
    return isinstance(values, dict) and all(
        _NAME.fullmatch(name) and ".." not in name and isinstance(value, str) and _HASH.fullmatch(value)
        for name, value in values.items()
    )


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _summary(values: Any) -> bool:
    return isinstance(values, dict) and not any(isinstance(value, list | dict) for value in values.values())


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        value.__class__ is float or isinstance(decode(value), float | int) for value in values
    )


def _curves(values: Any) -> bool:
    return isinstance(values, dict) and all(
        isinstance(curve, dict) and set(curve) == {"x", "y"} and all(map(_numbers, curve.values()))
        for curve in values.values()
    )


_CHECKS = {
    "id": lambda value: isinstance(value, str),
    "point": lambda value: isinstance(value, dict),
    "status": lambda value: value in STATUSES,
    "studies": _texts,
    "sequence": _count,
    "created": lambda value: isinstance(value, str),
    "seconds": lambda value: isinstance(value, float | int) and value >= 0,
    "gradients": lambda value: value is None or _count(value),
    "versions": lambda value: isinstance(value, dict),
    "machine": lambda value: isinstance(value, dict),
    "results": _hashes,
    "summary": _summary,
    "curves": _curves,
    "error": lambda value: value is None or isinstance(value, str),
}
