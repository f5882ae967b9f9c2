import gzip
import io
import math
import os
import struct
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fibration.datasets._dataset import Dataset, as_floating
from fibration.datasets._files import (
    DEFLATE_RATIO,
    MAX_BYTES,
    FilePath,
    check_ended,
    check_limit,
    open_file,
    read_exactly,
    reading,
    truncated,
)
from fibration.errors import EmptyDataError, FileFormatError, PickledDataError, ShapeError, UnknownNameError

_GZIP = b"\x1f\x8b"
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CIFAR_PIXELS = 3 * 32 * 32


def read_idx(path: FilePath, *, max_bytes: int = MAX_BYTES) -> NDArray[Any]:
    """Read one array from an IDX file, the format of MNIST, gzipped or not (told from the contents, not the name).

    **Arguments:** `path`: the file; `max_bytes`: the most bytes that the array may take.

    **Returns:** the array with the file's shape and type (uint8, int8, int16, int32, float32 or float64).

    **Raises:** `FileNotFoundError`; `FileFormatError` (wrong magic number, bytes left over, corrupt gzip);
    `TruncatedFileError`; `FileTooLargeError` before anything is allocated; `EmptyDataError`.

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from fibration.datasets import read_idx
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "labels"
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     read_idx(path)
    array([7, 2, 1], dtype=uint8)

    ```
    """
    return _read_idx(path, max_bytes, 1)


def load_mnist(
    images: FilePath,
    labels: FilePath,
    *,
    flat: bool = False,
    dtype: type[np.floating] = np.float64,
    max_bytes: int = MAX_BYTES,
) -> Dataset:
    """Load images and their labels from two IDX files: MNIST, Fashion-MNIST, KMNIST, EMNIST and the like.

    **Arguments:** `images`, `labels`: the files, gzipped or not; `flat`: give each image as one row; `dtype`: floating
    type of the result; `max_bytes`: the most bytes that the inputs may take, counted in `dtype`.

    **Returns:** inputs (N, H, W, 1), or (N, H·W) if `flat`, uint8 divided by 255 into [0, 1] and other types unscaled;
    targets (N,) int64.

    **Raises:** what `read_idx` raises; `ShapeError` if there are not as many labels as images, or if labels are not
    (N,); `FileFormatError` if labels are not whole numbers from 0; `NonFiniteDataError`.

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from fibration.datasets import load_mnist
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     images, labels = Path(folder) / "images", Path(folder) / "labels"
    ...     _ = images.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 255]))
    ...     _ = labels.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]))
    ...     x, y = load_mnist(images, labels, flat=True)
    >>> x, y
    (array([[0., 1.]]), array([7]))

    ```
    """
    raw_labels = _read_idx(labels, max_bytes, 8)
    if raw_labels.ndim != 1:
        raise ShapeError(
            f"labels in {os.fspath(labels)} have shape {raw_labels.shape}",
            "shape (N,)",
            "swap the two files if need be",
        )
    if raw_labels.dtype.kind == "f" or int(raw_labels.min()) < 0:
        raise FileFormatError(
            f"labels in {os.fspath(labels)} are {raw_labels.dtype}, the least {raw_labels.min()}",
            "whole numbers from 0",
            "check that this is the file of labels",
        )
    pixels = _read_idx(images, max_bytes, np.dtype(dtype).itemsize)
    if len(pixels) != len(raw_labels):
        raise ShapeError(
            f"there are {len(pixels)} images and {len(raw_labels)} labels",
            "one label for each image",
            "check that both files belong to the same split",
        )
    scaled = as_floating(pixels, f"images of {os.fspath(images)}") if pixels.dtype.kind == "f" else pixels
    inputs = scaled.astype(dtype)
    if pixels.dtype == np.uint8:
        inputs /= 255
    if flat or inputs.ndim == 1:
        inputs = inputs.reshape(len(inputs), -1)
    elif inputs.ndim == 3:
        inputs = inputs[..., None]
    return Dataset(inputs, raw_labels.astype(np.int64))


