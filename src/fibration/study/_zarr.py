"""One `xarray.Dataset` as a directory in Zarr's third format, which `xarray.open_zarr` reads.

Runs are many and small, and `Dataset.to_zarr` takes some 70 ms for seven arrays of 60 numbers. A directory without
compression is a few JSON files and the bytes of the arrays, which this module writes by itself: Zarr core specification
3.1 (https://zarr-specs.readthedocs.io/en/latest/v3/core/), with chunk keys "v2", the codec "bytes", and the metadata
of all arrays once more in the group's, as zarr-python consolidates them. What a name, a coordinate or a date is called
there is decided by `xarray.conventions`. Reading is left to xarray and zarr.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingExtraError, StoreError
from ._files import flush_all
from ._plain import decode, dumps, encode

if TYPE_CHECKING:
    import xarray

CHUNK_BYTES = 2**26
NAMES = "fibration_names"  # the attribute that tells which "." of the stored names were "/"
CODECS = {"bytes", "crc32c", "blosc", "gzip", "zstd", "transpose", "sharding_indexed", "vlen-utf8"}
KINDS = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex"}
# Attributes by which xarray would change the values that it reads.
RESERVED = {"_FillValue", "missing_value", "scale_factor", "add_offset", "dtype", "coordinates", "_Unsigned", NAMES}


def write_dataset(directory: Path, dataset: Any) -> str:
    """Write a dataset into a new directory, bring it to the disk, and return the hash of its contents.

    Every array is one chunk, or chunks of 64 MiB along its first axis. A "/" in a name, which would make a group that
    `open_zarr` does not look into, is stored as "."; `read_dataset` undoes that.

    **Raises:** `StoreError` for what cannot be stored: objects, attributes that are not plain, names of no file.
    """
    lines: list[str] = []
    made = {directory}
    directory.mkdir()
    for name, contents in _files(dataset):
        path = directory / name
        if path.parent not in made:
            path.parent.mkdir()
        path.write_bytes(contents)
        made |= {path, path.parent}
        lines.append(_line(name, hashlib.sha256(contents)))
    flush_all(made)
    return _digest(lines)


def hash_directory(directory: Path) -> str:
    """Hash the files of a result: SHA-256 over one line "path SHA-256" for each file, sorted.

    **Raises:** `OSError` if one cannot be read.
    """
    lines: list[str] = []
    for parent, _, names in os.walk(directory, onerror=_raise):
        for name in names:
            path = Path(parent) / name
            with path.open("rb") as file:
                lines.append(_line(path.relative_to(directory).as_posix(), hashlib.file_digest(file, "sha256")))
    return _digest(lines)


def read_dataset(path: Path) -> "xarray.Dataset":
    """Open a result; arrays are read when they are used. Names and attributes are those that were written.

    **Raises:** `StoreError` if it cannot be opened; `MissingExtraError` without zarr.
    """
    try:
        import xarray
        import zarr  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise MissingExtraError(
            "zarr is not installed", "zarr 3 to read results", "install it: `pip install 'fibration[scale]'`"
        ) from error
    try:
        _check_codecs(path)
        dataset = xarray.open_zarr(path, chunks=None)
    except Exception as error:  # whatever damaged files make json, zarr or xarray raise
        raise StoreError(
            f"the result {str(path)!r} cannot be opened: {type(error).__name__}: {error}",
            "the files as Fibration wrote them, in Zarr's third format",
            "let `store.verify` say which results differ; remove the run's directory to compute it again",
        ) from error
    dataset = dataset.assign_attrs(decode(dataset.attrs))
    for variable in dataset.variables.values():
        if variable.attrs:
            variable.attrs = decode(variable.attrs)
    names = dataset.attrs.pop(NAMES, None)
    return dataset if names is None else dataset.rename(json.loads(names))


def _files(dataset: Any) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a dataset, the chunks first."""
    from xarray.conventions import encode_dataset_coordinates

    dataset = _with_flat_names(_checked(dataset))
    variables, attributes = encode_dataset_coordinates(dataset)
    members: dict[str, Any] = {}
    for name, variable in variables.items():
        array, attached = _plain_array(name, variable)
        rows = _rows_of_a_chunk(array)
        shape = [rows, *array.shape[1:]] if array.ndim else []
        members[str(name)] = _array_metadata(array, shape, variable.dims, attached)
        for number, chunk in enumerate(_chunks(array, rows)):
            yield f"{name}/{'.'.join([str(number), *'0' * (array.ndim - 1)])}", chunk
        yield f"{name}/zarr.json", dumps(members[str(name)]).encode()
    consolidated = {"kind": "inline", "must_understand": False, "metadata": members}
    group = {"zarr_format": 3, "node_type": "group", "attributes": _attributes("the dataset", attributes)}
    yield "zarr.json", dumps(group | {"consolidated_metadata": consolidated}).encode()


