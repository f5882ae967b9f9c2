import csv
import io
import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fibration.datasets._columns import (
    CELLS,
    Columns,
    Selection,
    check_finite,
    choose,
    finish,
    gap,
    not_numeric,
)
from fibration.datasets._dataset import Dataset
from fibration.datasets._files import MAX_BYTES, FilePath, check_limit, open_file, reading
from fibration.errors import EmptyDataError, FileFormatError, FileTooLargeError

_LONGEST_ROW = 2**21
_MOST_COLUMNS = 2**16
_FEWEST_ROWS = 64  # read at once; each piece costs a fixed time per column


def load_csv(
    path: FilePath,
    target: Columns,
    *,
    inputs: Columns | None = None,
    header: bool = True,
    separator: str = ",",
    classes: bool | None = None,
    max_bytes: int = MAX_BYTES,
) -> Dataset:
    r"""Load a table from a text file in UTF-8 whose rows are samples.

    **Arguments:** `path`: the file; `target`: name or number (from 0, or from the end if negative) of the target
    column, or several of them; `inputs`: the input columns, by default all others; `header`: whether the first row
    holds names; `separator`: one character; `classes`: what one target column means. True: classes, numbered from 0 in
    the sorted order of their names or numbers. False: real numbers. None: text is numbered likewise (in the order of
    its characters), whole numbers are class labels as they are, other numbers are real. `max_bytes`: the most bytes
    that the file, and that the arrays, may take.

    **Returns:** inputs (N, d) float64; targets (N,) int64 for classes, (N, Q) float64 for numbers.

    **Raises:** `FileNotFoundError`; `UnknownNameError` for a column that is not there; `NonFiniteDataError` naming the
    row and column of a missing or infinite value; `FileFormatError` naming a column of text among the inputs, or for a
    malformed file; `FileTooLargeError`; `EmptyDataError`; `ShapeError`.

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from fibration.datasets import load_csv
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "pets.csv"
    ...     _ = path.write_text("weight,height,kind\n30,60,dog\n4,25,cat\n")
    ...     load_csv(path, target="kind")
    Dataset(inputs=array([[30., 60.],
           [ 4., 25.]]), targets=array([1, 0]))

    ```
    """
    if len(separator) != 1:
        raise FileFormatError(f"separator = {separator!r}", "one character", r"use ',', ';' or '\t'")
    with open_file(path) as (raw, size):
        check_limit(path, size, max_bytes)
        with reading(path, "CSV"), io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
            first, length = _first_row(file, separator, path)
            names = first if header else [str(index) for index in range(len(first))]
            selection = choose(path, names, target=target, inputs=inputs, classes=classes)
            file.seek(0)
            if header:
                # pandas does not get to see the names: it takes quadratic time to tell equal ones apart.
                file.read(length)
            return _read(file, path, selection, separator, max_bytes)


def _first_row(file: io.TextIOWrapper, separator: str, path: FilePath) -> tuple[list[str], int]:
    """The first row that is not blank, and how many characters it ends after.

    It fixes the number of columns, which decides how much memory a row takes.
    """
    start = file.read(_LONGEST_ROW)
    lines = io.StringIO(start, newline="")
    rows = csv.reader(lines, delimiter=separator)
    row = next(filter(None, rows), None)
    length = lines.tell()
    if row is None:
        raise EmptyDataError(f"{os.fspath(path)} has no rows", "at least one row", "check the file")
    if (len(start) == _LONGEST_ROW and next(rows, None) is None) or len(row) > _MOST_COLUMNS:
        raise FileTooLargeError(
            f"the first row of {os.fspath(path)} has {len(row):,} or more columns",
            f"at most {_MOST_COLUMNS:,} columns and {_LONGEST_ROW:,} characters",
            "check that rows end with a line break, or use `load_npz`",
        )
    return row, length


