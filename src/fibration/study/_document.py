"""Study files: read, checked against the schema, and expanded into points; every complaint names its line."""

import copy
import difflib
import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ..errors import MissingFileError, StudyFileError
from ._schema import Csv, Npz, Point, Study, allowed_keys

_LARGEST = 2**20  # bytes of a study file
_MOST_POINTS = 100_000
_SHOWN = 8  # complaints in one message


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
    try:
        size = path.stat().st_size
        text = path.read_text("utf-8") if size <= _LARGEST else ""
    except OSError as error:
        raise MissingFileError(
            f"the study file {str(path)!r} cannot be read: {error.strerror}",
            "a readable TOML file",
            "write one with `fibration new`",
        ) from error
    except UnicodeDecodeError as error:
        raise StudyFileError(f"{path.name} is not UTF-8 text", "a TOML file", "save it as UTF-8") from error
    if size > _LARGEST:
        raise StudyFileError(f"{path.name} has {size:,} bytes", "at most 1 MiB", "keep data in files of their own")
    document = _parse(path, text)
    reader = _Reader(path, text, path.parent if base is None else Path(base))
    study = reader.validated(Study, document)
    axes = reader.axes(study)
    points: list[Mapping[str, Any]] = []
    hashes: dict[Path, str] = {}
    for values in itertools.product(*list(axes.values())[:-1]):
        varied = _with(document, dict(zip(axes, values, strict=False)))
        place = _point(reader, varied, list(axes), hashes)
        points += [{**place, "seed": seed} for seed in axes["seed"]]
    return StudyFile(path, str(path.resolve()) if origin is None else origin, text, study, axes, tuple(points))


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        place = f"{path.name}:{found.group(1)}" if found else f"{path.name}, at its end"
        raise StudyFileError(f"{place}: {error}", "TOML", "see https://toml.io for its grammar") from error


def _point(reader: "_Reader", varied: dict[str, Any], axes: list[str], hashes: dict[Path, str]) -> dict[str, Any]:
    """Validate one place of the sweep; its JSON form says everything, defaults too."""
    kept = {key: value for key, value in varied.items() if key in Point.model_fields}
    point = reader.validated(Point, kept, axes)
    if isinstance(point.data, Csv | Npz):
        place = (reader.base / point.data.path).resolve()
        if place not in hashes:
            hashes[place] = reader.file_hash(place)
        data = point.data.model_copy(update={"path": place, "sha256": hashes[place]})
        point = point.model_copy(update={"data": data})
    return json.loads(point.model_dump_json())


def identity(point: Mapping[str, Any]) -> dict[str, Any]:
    """Take from a point what its results do not depend on: budgets, and the directory of a data file."""
    kept = {key: value for key, value in point.items() if key != "budget"}
    if "path" in kept["data"]:
        kept["data"] = {**kept["data"], "path": Path(kept["data"]["path"]).name}
    return kept


