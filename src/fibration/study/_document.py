"""Study files: read, checked against the schema, and expanded into points."""

import copy
import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import MissingFileError, StudyFileError
from ._complaints import Complaints, nearest, short
from ._manifest import encode_point
from ._plain import digest
from ._schema import Csv, Npz, Point, Study

_LARGEST = 2**20  # bytes of a study file
_MOST_POINTS = 100_000


@dataclass(frozen=True)
class StudyFile:
    """A study file that was read and found in order.

    `study`: what it says; `axes`: the varied keys, dotted, with their values, and "seed" last; `points`: one for each
    combination of them, plain dictionaries that say all of what is run; `text`: the file's own; `origin`: where the
    file was first read from.
    """

    path: Path
    origin: str
    text: str
    study: Study
    axes: Mapping[str, tuple[Any, ...]]
    points: tuple[Mapping[str, Any], ...]


def read_study(
    path: str | PathLike[str], *, base: str | PathLike[str] | None = None, origin: str | None = None
) -> StudyFile:
    """Read a study file, check it, and expand its sweep.

    The points are the product of the sweep's axes and the seeds, the last varying fastest. Nothing of the file is ever
    evaluated. Data files are read for their content hash, which is part of a point.

    **Arguments:** `base`: what paths in the file are relative to, by default its own directory; `origin`: where a
    copy was made from.

    **Raises:** `MissingFileError`; `StudyFileError` with the lines, what is allowed there, and the nearest valid name.

    ```python
    >>> import pathlib, tempfile
    >>> import fibration as fb
    >>> path = pathlib.Path(tempfile.mkdtemp(), "study.toml")
    >>> _ = path.write_text('''
    ... name = "two widths"
    ... seeds = 3
    ... data = { source = "iris" }
    ... network = { kind = "mlp", activation = "relu" }
    ... runs.flow = { kind = "flow", t1 = 1.0 }
    ... [sweep]
    ... "network.hidden" = [[4], [8]]
    ... ''')
    >>> study = fb.study.read_study(path)
    >>> len(study.points), dict(study.axes)
    (6, {'network.hidden': ([4], [8]), 'seed': (0, 1, 2)})

    ```
    """
    path = Path(path)
    text = _text(path)
    try:
        return _expanded(path, text, path.parent if base is None else Path(base), origin)
    except RecursionError:
        raise StudyFileError(f"{path.name} has tables in tables beyond all depth", "a study file", "mend it") from None


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise StudyFileError(f"{str(path)!r} is no file", "a TOML file", "name a file")
    try:
        size = path.stat().st_size
        text = path.read_text("utf-8-sig") if size <= _LARGEST else ""
    except OSError as error:
        raise MissingFileError(
            f"the study file {str(path)!r} cannot be read: {error.strerror}",
            "a readable TOML file",
            "write one with `fibration new`",
        ) from error
    except UnicodeDecodeError as error:
        raise StudyFileError(f"{path.name} is not UTF-8 text", "a TOML file", "save it as UTF-8") from error
    except ValueError as error:  # a zero byte
        raise MissingFileError(f"the study file {str(path)!r}: {error}", "the path of a file", "mend it") from error
    if size > _LARGEST:
        raise StudyFileError(f"{path.name} has {size:,} bytes", "at most 1 MiB", "keep data in files of their own")
    return text


def _expanded(path: Path, text: str, base: Path, origin: str | None) -> StudyFile:
    document = _parse(path, text)
    reader = Complaints(path, text)
    study = reader.validated(Study, document)
    axes = _axes(reader, study)
    points: list[Mapping[str, Any]] = []
    hashes: dict[Path, str] = {}
    seen: dict[str, tuple[Any, ...]] = {}
    for values in itertools.product(*list(axes.values())[:-1]):
        varied = _with(reader, document, dict(zip(axes, values, strict=False)))
        place = _point(reader, varied, list(axes), hashes, base, origin)
        _check_new(reader, place, values, list(axes), seen)
        points += [{**place, "seed": seed} for seed in axes["seed"]]
    return StudyFile(path, str(path.resolve()) if origin is None else origin, text, study, axes, tuple(points))


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        place = f"{path.name}:{found.group(1)}" if found else f"{path.name}, at its end"
        raise StudyFileError(f"{place}: {error}", "TOML", "see https://toml.io for its grammar") from error
    except ValueError as error:  # a number of thousands of digits
        raise StudyFileError(f"{path.name}: {error}", "numbers of a usual length", "mend it") from error


