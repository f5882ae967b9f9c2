"""What is at a path: an adapter, a checkpoint or a single file; read and checked in full before anything is written."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import FileFormatError, MissingFileError, ParameterError, PickledDataError
from ._adapter import find_pairs
from ._checkpoint import find_interfaces
from ._interface import Found, Interface, Skipped
from ._safetensors import Entry, FilePath, load, opened, read_header

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
MODEL, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TRAINING = ("optimizer.pt", "optimizer.bin", "optimizer.safetensors", "scheduler.pt")
_MAX_JSON = 2**28


@dataclass(frozen=True)
class Source:
    """Weights at a path: what `kind` they are, and where every tensor lies.

    `path`: a directory or a file; `root`: the directory that files' names count from; `places`: for each tensor the
    file and the place in it; `found`: the interfaces.
    """

    path: Path
    root: Path
    kind: str
    places: Mapping[str, tuple[str, Entry]]
    found: Found

    def files(self, interface: Interface) -> set[str]:
        """Name the files that an interface's tensors lie in."""
        return {self.places[name][0] for name in interface.tensors}

    def arrays(self, interface: Interface, files: Mapping[str, BinaryIO]) -> list[Any]:
        """Read the tensors of one interface."""
        return [
            load(files[file], entry, name, self.root / file)
            for name, (file, entry) in ((name, self.places[name]) for name in interface.tensors)
        ]


def open_source(path: FilePath) -> Source:
    """Recognise what is at a path, and check headers, names and shapes in full.

    **Raises:** `MissingFileError`, `FileFormatError` and what belongs to it, `ParameterError`, `ShapeError`,
    `UnknownNameError`.
    """
    given = Path(path)
    if not given.exists():
        raise MissingFileError(
            f"nothing is at {os.fspath(path)!r}", "a directory with weights or a safetensors file", "check the path"
        )
    whole = given.resolve()
    if not whole.is_dir():
        if whole.suffix in PICKLES:
            raise _pickle(whole)
        root, name = given.parent.resolve(), given.name
        places = _places(root, (name,))
        beside = root / ADAPTER_CONFIG
        config = _json(beside) if beside.is_file() else {}
        return Source(root / name, root, "LoRA file", places, _ordered(find_pairs(_entries(places), config)))
    if (whole / ADAPTER_CONFIG).is_file():
        if not (whole / ADAPTER).exists():
            raise _no_weights(whole, ADAPTER)
        config, places = _json(whole / ADAPTER_CONFIG), _places(whole, (ADAPTER,))
        return Source(whole, whole, "LoRA adapter", places, _noted(whole, find_pairs(_entries(places), config)))
    if (whole / CONFIG).is_file():
        # The order in which `transformers` looks for them.
        if (whole / MODEL).exists():
            places = _places(whole, (MODEL,))
        elif (whole / INDEX).exists():
            places = _sharded(whole)
        else:
            raise _no_weights(whole, f"{MODEL} or {INDEX}")
        found = find_interfaces(_entries(places), _json(whole / CONFIG))
        return Source(whole, whole, "checkpoint", places, _noted(whole, found))
    below = sorted(one.parent.name for one in whole.glob(f"*/{ADAPTER_CONFIG}"))
    raise MissingFileError(
        f"neither {ADAPTER_CONFIG} nor {CONFIG} is in {str(whole)!r}",
        f"a LoRA adapter's directory ({ADAPTER_CONFIG}, {ADAPTER}), a checkpoint's ({CONFIG}, {MODEL} or {INDEX}), or "
        "one safetensors file with LoRA names",
        f"name one of the directories in it: {', '.join(below[:5])}" if below else "name the directory or file itself",
    )


def _places(root: Path, files: tuple[str, ...]) -> dict[str, tuple[str, Entry]]:
    """Read headers: for each tensor, its file and its place there."""
    places: dict[str, tuple[str, Entry]] = {}
    for name in files:
        path = root / name
        with opened(path) as file:
            header = read_header(file, path)
        for tensor, entry in header.entries.items():
            if tensor in places:
                raise FileFormatError(
                    f"{tensor!r} is in {places[tensor][0]!r} and in {name!r}",
                    "every tensor in one shard",
                    "save the model again",
                )
            places[tensor] = (name, entry)
    return places