def _checked(dataset: Any) -> "xarray.Dataset":
    import xarray

    if not isinstance(dataset, xarray.Dataset):
        raise StoreError(
            f"a result of type {type(dataset).__name__}", "an xarray.Dataset", "call its `to_xarray()`, or make one"
        )
    for name in {*dataset.variables, *dataset.dims}:
        if not _can_be_a_file(name):
            raise StoreError(
                f"a variable or dimension with the name {name!r}",
                "at most 200 bytes of printable text that can be the name of a file",
                "rename it: `dataset.rename(...)`",
            )
    for name, variable in dataset.variables.items():
        changing = set(variable.attrs) & RESERVED
        if "since" in str(variable.attrs.get("units", "")).split():
            changing.add("units")
        if changing:
            raise StoreError(
                f"variable {name!r} has the attributes {sorted(changing)}",
                "attributes by which xarray would not change the values when it reads them",
                "rename or drop these attributes",
            )
    spaced = [name for name in dataset.coords if " " in str(name) and name not in dataset.dims]
    if spaced:
        raise StoreError(
            f"coordinates with spaces in their names: {spaced}",
            "coordinates that the CF conventions can list",
            "rename them: `dataset.rename(...)`",
        )
    return dataset


def _can_be_a_file(name: Any) -> bool:
    if not isinstance(name, str) or not name.isprintable() or len(name.encode()) > 200:
        return False
    return not (name.startswith(".") or "\\" in name or "" in name.split("/") or name == "zarr.json")


def _with_flat_names(dataset: "xarray.Dataset") -> "xarray.Dataset":
    """Replace each "/" in names by "." and note which were replaced."""
    every = {str(name) for name in {*dataset.variables, *dataset.dims}}
    flat = {name: name.replace("/", ".") for name in every if "/" in name}
    if not flat:
        return dataset
    if len({flat.get(name, name) for name in every}) < len(every):
        raise StoreError(
            f"names that differ only in '/' and '.': {sorted(flat)}",
            "names that stay different when '/' is stored as '.'",
            "rename one of them: `dataset.rename(...)`",
        )
    note = json.dumps({new: old for old, new in sorted(flat.items())})
    return dataset.rename(flat).assign_attrs({NAMES: note})


def _plain_array(name: Any, variable: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Make a contiguous little-endian array of a variable, and its attributes."""
    from xarray.conventions import encode_cf_variable

    if variable.dtype.kind in "mM":
        variable = encode_cf_variable(variable, name=name)
    array = np.asarray(variable.values)
    if array.dtype.kind == "T":
        array = array.astype(str)
    if array.dtype.kind == "U":
        array = array.astype(f"<U{max(array.dtype.itemsize // 4, 1)}", copy=False)
    elif array.dtype.kind not in KINDS or array.dtype.itemsize > (16 if array.dtype.kind == "c" else 8):
        raise StoreError(
            f"variable {name!r} has dtype {array.dtype}",
            "numbers of at most 64 bits (complex: 128), true or false, text or dates; never Python objects",
            "convert it with `.astype(float)` or `.astype(str)`",
        )
    attached = _attributes(f"variable {name!r}", variable.attrs)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape), attached


def _attributes(where: str, attributes: Any) -> dict[str, Any]:
    return encode(attributes, f"attributes of {where}")


def _rows_of_a_chunk(array: np.ndarray) -> int:
    if array.ndim == 0 or array.size == 0:
        return 1
    row = array.nbytes // array.shape[0]
    return min(array.shape[0], max(1, CHUNK_BYTES // row))


def _chunks(array: np.ndarray, rows: int) -> Iterator[bytes]:
    """Cut an array along its first axis; the last chunk is filled up with zeros."""
    if array.ndim == 0:
        yield array.tobytes()
        return
    for start in range(0, array.shape[0] if array.size else 0, rows):
        chunk = array[start : start + rows].tobytes()
        yield chunk.ljust(rows * (array.nbytes // array.shape[0]), b"\0")


def _array_metadata(array: np.ndarray, chunk: list[int], dims: Any, attributes: dict[str, Any]) -> dict[str, Any]:
    """Describe an array as the specification does; `chunk`: the shape of a chunk, at least 1 along each axis."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    fill: Any = {"b": False, "c": [0.0, 0.0], "U": "", "f": 0.0}.get(kind, 0)
    named: Any = "bool" if kind == "b" else f"{KINDS.get(kind)}{8 * size}"
    if kind == "U":
        named = {"name": "fixed_length_utf32", "configuration": {"length_bytes": size}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": named,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(n, 1) for n in chunk]}},
        "chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": attributes,
        "dimension_names": [str(dim) for dim in dims],
        "storage_transformers": [],
    }


def _check_codecs(path: Path) -> None:
    """Refuse what is not Zarr's third format with codecs that decode numbers and text only; some others unpickle."""
    root = json.loads((path / "zarr.json").read_bytes())
    held = [root, *root.get("consolidated_metadata", {}).get("metadata", {}).values()]
    held += [json.loads(one.read_bytes()) for one in path.glob("*/zarr.json")]
    for metadata in held:
        if metadata["zarr_format"] != 3:
            raise ValueError(f"Zarr's format {metadata['zarr_format']}")
        unknown = set(_codec_names(metadata.get("codecs", []))) - CODECS
        if unknown:
            raise ValueError(f"codecs that are not read here: {sorted(unknown)}")


def _codec_names(codecs: Any) -> Iterator[str]:
    for codec in codecs:
        if isinstance(codec, str):
            yield codec
            continue
        yield codec["name"]
        configuration = codec.get("configuration", {})
        yield from _codec_names(configuration.get("codecs", []))
        yield from _codec_names(configuration.get("index_codecs", []))


def _line(name: str, digest: Any) -> str:
    return f"{name} {digest.hexdigest()}\n"


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()


def _raise(error: OSError) -> None:
    raise error
