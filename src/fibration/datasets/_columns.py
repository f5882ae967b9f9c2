"""What the readers of tables share: which columns are meant, and what the targets are."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fibration.datasets._dataset import Dataset
from fibration.datasets._files import FilePath
from fibration.errors import EmptyDataError, FileFormatError, NonFiniteDataError, ShapeError, UnknownNameError

Column = str | int
Columns = Column | Sequence[Column]

# Cells held at once as text or Python objects; it bounds the memory beyond the result.
CELLS = 2**18


class Selection(NamedTuple):
    """The columns that are read: their positions, the names of all columns, and what `classes` was given."""

    names: list[str]
    targets: list[int]
    inputs: list[int]
    classes: bool | None

    @property
    def target_names(self) -> list[str]:
        return [self.names[index] for index in self.targets]

    @property
    def input_names(self) -> list[str]:
        return [self.names[index] for index in self.inputs]


def choose(
    path: FilePath, names: list[str], *, target: Columns, inputs: Columns | None, classes: bool | None
) -> Selection:
    """Find the target columns and the input columns, by default all the others."""
    targets = [_position(names, column, path) for column in _listed(target)]
    if inputs is None:
        features = [index for index in range(len(names)) if index not in set(targets)]
    else:
        features = [_position(names, column, path) for column in _listed(inputs)]
    chosen = targets + features
    if not targets or not features:
        raise EmptyDataError(
            f"{len(targets)} target and {len(features)} input columns are chosen from {os.fspath(path)}",
            "at least one of each",
            "check `target`, `inputs` and the separator",
        )
    if len(set(chosen)) != len(chosen):
        raise ShapeError(
            f"a column of {os.fspath(path)} is chosen twice", "each column once", "check `target` and `inputs`"
        )
    if classes and len(targets) > 1:
        raise ShapeError(
            f"classes=True with {len(targets)} target columns of {os.fspath(path)}",
            "one target column",
            "choose one column",
        )
    return Selection(names, targets, features, classes)


def finish(
    path: FilePath,
    inputs: list[NDArray[np.float64]],
    targets: list[NDArray[Any]],
    *,
    text: bool,
    classes: bool | None,
) -> Dataset:
    """Join the pieces and give the targets their meaning.

    **Arguments:** `inputs`: pieces (n, d); `targets`: pieces (n, Q), numbers, or (n, 1) of strings if `text`;
    `classes`: as the public readers describe it.
    """
    if sum(map(len, inputs)) == 0:
        raise EmptyDataError(f"{os.fspath(path)} has no rows of data", "at least one row", "check the file")
    x, y = np.concatenate(inputs), np.concatenate(targets)
    # Python's set and dict instead of a fixed-width array of text: that would make every row as long as the longest.
    if text:
        codes = {name: code for code, name in enumerate(sorted(set(y[:, 0].tolist())))}
        return Dataset(x, np.array([codes[name] for name in y[:, 0].tolist()], np.int64))
    if classes:
        return Dataset(x, np.unique(y[:, 0], return_inverse=True)[1].astype(np.int64))
    if classes is None and y.shape[1] == 1 and y.dtype.kind in "biu":
        return Dataset(x, y[:, 0].astype(np.int64))
    return Dataset(x, y.astype(np.float64))


def check_finite(values: NDArray[np.float64], names: Sequence[str], first: int, path: FilePath) -> None:
    """Raise `NonFiniteDataError` at the first NaN or infinity of (n, d) values, whose first row is number `first`."""
    finite = np.isfinite(values)
    if not finite.all():
        row, column = divmod(int(np.argmin(finite)), values.shape[1])
        raise gap(first + row, names[column], path)


def gap(row: int, name: str, path: FilePath) -> NonFiniteDataError:
    """The error for a missing or non-finite cell."""
    return NonFiniteDataError(
        f"row {row} of {os.fspath(path)} has no finite value in column {name!r}",
        "a finite value in every cell (rows of data count from 1; empty, NA, NaN and null cells are missing)",
        "drop the row or fill the gap",
    )


def not_numeric(name: str, found: str, path: FilePath) -> FileFormatError:
    """The error for a column that should hold numbers."""
    return FileFormatError(
        f"column {name!r} of {os.fspath(path)} holds {found}",
        "real numbers",
        "leave the column out with `inputs=`, or replace its values by numbers",
    )


def _listed(columns: Columns) -> list[Column]:
    return [columns] if isinstance(columns, str | int | np.integer) else list(columns)


def _position(names: Sequence[str], column: Column, path: FilePath) -> int:
    if isinstance(column, int | np.integer):
        if not -len(names) <= column < len(names):
            raise UnknownNameError(
                f"column {column} of {os.fspath(path)}, which has {len(names)}",
                f"a number from {-len(names)} to {len(names) - 1}",
                "count the columns from 0",
            )
        return column % len(names)
    found = [index for index, name in enumerate(names) if name == column]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(names[:20])[:400]
    raise UnknownNameError(
        f"{os.fspath(path)} has {len(found) or 'no'} columns named {column!r}",
        f"one of: {listed}",
        "check the name, or give the column's number",
    )
