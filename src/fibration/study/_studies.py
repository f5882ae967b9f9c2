"""The studies of a store: each is a directory that is written once."""

import json
import os
import re
import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import StoreError, StoreWarning
from ._files import PARTIAL, alone_in, flush, flush_all, reading, remove, sweep, write_file, writing
from ._manifest import RUN_ID, encode_point
from ._plain import decode, digest, dumps, encode, loads

STUDY_ID = re.compile(r"[a-z0-9-]+-[0-9a-f]{8}")


@dataclass(frozen=True)
class StudyRecord:
    """One study of a store: `points` are the names of its runs in the order of the study, claimed or not."""

    id: str
    name: str
    path: Path
    points: list[str]
    sequence: int

    @property
    def text(self) -> str:
        """The study file as it was added."""
        return (self.path / "study.toml").read_text(encoding="utf-8")

    @cached_property
    def document(self) -> dict[str, Any]:
        """The study file's contents."""
        return decode(json.loads((self.path / "study.json").read_bytes())["document"])

    @cached_property
    def resolved(self) -> list[dict[str, Any]]:
        """The resolved points, in the order of `points`."""
        return decode(json.loads((self.path / "points.json").read_bytes()))


class Studies:
    """The directory of the studies."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, text: str, document: Any, points: Sequence[Any], name: Any) -> StudyRecord:
        """Write a study unless it is there; its id tells its name and its contents apart from all others.

        Where its file was, the document's "origin", is no part of that; the last one is kept.
        """
        if not isinstance(name, str) or not name.strip():
            raise StoreError(f"a study with the name {name!r}", "a text", 'give the document a "name"')
        encoded, plain = encode(document, "document"), [encode_point(point) for point in points]
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower())[:40].strip("-") or "study"
        what = {key: value for key, value in encoded.items() if key != "origin"}
        path = self.path / f"{slug}-{digest({'document': what, 'points': plain}, 8)}"
        with writing(path), alone_in(self.path):
            sweep(self.path)
            if not path.is_dir():
                last = max((study.sequence for study in self.all()), default=0)
                facts = {"name": name, "sequence": last + 1, "runs": [digest(point, 16) for point in plain]}
                _write(path, text, facts | {"document": encoded}, plain)
                return self._read(path)
            if (path / "study.toml").read_bytes() != text.encode():  # only its comments or spaces differ
                write_file(path / "study.toml", text.encode())
            found = self._read(path)
            if encode(found.document, "document") != encoded:  # only its origin differs
                facts = {"name": found.name, "sequence": found.sequence, "runs": found.points, "document": encoded}
                write_file(path / "study.json", f"{dumps(facts)}\n".encode())
        return self._read(path)

    def all(self) -> list[StudyRecord]:
        """List the studies, in the order in which they were added; those that cannot be read are warned of."""
        with reading(self.path):
            names = [name for name in os.listdir(self.path) if not name.startswith(".")]
        studies: list[StudyRecord] = []
        for name in names:
            if (self.path / name).is_dir():
                try:
                    studies.append(self._read(self.path / name))
                except StoreError as error:
                    warnings.warn(f"a study is left out: {error}", StoreWarning, stacklevel=3)
        return sorted(studies, key=lambda study: (study.sequence, study.id))

    def find(self, key: Any) -> StudyRecord:
        """Find a study by its id, its name, or the beginning of its id."""
        if isinstance(key, str) and STUDY_ID.fullmatch(key) and (self.path / key).is_dir():
            return self._read(self.path / key)
        studies = self.all()
        for fits in (lambda s: s.id == key, lambda s: s.name == key, lambda s: bool(key) and s.id.startswith(str(key))):
            found = [study for study in studies if fits(study)]
            if len(found) == 1:
                return found[0]
            if found:
                raise StoreError(
                    f"{str(key)[:120]!r} is the name or beginning of {len(found)} studies",
                    f"one of {', '.join(study.id for study in found)}",
                    "pass the whole id; the study that was added last stands last",
                )
        known = ", ".join(study.id for study in studies[-20:])
        raise StoreError(
            f"no study {str(key)[:120]!r} in {str(self.path.parent)!r}",
            f"one of {known}" if known else "a study that was added; there is none yet",
            "pass its id, its name or the beginning of its id",
        )

    def known(self, key: Any) -> str:
        """Give the id of a study, without looking at the others if it is an id already."""
        exact = isinstance(key, str) and STUDY_ID.fullmatch(key)
        return key if exact and (self.path / key / "study.json").is_file() else self.find(key).id

    def _read(self, path: Path) -> StudyRecord:
        try:
            facts = loads((path / "study.json").read_bytes())
            runs = [name for name in facts["runs"] if RUN_ID.fullmatch(name)]
            return StudyRecord(path.name, str(facts["name"]), path, runs, int(facts["sequence"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"the study {str(path)!r} cannot be read: {type(error).__name__}: {error}",
                "the study.json that Fibration wrote",
                "restore it, or remove this directory and run the study file again: its runs are kept",
            ) from error


def _write(path: Path, text: str, facts: dict[str, Any], points: list[Any]) -> None:
    """Write the directory of a study; it appears when it is whole."""
    new = path.with_name(f".{path.name}-{secrets.token_hex(4)}{PARTIAL}")
    try:
        new.mkdir()
        contents = {"study.toml": text, "study.json": f"{dumps(facts)}\n", "points.json": f"{dumps(points)}\n"}
        for name, one in contents.items():
            (new / name).write_bytes(one.encode())
        flush_all([new / name for name in contents] + [new])
        os.rename(new, path)
    finally:
        remove(new)
    flush(path.parent)