def _sharded(root: Path) -> dict[str, tuple[str, Entry]]:
    """Read the headers of all shards, and hold them against the index."""
    index = root / INDEX
    said = _json(index).get("weight_map")
    if not isinstance(said, dict) or not said or not all(isinstance(file, str) for file in said.values()):
        raise FileFormatError(f"{str(index)!r} has no weight_map", "a table of tensors and files", "download it again")
    files = tuple(sorted(set(said.values())))
    for file in files:
        if Path(file).name != file or file in (".", ".."):
            raise FileFormatError(
                f"{str(index)!r} names the file {file!r}", "names of files beside it", "download it again"
            )
    places = _places(root, files)
    wrong = [tensor for tensor, file in said.items() if tensor not in places or places[tensor][0] != file]
    if wrong:
        raise FileFormatError(
            f"{len(wrong)} tensors are not where {INDEX} says, the first {wrong[0]!r} in {said[wrong[0]]!r}",
            "an index that fits its shards",
            "download them again",
        )
    return places


def _entries(places: Mapping[str, tuple[str, Entry]]) -> dict[str, Entry]:
    return {tensor: entry for tensor, (_, entry) in places.items()}


def _json(path: Path) -> dict[str, Any]:
    """Read a file of JSON that holds a table."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        text = file.read(size) if size <= _MAX_JSON else b"null"
    try:
        said = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{str(path)!r} is not JSON that can be read: {str(error)[:120]}", "a table in JSON", "download it again"
        ) from error
    if not isinstance(said, dict):
        raise FileFormatError(f"{str(path)!r} holds no table", "a table in JSON", "download it again")
    return said


def _noted(root: Path, found: Found) -> Found:
    """Add what lies beside the weights and still belongs to the old ones."""
    training = [name for name in TRAINING if (root / name).exists()]
    notes = [f"{name} is copied as it is: it belongs to the weights as they were" for name in training[:1]]
    if (root / MODEL).exists() and (root / INDEX).exists():
        notes.append(f"{INDEX} and its shards were left as they are, since {MODEL} is there")
    return _ordered(Found(found.interfaces, found.skipped, (*found.notes, *notes)))


def _ordered(found: Found) -> Found:
    """Put layer 2 before layer 10."""

    def key(one: Interface | Skipped) -> list[tuple[bool, int, str]]:
        parts = re.split(r"(\d+)", one.name)
        return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]

    return Found(tuple(sorted(found.interfaces, key=key)), tuple(sorted(found.skipped, key=key)), found.notes)


def _no_weights(root: Path, needed: str) -> PickledDataError | MissingFileError:
    pickled = sorted(one.name for one in root.iterdir() if one.suffix in PICKLES and one.name not in TRAINING)
    if pickled:
        return _pickle(root / pickled[0])
    return MissingFileError(f"{str(root)!r} holds no {needed}", "weights beside their configuration", "download them")


def _pickle(path: Path) -> PickledDataError:
    return PickledDataError(
        f"{path.name!r} is a pickle, which is never loaded, since loading one can run any program",
        "safetensors",
        "load it where you trust it, and save it with `safe_serialization=True`",
    )


def check_places(source: Path, out: Path) -> None:
    """Check that an output is apart from the input, and that nothing is there.

    **Raises:** `ParameterError`.
    """
    if out == source or out.is_relative_to(source) or source.is_relative_to(out):
        raise ParameterError(
            f"the output {str(out)!r} and the input {str(source)!r} are not apart",
            "an output outside of the input, and the input outside of the output",
            "choose another output; to replace the input, pass in_place=True (--in-place) and no output",
        )
    if out.is_symlink() or out.is_file() or (out.is_dir() and (source.is_file() or any(out.iterdir()))):
        raise ParameterError(
            f"the output {str(out)!r} exists",
            "a path where nothing is, or an empty directory for a directory",
            "remove it, or choose another",
        )