def _with(document: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    varied = copy.deepcopy(document)
    for axis, value in values.items():
        *tables, key = axis.split(".")
        table = varied
        for name in tables:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                break
        else:
            table[key] = value
    return varied


class _Reader:
    """Turns what pydantic complains of into lines of the file."""

    def __init__(self, path: Path, text: str, base: Path) -> None:
        self.path, self.text, self.base = path, text, base

    def validated(self, model: type[Any], values: dict[str, Any], axes: Sequence[str] = ()) -> Any:
        """Validate, or raise `StudyFileError` with the line of each complaint."""
        try:
            return model.model_validate(values)
        except ValidationError as error:
            lines = line_numbers(self.text)
            told = [self._complaint(model, one, values, lines, axes) for one in error.errors()]
            told = list({(place, given): (place, given, needed, fix) for place, given, needed, fix in told}.values())
            more = [f"{place}: {given} (needed: {needed})" for place, given, needed, _ in told[1:_SHOWN]]
            more += [f"and {len(told) - _SHOWN} more"] if len(told) > _SHOWN else []
            place, given, needed, fix = told[0]
            fix = "; then also ".join([fix, "\n  ".join(["", *more])]) if more else fix
            raise StudyFileError(f"{place}: {given}", needed, fix) from None

    def axes(self, study: Study) -> dict[str, tuple[Any, ...]]:
        """List what varies: the sweep's keys and the seeds."""
        seeds = tuple(range(study.seeds)) if isinstance(study.seeds, int) else tuple(study.seeds)
        for axis in study.sweep:
            if axis.partition(".")[0] not in Point.model_fields or axis == "seed":
                names = [name for name in Point.model_fields if name != "seed"]
                raise StudyFileError(
                    f"{self._place(('sweep', axis))}: [sweep] varies {axis!r}",
                    f"a dotted key of {', '.join(names)}",
                    "list seeds under `seeds`" if axis.startswith("seed") else _nearest(axis.partition(".")[0], names),
                )
        axes = {axis: tuple(values) for axis, values in study.sweep.items()} | {"seed": seeds}
        count = 1
        for axis, values in axes.items():
            count *= len(values)
            distinct = {json.dumps(value, default=str) for value in values}
            if len(distinct) < len(values):
                where = ("seeds",) if axis == "seed" else ("sweep", axis)
                raise StudyFileError(
                    f"{self._place(where)}: {axis} lists a value twice", "each value once", "drop the repetition"
                )
        if count > _MOST_POINTS:
            raise StudyFileError(
                f"{self._place(('sweep',))}: the sweep has {count:,} points", f"at most {_MOST_POINTS:,}", "split it"
            )
        return axes

    def file_hash(self, place: Path) -> str:
        """Hash a data file."""
        try:
            with place.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise MissingFileError(
                f"{self._place(('data', 'path'))}: the data file {str(place)!r} cannot be read: {error.strerror}",
                "a path relative to the study file, or an absolute one",
                "mend `data.path`",
            ) from error

    def _place(self, keys: Sequence[Any], lines: Mapping[tuple[Any, ...], int] | None = None) -> str:
        lines = line_numbers(self.text) if lines is None else lines
        for length in range(len(keys), 0, -1):
            if tuple(keys[:length]) in lines:
                return f"{self.path.name}:{lines[tuple(keys[:length])]}"
        return self.path.name

    def _complaint(
        self,
        model: type[BaseModel],
        error: Any,
        values: dict[str, Any],
        lines: Mapping[tuple[Any, ...], int],
        axes: Sequence[str],
    ) -> tuple[str, str, str, str]:
        """Tell of one error its place, what is given, what is needed, and what to do."""
        keys, options = _resolved(error["loc"], values, model)
        name = ".".join(str(key) for key in keys)
        varied = next((axis for axis in axes if name == axis or name.startswith(f"{axis}.")), None)
        place = self._place(keys if varied is None else ("sweep", varied), lines)
        kind, context, given = error["type"], error.get("ctx", {}), error["input"]
        if kind == "extra_forbidden":
            return place, f"unknown key {name!r}", f"one of {', '.join(options)}", _nearest(str(keys[-1]), options)
        if kind == "missing":
            return place, f"no key {name!r}", "this key", f"add `{keys[-1]} = …`"
        if kind in ("literal_error", "union_tag_invalid"):
            allowed = re.findall(r"'([^']*)'", str(context.get("expected", context.get("expected_tags", ""))))
            tag = str(context.get("discriminator", "")).strip("'")
            name = f"{name}.{tag}" if tag else name
            given = given.get(tag) if tag and isinstance(given, dict) else given
            place = self._place((*keys, tag), lines) if tag and varied is None else place
            fix = _nearest(str(given), allowed) if allowed else "change it"
            return place, f"{name} = {given!r}", f"one of {', '.join(allowed) or context.get('expected')}", fix
        if kind == "union_tag_not_found":
            tag = str(context.get("discriminator", "")).strip("'")
            return place, f"no key '{name}.{tag}'" if name else f"no key {tag!r}", "this key", f"add `{tag} = …`"
        if kind == "value_error":
            return place, str(context.get("error", error["msg"])), "a study that is consistent", "mend these keys"
        message = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        return place, f"{name} = {_short(given)}", message, "change the value"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _nearest(given: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, allowed, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else "take one of these"


def _resolved(location: Sequence[Any], values: Any, model: type[BaseModel]) -> tuple[tuple[Any, ...], list[str]]:
    """Follow a location of pydantic's through the document, past the tags of unions; list the keys allowed there."""
    keys: list[Any] = []
    here: Any = values
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(here, dict) and (part in here or last):
            keys.append(part)
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            keys.append(part)
            here = here[part]
    return tuple(keys), allowed_keys(model, keys[:-1], values)


def line_numbers(text: str) -> dict[tuple[Any, ...], int]:
    """Tell on which line each key of a TOML document is set.

    TOML reads from the top: a key is set by the statement that ends the first readable beginning of the file which has
    it. That asks nothing of TOML's grammar but a parser.
    """
    rows = text.splitlines()
    found: dict[tuple[Any, ...], int] = {}
    start = 0
    for end in range(1, len(rows) + 1):
        try:
            document = tomllib.loads("\n".join(rows[:end]) + "\n")
        except tomllib.TOMLDecodeError:
            continue
        while start < end - 1 and (not rows[start].strip() or rows[start].lstrip().startswith("#")):
            start += 1
        for keys in _keys(document, ()):
            found.setdefault(keys, start + 1)
        start = end
    return found


def _keys(value: Any, above: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*above, key)
        yield from _keys(inner, (*above, key))