def _read(file: io.TextIOWrapper, path: FilePath, selection: Selection, separator: str, max_bytes: int) -> Dataset:
    pd = _pandas()
    # Before pandas 3 the default was a faster parser that is off by a unit in the last place.
    exact: dict[str, Any] = {"float_precision": "round_trip"} if int(pd.__version__.split(".")[0]) < 3 else {}
    inputs: list[NDArray[np.float64]] = []
    answers: list[Any] = []
    rows = 0
    with warnings.catch_warnings():
        # pandas only warns of rows that are too long, and drops their end.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        # In pieces, because short rows are filled up: a wide first row and many short ones would need any amount of
        # memory. The first piece with a gap ends the reading.
        pieces = pd.read_csv(
            file,
            sep=separator,
            header=None,
            names=list(range(len(selection.names))),
            index_col=False,
            dtype=dict.fromkeys(selection.targets, str),
            chunksize=max(_FEWEST_ROWS, CELLS // len(selection.names)),
            low_memory=False,
            **exact,
        )
        for piece in pieces:
            if len(piece) == 0:
                continue
            inputs.append(_numbers(piece[selection.inputs], selection.input_names, rows + 1, path))
            answer = piece[selection.targets]
            _check_complete(answer, selection.target_names, rows + 1, path)
            answers.append(answer)
            rows += len(piece)
            check_limit(path, rows * 8 * (len(selection.inputs) + len(selection.targets)), max_bytes)
    if rows == 0:
        raise EmptyDataError(
            f"{os.fspath(path)} has no rows of data", "at least one row", "check the file and `header`"
        )
    targets, text = _parse_targets(pd.concat(answers), selection, path)
    return finish(path, inputs, [targets], text=text, classes=selection.classes)


def _numbers(frame: Any, names: list[str], first: int, path: FilePath) -> NDArray[np.float64]:
    """(n, d) numbers from the input columns; `first` is the number of the first row."""
    pd = _pandas()
    if not all(getattr(dtype, "kind", "O") in "biuf" for dtype in frame.dtypes):
        columns = [frame.iloc[:, position] for position in range(len(names))]
        parsed = [pd.to_numeric(column, errors="coerce").astype(np.float64) for column in columns]
        for name, column, numbers in zip(names, columns, parsed, strict=True):
            wrong = column[column.notna() & numbers.isna()]
            if len(wrong):
                raise not_numeric(name, f"the text {str(wrong.iloc[0])[:50]!r}", path)
        # What is left are whole numbers of more than 64 bits, and columns with gaps.
        frame = pd.concat(parsed, axis=1)
    values = frame.to_numpy(np.float64)
    check_finite(values, names, first, path)
    return values


def _check_complete(frame: Any, names: list[str], first: int, path: FilePath) -> None:
    missing = frame.isna().to_numpy()
    if missing.any():
        row, column = divmod(int(np.argmax(missing)), len(names))
        raise gap(first + row, names[column], path)


def _parse_targets(frame: Any, selection: Selection, path: FilePath) -> tuple[NDArray[Any], bool]:
    """Targets (N, Q), read as text so that no class name is changed, and whether they stay text."""
    pd = _pandas()
    parsed = [pd.to_numeric(frame[index], errors="coerce") for index in selection.targets]
    for name, numbers, index in zip(selection.target_names, parsed, selection.targets, strict=True):
        wrong = frame[index][numbers.isna()]
        if len(wrong) and (len(parsed) > 1 or selection.classes is False):
            raise not_numeric(name, f"the text {str(wrong.iloc[0])[:50]!r}", path)
        if len(wrong):
            return frame.to_numpy(object), True
    if len(parsed) == 1 and parsed[0].dtype.kind == "i":
        return parsed[0].to_numpy()[:, None], False
    values = np.stack([numbers.to_numpy(np.float64) for numbers in parsed], axis=1)
    check_finite(values, selection.target_names, 1, path)
    return values, False


def _pandas() -> Any:
    """The module, without its types: they admit more kinds of columns than can occur here."""
    import pandas as pd

    return pd
