"""What is wrong with a study file, in sentences that name the line, what is allowed, and the nearest valid name."""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ..errors import StudyFileError
from ._schema import allowed_keys

_SHOWN = 8  # complaints in one message


class Complaints:
    """Turns what pydantic complains of into lines of the file."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text

    def validated(self, model: type[Any], values: dict[str, Any], axes: Sequence[str] = ()) -> Any:
        """Validate, or raise `StudyFileError` with the line of each complaint."""
        try:
            return model.model_validate(values)
        except ValidationError as error:
            lines = line_numbers(self.text)
            told: dict[tuple[str, str], tuple[str, str]] = {}
            for one in error.errors():
                place, given, needed, fix = self._complaint(model, one, values, lines, axes)
                before = told.get((place, given), ("", ""))[0]  # of another type that would do as well
                needed = f"{before}, or {needed}" if before and needed not in before else needed
                told[place, given] = needed, fix
            (place, given), (needed, fix) = next(iter(told.items()))
            more = [f"{place}: {given} (needed: {needed})" for (place, given), (needed, _) in [*told.items()][1:_SHOWN]]
            more += [f"and {len(told) - _SHOWN} more"] if len(told) > _SHOWN else []
            fix = "; then also ".join([fix, "\n  ".join(["", *more])]) if more else fix
            raise StudyFileError(f"{place}: {given}", needed, fix) from None

    def place(self, keys: Sequence[Any], lines: Mapping[tuple[Any, ...], int] | None = None) -> str:
        """Name the line of a key, or of the table that it belongs to."""
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
        kind, context, given = error["type"], error.get("ctx", {}), error["input"]
        keys, options = _resolved(error["loc"], values, model, kind in ("extra_forbidden", "missing"))
        tag = str(context.get("discriminator", "")).strip("'")
        if tag:
            keys = (*keys, tag)
        name = ".".join(str(key) if len(str(key)) <= 60 else f"{str(key)[:57]}…" for key in keys)
        dotted = ".".join(map(str, keys))
        varied = next((axis for axis in axes if dotted == axis or dotted.startswith(f"{axis}.")), None)
        place = self.place(keys if varied is None else ("sweep", varied), lines)
        match kind:
            case "extra_forbidden":
                return place, f"unknown key {name!r}", f"one of {', '.join(options)}", nearest(str(keys[-1]), options)
            case "missing" | "union_tag_not_found":
                above = keys[:-1]
                made = [axis for axis in axes if axis.startswith(f"{'.'.join(map(str, above))}.")]
                if above and above not in lines and made:  # a table that only the sweep speaks of
                    others = [str(key[-1]) for key in lines if key[:-1] == above[:-1]]
                    given = f"[sweep] varies {short(made[0])}, and there is no table {'.'.join(map(str, above))!r}"
                    needed = f"a table of the file: {', '.join(others)}"
                    return self.place(("sweep", made[0]), lines), given, needed, nearest(str(above[-1]), others)
                return place, f"no key {name!r}", "this key", f"add `{keys[-1]} = …`"
            case "literal_error" | "union_tag_invalid":
                expected = str(context.get("expected", context.get("expected_tags", "")))
                allowed = re.findall(r"'([^']*)'", expected)
                given = given.get(tag) if tag and isinstance(given, dict) else given
                fix = nearest(str(given), allowed) if allowed else "change it"
                return place, f"{name} = {short(given)}", f"one of {', '.join(allowed) or expected}", fix
            case "value_error":
                said = str(context.get("error", error["msg"]))
                if not keys and (found := re.search(r"\[runs\.([\w-]+)\]", said)):
                    place = self.place(("runs", found.group(1)), lines)
                return place, said, "a study that is consistent", "mend these keys"
            case _:
                needed, fix = _needed(error, keys, given)
                return place, f"{name} = {short(given)}", needed, fix


def _needed(error: Any, keys: Sequence[Any], given: Any) -> tuple[str, str]:
    """Say in words of TOML what pydantic wants, and what to do."""
    if keys[:1] == ("sweep",) and isinstance(given, dict):
        return "a list of values", f'put dotted keys in quotation marks: "{keys[-1]}.{next(iter(given), "…")}" = […]'
    if error["type"] == "string_pattern_mismatch":
        if keys[:1] == ("name",):
            return "a line of text", "change the value"
        return "a name of at most 64 letters, digits, _ and -, of which the first is a letter or digit", "rename it"
    message = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    message = re.sub(r"a valid dictionary( or instance of \w+)?", "a table", message)
    return message.replace("a valid ", "a ").replace("a integer", "an integer"), "change the value"


def short(value: Any) -> str:
    """Show a value, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def nearest(given: str, allowed: Sequence[str]) -> str:
    """Suggest the allowed name that is most like the one that is given."""
    near = difflib.get_close_matches(given[:200], allowed, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else "take one of these"


def _resolved(
    location: Sequence[Any], values: Any, model: type[BaseModel], absent: bool
) -> tuple[tuple[Any, ...], list[str]]:
    """Follow a location of pydantic's through the document, past the tags of unions; list the keys allowed there.

    `absent`: the last part is a key that the document, or the schema, has not.
    """
    keys: list[Any] = []
    here: Any = values
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(here, dict) and (part in here or (absent and last)):
            keys.append(part)
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            keys.append(part)
            here = here[part]
    return tuple(keys), allowed_keys(model, keys[:-1], values)


def line_numbers(text: str) -> dict[tuple[Any, ...], int]:
    """Tell on which line each key of a TOML document is set.

    A statement is the shortest run of lines that a parser reads; under the last header before it, it says which keys it
    sets. That asks nothing of TOML's grammar but a parser.
    """
    rows = text.split("\n")
    found: dict[tuple[Any, ...], int] = {}
    header, start = "", 0
    for end in range(1, len(rows) + 1):
        first = rows[start].strip()
        if end > start + 1 and not any(mark in rows[end - 1] for mark in ("]", "}", '"""', "'''")):
            continue  # no statement of several lines ends here
        if not first or first.startswith("#"):
            start += 1
            continue
        statement = "\n".join(rows[start:end])
        try:
            document = tomllib.loads(f"{'' if first.startswith('[') else header}\n{statement}\n")
        except (tomllib.TOMLDecodeError, ValueError):
            continue
        if first.startswith("["):
            header = statement
        for keys in _keys(document, ()):
            found.setdefault(keys, start + 1)
        start = end
    return found


def _keys(value: Any, above: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*above, key)
        yield from _keys(inner, (*above, key))