def _axes(reader: Complaints, study: Study) -> dict[str, tuple[Any, ...]]:
    """List what varies: the sweep's keys and the seeds."""
    seeds = tuple(range(study.seeds)) if isinstance(study.seeds, int) else tuple(study.seeds)
    names = [name for name in Point.model_fields if name not in ("seed", "budget")]
    for axis in study.sweep:
        table = axis.partition(".")[0]
        if table not in names:
            fix = "list seeds under `seeds`" if table.startswith("seed") else nearest(table, names)
            raise StudyFileError(
                f"{reader.place(('sweep', axis))}: [sweep] varies {short(axis)}",
                f"a dotted key of {', '.join(names)}",
                "set it once, since results do not depend on it" if table == "budget" else fix,
            )
    axes = {axis: tuple(values) for axis, values in study.sweep.items()} | {"seed": seeds}
    count = 1
    for axis, values in axes.items():
        count *= len(values)
        distinct = {json.dumps(value, default=str) for value in values}
        if len(distinct) < len(values):
            where = ("seeds",) if axis == "seed" else ("sweep", axis)
            raise StudyFileError(
                f"{reader.place(where)}: {axis} lists a value twice", "each value once", "drop the repetition"
            )
    if count > _MOST_POINTS:
        raise StudyFileError(
            f"{reader.place(('sweep',))}: the sweep has {count:,} points", f"at most {_MOST_POINTS:,}", "split it"
        )
    return axes


def _check_new(
    reader: Complaints, place: Mapping[str, Any], values: tuple[Any, ...], axes: list[str], seen: dict[str, Any]
) -> None:
    """Raise if two combinations of the sweep's values say the same."""
    before = seen.setdefault(digest(encode_point(identity(place)), 16), values)
    if before is not values:
        axis = next(axis for axis, one, other in zip(axes, before, values, strict=False) if repr(one) != repr(other))
        raise StudyFileError(
            f"{reader.place(('sweep', axis))}: [sweep] has the same point for {short(before)} as for {short(values)}",
            "values that make a difference, each once",
            "drop one; a key that contains another of the sweep takes its place",
        )


def _point(
    reader: Complaints,
    varied: dict[str, Any],
    axes: list[str],
    hashes: dict[Path, str],
    base: Path,
    origin: str | None,
) -> dict[str, Any]:
    """Validate one place of the sweep; its JSON form says everything, defaults too."""
    kept = {key: value for key, value in varied.items() if key in Point.model_fields}
    point = reader.validated(Point, kept, axes)
    if isinstance(point.data, Csv | Npz):
        place = base / point.data.path
        if place not in hashes:
            hashes[place] = _file_hash(reader, place, origin)
        data = point.data.model_copy(update={"path": place.resolve(), "sha256": hashes[place]})
        point = point.model_copy(update={"data": data})
    return json.loads(point.model_dump_json())


def _file_hash(reader: Complaints, place: Path, origin: str | None) -> str:
    """Hash a data file."""
    try:
        with place.resolve().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        where = "" if origin is not None else f"{reader.place(('data', 'path'))}: "
        raise MissingFileError(
            f"{where}the data file {str(place)!r} cannot be read: {getattr(error, 'strerror', None) or error}",
            "a path relative to the study file, or an absolute one",
            "mend `data.path`"
            if origin is None
            else f"restore it, or run the study file from where it is, not {origin}",
        ) from error


def identity(point: Mapping[str, Any]) -> dict[str, Any]:
    """Take from a point what its results do not depend on: budgets, and the directory of a data file."""
    kept = {key: value for key, value in point.items() if key != "budget"}
    if "path" in kept["data"]:
        kept["data"] = {**kept["data"], "path": Path(kept["data"]["path"]).name}
    return kept


def _with(reader: Complaints, document: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    varied = copy.deepcopy(document)
    for axis, value in values.items():
        *tables, key = axis.split(".")
        table = varied
        for depth, name in enumerate(tables, 1):
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                above = ".".join(tables[:depth])
                raise StudyFileError(
                    f"{reader.place(('sweep', axis))}: [sweep] varies {short(axis)}, and {above!r} is no table",
                    "the dotted key of something in a table",
                    f"list whole values of {above!r}",
                )
        table[key] = value
    return varied
