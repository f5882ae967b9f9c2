import io
import os
import re
from collections.abc import Sequence
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
from fibration.datasets._files import MAX_BYTES, FilePath, check_limit, open_file, reading, truncated
from fibration.errors import FileFormatError, MissingExtraError

# A file's own tables of contents may not take more than this, in bytes of text and in numbers of items.
_LIMITS: dict[str, Any] = {"thrift_string_size_limit": 2**24, "thrift_container_size_limit": 2**18}


def load_parquet(
    path: FilePath,
    target: Columns,
    *,
    inputs: Columns | None = None,
    classes: bool | None = None,
    max_bytes: int = MAX_BYTES,
) -> Dataset:
    """Load a table from a Parquet file whose rows are samples; needs pyarrow (`pip install 'fibration[scale]'`).

    **Arguments:** `path`: the file; `target`, `inputs`, `classes`: as for `load_csv`; an index column that pandas
    stored (`__index_level_0__`) is left out; `max_bytes`: the most bytes that the arrays, and that the whole file
    unpacked, may take. Beyond that pyarrow may take up to 2 GiB for a page that claims to be so large.

    **Returns:** inputs (N, d) float64; targets (N,) int64 for classes, (N, Q) float64 for numbers.

    **Raises:** `MissingExtraError` without pyarrow; otherwise as `load_csv`, and `TruncatedFileError` if rows are
    missing.

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> import pyarrow as pa, pyarrow.parquet as pq
    >>> from fibration.datasets import load_parquet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "pets.parquet"
    ...     pq.write_table(pa.table({"weight": [30.0, 4.0], "kind": ["dog", "cat"]}), path)
    ...     load_parquet(path, target="kind")
    Dataset(inputs=array([[30.],
           [ 4.]]), targets=array([1, 0]))

    ```
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError(
            "pyarrow is not installed", "pyarrow, to read Parquet files", "run `pip install 'fibration[scale]'`"
        ) from error
    with open_file(path) as (file, _):
        if file.read(4) != b"PAR1":
            raise FileFormatError(f"{os.fspath(path)} is not Parquet", "the magic number PAR1", "check the file")
        with reading(path, "Parquet"):
            file.seek(0)
            table = pq.ParquetFile(file, **_LIMITS)
            names = _column_names(table.schema_arrow, path)
            selection = choose(path, names, target=target, inputs=inputs, classes=classes)
            text = _check_types(table.schema_arrow, selection, path)
            width = len(selection.inputs) + len(selection.targets)
            _check_claims(table.metadata, width, path, max_bytes)
            return _read(file, path, selection, table.metadata.num_rows, text=text)


def _column_names(schema: Any, path: FilePath) -> list[str]:
    names = [name for name in schema.names if not re.fullmatch(r"__index_level_\d+__", name)]
    if len(set(names)) != len(names):
        raise FileFormatError(f"{os.fspath(path)} has two columns of one name", "distinct names", "rename one")
    return names


def _check_types(schema: Any, selection: Selection, path: FilePath) -> bool:
    """Raise `FileFormatError` for a column of the wrong type; return whether the target is text."""
    types = {name: _value_type(schema.field(name).type) for name in selection.names}
    targets = selection.target_names
    text = len(targets) == 1 and selection.classes is not False and _is_text(types[targets[0]])
    for name in selection.input_names if text else selection.input_names + targets:
        if not _is_real(types[name]):
            raise not_numeric(name, f"values of type {types[name]}", path)
    return text


def _read(file: io.BufferedReader, path: FilePath, selection: Selection, claimed: int, *, text: bool) -> Dataset:
    import pyarrow.parquet as pq

    chosen, width = selection.input_names + selection.target_names, len(selection.inputs)
    # Text stays in its dictionary: spelt out, one long name in every row would take any amount of memory.
    encoded = selection.target_names if text else []
    file.seek(0)
    table = pq.ParquetFile(file, read_dictionary=encoded, page_checksum_verification=True, **_LIMITS)
    pieces: list[NDArray[np.float64]] = []
    answers: list[NDArray[Any]] = []
    rows = 0
    # Batches stop at the first gap, and use no more memory than the rows that are really there.
    for batch in table.iter_batches(batch_size=max(1, CELLS // len(chosen)), columns=chosen, use_threads=False):
        columns = [batch.column(batch.schema.get_field_index(name)) for name in chosen]
        for name, column in zip(chosen, columns, strict=True):
            if column.null_count:
                missing = column.is_null().to_numpy(zero_copy_only=False)
                raise gap(rows + 1 + int(np.argmax(missing)), name, path)
        pieces.append(_numbers(columns[:width], chosen, rows + 1, path))
        answers.append(_strings(columns[-1]) if text else _targets(columns[width:], chosen[width:], rows + 1, path))
        rows += batch.num_rows
    if rows != claimed:
        raise truncated(path, f"{claimed:,} rows where {rows:,} could be read")
    return finish(path, pieces, answers, text=text, classes=selection.classes)


def _check_claims(metadata: Any, width: int, path: FilePath, max_bytes: int) -> None:
    """Compare what the file says of itself with the limit, before any data are read.

    Sizes are taken from the row groups: to ask pyarrow for a column of damaged metadata can abort the process.
    """
    check_limit(path, metadata.num_rows * 8 * width, max_bytes)
    check_limit(path, sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)), max_bytes)


def _value_type(kind: Any) -> Any:
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_real(kind: Any) -> bool:
    import pyarrow as pa

    known = pa.types
    return bool(known.is_integer(kind) or known.is_floating(kind) or known.is_boolean(kind) or known.is_decimal(kind))


def _numbers(columns: Sequence[Any], names: Sequence[str], first: int, path: FilePath) -> NDArray[np.float64]:
    """(n, d) float64 from columns without gaps."""
    import pyarrow as pa

    values: list[NDArray[np.float64]] = []
    for column in columns:
        plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        if pa.types.is_boolean(plain.type):
            plain = plain.cast(pa.uint8())
        # Whole numbers above 2^53 are rounded, as they are in a CSV file.
        values.append(plain.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    joined = np.stack(values, axis=1)
    check_finite(joined, names, first, path)
    return joined


def _targets(columns: Sequence[Any], names: Sequence[str], first: int, path: FilePath) -> NDArray[Any]:
    """(n, Q): one column of whole numbers as they are, anything else as float64."""
    import pyarrow as pa

    kind = _value_type(columns[0].type)
    if len(columns) == 1 and (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        plain = columns[0].dictionary_decode() if pa.types.is_dictionary(columns[0].type) else columns[0]
        return np.asarray(plain.cast(pa.int64()).to_numpy(zero_copy_only=False))[:, None]
    return _numbers(columns, names, first, path)


def _strings(column: Any) -> NDArray[Any]:
    """(n, 1) Python strings, each distinct one held once."""
    encoded = column if hasattr(column, "dictionary") else column.dictionary_encode()
    words = np.array([*encoded.dictionary.to_pylist(), None], object)[:-1]
    return words[encoded.indices.to_numpy(zero_copy_only=False)][:, None]