def load_cifar(
    path: FilePath | Sequence[FilePath],
    *,
    classes: int = 10,
    fine: bool = True,
    dtype: type[np.floating] = np.float64,
    max_bytes: int = MAX_BYTES,
) -> Dataset:
    """Load CIFAR-10 or CIFAR-100 from the files of the *binary version* (`data_batch_1.bin`, …, `train.bin`).

    **Arguments:** `path`: one file, or several to be joined; `classes`: 10 or 100; `fine`: for CIFAR-100, the 100 fine
    classes rather than the 20 coarse ones; `dtype`: floating type of the inputs; `max_bytes`: the most bytes that the
    inputs may take, counted in `dtype`.

    **Returns:** inputs (N, 32, 32, 3), red, green and blue in [0, 1]; targets (N,) int64.

    **Raises:** `FileNotFoundError`; `UnknownNameError` for another number of classes; `TruncatedFileError` if the size
    is not a whole number of records; `PickledDataError` for the Python version; `FileFormatError` for labels out of
    range; `FileTooLargeError`; `EmptyDataError`.

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from fibration.datasets import load_cifar
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "data_batch_1.bin"
    ...     _ = path.write_bytes(bytes([7]) + bytes(3072))
    ...     x, y = load_cifar(path)
    >>> x.shape, y
    ((1, 32, 32, 3), array([7]))

    ```
    """
    if classes not in (10, 100):
        raise UnknownNameError(f"classes = {classes}", "10 or 100", "pass `classes=10` or `classes=100`")
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise EmptyDataError("no file was named", "at least one", "pass the paths of the batches")
    records: list[NDArray[np.uint8]] = []
    left = max_bytes
    for one in paths:
        records.append(_read_cifar(one, classes, left, np.dtype(dtype).itemsize))
        left -= len(records[-1]) * _CIFAR_PIXELS * np.dtype(dtype).itemsize
    joined = np.concatenate(records)
    planes = joined[:, -_CIFAR_PIXELS:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    inputs = planes.astype(dtype, order="C")
    inputs /= 255
    return Dataset(inputs, joined[:, 1 if classes == 100 and fine else 0].astype(np.int64))


def _read_idx(path: FilePath, max_bytes: int, widened: int) -> NDArray[Any]:
    """The array of an IDX file; each element counts at least `widened` bytes against `max_bytes`."""
    with open_file(path) as (file, size), reading(path, "IDX"):
        start = file.read(2)
        file.seek(0)
        if start == _GZIP:
            with gzip.GzipFile(fileobj=file) as stream:
                return _parse_idx(cast(io.BufferedIOBase, stream), path, DEFLATE_RATIO * size, max_bytes, widened)
        return _parse_idx(file, path, size, max_bytes, widened)


def _parse_idx(stream: io.BufferedIOBase, path: FilePath, available: int, max_bytes: int, widened: int) -> NDArray[Any]:
    zeros, code, ndim = struct.unpack(">HBB", read_exactly(stream, 4, path))
    if zeros != 0 or code not in _IDX_TYPES or not 1 <= ndim <= 32:
        raise FileFormatError(
            f"{os.fspath(path)} starts with 0x{zeros:04x}{code:02x}{ndim:02x}",
            "the magic number 0x0000, an element type from 0x08 to 0x0e, and 1 to 32 dimensions",
            "check that this is an IDX file",
        )
    shape = struct.unpack(f">{ndim}I", read_exactly(stream, 4 * ndim, path))
    dtype = np.dtype(_IDX_TYPES[code])
    count = math.prod(shape)
    if count == 0:
        raise EmptyDataError(f"{os.fspath(path)} has shape {shape}", "at least one sample", "check the file")
    check_limit(path, count * max(dtype.itemsize, widened), max_bytes)
    if 4 + 4 * ndim + count * dtype.itemsize > available:
        raise truncated(path, f"{count * dtype.itemsize:,} bytes for an array of shape {shape}")
    data = read_exactly(stream, count * dtype.itemsize, path)
    check_ended(stream, path)
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _read_cifar(path: FilePath, classes: int, max_bytes: int, itemsize: int) -> NDArray[np.uint8]:
    """The records of one file, (N, 3073) or (N, 3074): labels, then the red, green and blue planes."""
    limits = (10,) if classes == 10 else (20, 100)
    name, width = os.fspath(path), len(limits) + _CIFAR_PIXELS
    with open_file(path) as (file, size):
        start = file.read(2)
        if start[:1] == b"\x80":
            raise PickledDataError(
                f"{name} is a Python pickle", "the binary version", "download `cifar-…-binary.tar.gz`"
            )
        if start == _GZIP:
            raise FileFormatError(
                f"{name} is compressed", "the .bin file inside the archive", "unpack it with `tar -xzf`"
            )
        if size % width:
            raise truncated(path, f"records of {width} bytes for classes={classes}; it has {size:,} bytes")
        check_limit(path, size // width * _CIFAR_PIXELS * itemsize, max_bytes)
        file.seek(0)
        records = np.frombuffer(read_exactly(file, size, path), np.uint8).reshape(-1, width)
    for column, limit in enumerate(limits):
        highest = int(records[:, column].max())
        if highest >= limit:
            raise FileFormatError(
                f"{name} has the label {highest}", f"labels under {limit}", "check `classes` and the file"
            )
    return records
