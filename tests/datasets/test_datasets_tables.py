import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fibration.datasets import load_csv, load_parquet
from fibration.errors import (
    EmptyDataError,
    FibrationError,
    FileFormatError,
    FileTooLargeError,
    MissingExtraError,
    NonFiniteDataError,
    ShapeError,
    TruncatedFileError,
    UnknownNameError,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)
PETS = {"weight": [30.5, 4.0, 2.0], "legs": [4, 4, 2], "age": [3, 5, 1], "kind": ["dog", "cat", "bird"]}


def save(path, frame, kind):
    if kind == "csv":
        frame.to_csv(path, index=False)
        return load_csv
    frame.to_parquet(path)
    return load_parquet


both = pytest.mark.parametrize("kind", ["csv", "parquet"])


@both
@given(rows=st.lists(st.tuples(FINITE, FINITE, st.integers(-(2**60), 2**60)), min_size=1, max_size=20))
def test_round_trip(folder, kind, rows):
    frame = pd.DataFrame(rows, columns=["a", "b", "label"]).astype({"a": float, "b": float, "label": "int64"})
    load = save(folder / "a", frame, kind)
    inputs, targets = load(folder / "a", "label")
    np.testing.assert_array_equal(inputs, frame[["a", "b"]].to_numpy())
    np.testing.assert_array_equal(targets, frame["label"].to_numpy())
    assert (inputs.dtype, targets.dtype) == (np.float64, np.int64)


@both
def test_what_targets_mean(tmp_path, kind):
    path = tmp_path / "pets"
    load = save(path, pd.DataFrame(PETS), kind)
    inputs, targets = load(path, "kind")
    assert inputs.tolist() == [[30.5, 4, 3], [4, 4, 5], [2, 2, 1]]
    assert targets.tolist() == [2, 1, 0]
    assert targets.dtype == np.int64
    assert load(path, -1).targets.tolist() == [2, 1, 0]
    assert load(path, "kind", classes=True).targets.tolist() == [2, 1, 0]
    numeric = ["weight", "age"]
    assert load(path, "legs", inputs=numeric).targets.tolist() == [4, 4, 2]
    assert load(path, "legs", inputs=numeric, classes=True).targets.tolist() == [1, 1, 0]
    assert load(path, "legs", inputs=numeric, classes=False).targets.tolist() == [[4.0], [4.0], [2.0]]
    assert load(path, "weight", inputs=[1]).targets.tolist() == [[30.5], [4.0], [2.0]]
    assert load(path, "weight", inputs="age", classes=True).targets.tolist() == [2, 1, 0]
    result = load(path, ["age", "weight"], inputs=["legs"])
    assert result.targets.tolist() == [[3, 30.5], [5, 4], [1, 2]]
    assert result.inputs.tolist() == [[4], [4], [2]]


@both
def test_bad_columns(tmp_path, kind):
    path = tmp_path / "pets"
    load = save(path, pd.DataFrame(PETS), kind)
    with pytest.raises(UnknownNameError, match="weight, legs, age, kind"):
        load(path, "colour")
    for number in (4, -5):
        with pytest.raises(UnknownNameError):
            load(path, number)
    with pytest.raises(FileFormatError, match="'kind'"):
        load(path, "legs")
    with pytest.raises(FileFormatError, match="'kind'"):
        load(path, "kind", classes=False)
    with pytest.raises(FileFormatError, match="'kind'"):
        load(path, ["age", "kind"], inputs=["weight"])
    with pytest.raises(ShapeError):
        load(path, ["age", "legs"], inputs=["weight"], classes=True)
    with pytest.raises(ShapeError, match="twice"):
        load(path, "age", inputs=["age"])
    with pytest.raises(EmptyDataError):
        load(path, [])
    with pytest.raises(EmptyDataError):
        load(path, "age", inputs=[])


@both
@pytest.mark.parametrize(("column", "value"), [("weight", None), ("weight", np.inf), ("kind", None), ("age", None)])
def test_gaps_are_located(tmp_path, kind, column, value):
    frame = pd.DataFrame(PETS)
    if column == "age":
        frame["age"] = pd.array([3, None, 1], dtype="Int64")
    else:
        frame.loc[1, column] = value
    load = save(tmp_path / "pets", frame, kind)
    with pytest.raises(NonFiniteDataError, match=rf"row 2 .*'{column}'"):
        load(tmp_path / "pets", "kind")
    if column == "age":
        with pytest.raises(NonFiniteDataError, match=r"row 2 .*'age'"):
            load(tmp_path / "pets", "age", inputs=["legs"])


@both
def test_a_gap_in_a_later_piece_has_its_row(tmp_path, kind):
    values = np.zeros(300_000)
    values[280_000] = np.nan
    load = save(tmp_path / "long", pd.DataFrame({"x": values, "y": np.ones(300_000, int)}), kind)
    with pytest.raises(NonFiniteDataError, match="row 280001 "):
        load(tmp_path / "long", "y")


@both
def test_many_pieces_are_joined(tmp_path, kind):
    frame = pd.DataFrame({"x": np.arange(300_000.0), "y": np.where(np.arange(300_000) % 7 < 3, "a", "b")})
    load = save(tmp_path / "long", frame, kind)
    inputs, targets = load(tmp_path / "long", "y")
    np.testing.assert_array_equal(inputs[:, 0], frame["x"])
    np.testing.assert_array_equal(targets, np.arange(300_000) % 7 >= 3)


@both
def test_max_bytes(tmp_path, kind):
    load = save(tmp_path / "a", pd.DataFrame({"x": np.zeros(1000), "y": np.zeros(1000, int)}), kind)
    load(tmp_path / "a", "y", max_bytes=16_000)
    with pytest.raises(FileTooLargeError):
        load(tmp_path / "a", "y", max_bytes=15_999)


@both
def test_missing_empty_and_directory(tmp_path, kind):
    load = save(tmp_path / "none", pd.DataFrame({"x": [], "y": []}), kind)
    with pytest.raises(EmptyDataError, match="no rows"):
        load(tmp_path / "none", "y")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent", "y")
    with pytest.raises(FileFormatError, match="directory"):
        load(tmp_path, "y")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(EmptyDataError):
        load(tmp_path / "empty", "y")


def csv(tmp_path, text):
    (tmp_path / "a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path / "a.csv"


def test_csv_without_header_and_with_other_separators(tmp_path):
    inputs, targets = load_csv(csv(tmp_path, "1;2;0\r\n3;4;1\r\n"), 2, header=False, separator=";")
    assert inputs.tolist() == [[1, 2], [3, 4]]
    assert targets.tolist() == [0, 1]
    with pytest.raises(FileFormatError):
        load_csv(tmp_path / "a.csv", 2, separator="::")


def test_csv_with_marks_quotes_and_blank_lines(tmp_path):
    text = '\ufeff\n"first, one",y\n\n1,"two\nlines"\n2,007\n\n3,a\n'
    inputs, targets = load_csv(csv(tmp_path, text), "y", inputs="first, one")
    assert inputs.tolist() == [[1], [2], [3]]
    assert targets.tolist() == [2, 0, 1]


def test_csv_truth_values_and_large_numbers(tmp_path):
    text = f"a,b,y\nTrue,{10**30},1\nFalse,2,0\n"
    assert load_csv(csv(tmp_path, text), "y").inputs.tolist() == [[1, 1e30], [0, 2]]


def test_class_names_keep_their_spelling(tmp_path):
    # Were the column read as numbers first, "01" and "1" would be one class.
    assert load_csv(csv(tmp_path, "x,y\n0,01\n0,1\n0,one\n"), "y").targets.tolist() == [0, 1, 2]


def test_columns_of_one_name(tmp_path):
    path = csv(tmp_path, "x,x,y\n1,2,0\n")
    assert load_csv(path, "y").inputs.tolist() == [[1, 2]]
    with pytest.raises(UnknownNameError, match="2 columns"):
        load_csv(path, "y", inputs="x")
    table = pa.table([pa.array([1.0]), pa.array([2.0]), pa.array([0])], names=["x", "x", "y"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(FileFormatError):
        load_parquet(tmp_path / "a.parquet", "y")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a,y\n1,2\n3,4,5\n", FileFormatError),
        ("a,y\n1,2,3\n4,5,6\n", FileFormatError),
        ("a,y\n1,2\n3\n", NonFiniteDataError),
        ('a,y\n1,"2\n3,4\n', FileFormatError),
        ('a,"y\n1,2\n', FibrationError),
        (b"a,y\n1,\xff\n", FileFormatError),
        (b"a,y\n\x00,\x00\n", FibrationError),
        ("a,y\n1_0,2\n", FileFormatError),
        ("a,y\n1+2j,2\n", FileFormatError),
        ("a,y\n,1\n,2\n", NonFiniteDataError),
        ("a,y\n1,inf\n", NonFiniteDataError),
        ("\n\n\n", EmptyDataError),
        ("a,y", EmptyDataError),
        ("y\n1\n", EmptyDataError),
    ],
)
def test_malformed_csv(tmp_path, text, error):
    with pytest.raises(error):
        load_csv(csv(tmp_path, text), "y")


def test_compressed_csv_is_not_unpacked(tmp_path):
    pd.DataFrame(PETS).to_csv(tmp_path / "a.csv.gz", index=False)
    with pytest.raises(FibrationError):
        load_csv(tmp_path / "a.csv.gz", "kind")


def test_flipped_bytes_of_csv_load_or_raise(tmp_path):
    data = pd.DataFrame(PETS).to_csv(index=False).encode()
    raised = 0
    for offset in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[offset] ^= 1 << bit
            try:
                load_csv(csv(tmp_path, bytes(changed)), "kind")
            except FibrationError:
                raised += 1
    assert raised > len(data)


def test_short_rows_are_not_filled_up(tmp_path, small_memory):
    # 40 kB that pandas alone would turn into 10 000 x 10 000 numbers, 800 MB.
    path = csv(tmp_path, "y" + ",a" * 10_000 + "\n" + "1\n" * 10_000)
    with small_memory(), pytest.raises(NonFiniteDataError, match="row 1 "):
        load_csv(path, 0)


@pytest.mark.parametrize(
    "text", ["," * 10_000_000, "x" * 10_000_000, "a" + ",a" * 200_000 + "\n1,2"], ids=["gaps", "word", "names"]
)
def test_endless_rows(tmp_path, small_memory, text):
    path = csv(tmp_path, text)
    with small_memory(), pytest.raises(FileFormatError):
        load_csv(path, 0)


def test_a_huge_csv_is_refused_before_it_is_read(tmp_path, small_memory):
    with open(tmp_path / "a.csv", "wb") as file:
        file.truncate(5 * 2**30)  # sparse: it takes no space
    with small_memory(), pytest.raises(FileTooLargeError):
        load_csv(tmp_path / "a.csv", 0)


def table(**columns):
    return pa.table(
        {name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()}
    )


def parquet(tmp_path, data, **options):
    pq.write_table(data, tmp_path / "a.parquet", **options)
    return tmp_path / "a.parquet"


def test_parquet_types(tmp_path):
    data = table(
        a=pa.array([1, 2], pa.uint8()),
        b=pa.array([0.5, 1.5], pa.float32()),
        c=[True, False],
        d=pa.array([1, 2]).cast(pa.decimal128(21, 2)),
        e=pa.array([7, 8]).dictionary_encode(),
        y=pa.array(["b", "a"]).dictionary_encode(),
    )
    path = parquet(tmp_path, data)
    assert load_parquet(path, "y").inputs.tolist() == [[1, 0.5, 1, 1, 7], [2, 1.5, 0, 2, 8]]
    assert load_parquet(path, "y").targets.tolist() == [1, 0]
    assert load_parquet(path, "e", inputs="a").targets.tolist() == [7, 8]
    assert load_parquet(path, "c", inputs="a").targets.tolist() == [1, 0]


def test_a_pandas_index_is_left_out(tmp_path):
    pd.DataFrame({"x": [1.0, 2.0], "y": [0, 1]}, index=[7, 9]).to_parquet(tmp_path / "a.parquet")
    assert "__index_level_0__" in pq.read_schema(tmp_path / "a.parquet").names
    assert load_parquet(tmp_path / "a.parquet", "y").inputs.tolist() == [[1], [2]]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([b"a", b"b"]),
        pa.array([[1.0], [2.0]]),
        pa.array([{"u": 1}, {"u": 2}]),
        pa.array([1, 2], pa.timestamp("s")),
        pa.array([None, None]),
    ],
)
def test_parquet_columns_that_are_no_numbers(tmp_path, values):
    with pytest.raises(FileFormatError, match="'x'"):
        load_parquet(parquet(tmp_path, table(x=values, y=[0, 1])), "y")


def test_labels_beyond_64_bits(tmp_path):
    with pytest.raises(FileFormatError):
        load_parquet(parquet(tmp_path, table(x=[1.0], y=pa.array([2**64 - 1], pa.uint64()))), "y")


@pytest.mark.parametrize("compression", ["snappy", "none", "gzip", "zstd"])
def test_every_truncation_of_parquet_is_noticed(tmp_path, compression):
    data = parquet(tmp_path, table(x=[1.0, 2.0], y=["a", "b"]), compression=compression).read_bytes()
    cut = tmp_path / "cut"
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        with pytest.raises(FibrationError):
            load_parquet(cut, "y")


@pytest.mark.parametrize("compression", ["snappy", "none"])
def test_flipped_bytes_of_parquet_load_or_raise(tmp_path, compression):
    data = parquet(tmp_path, table(x=[1.0, 2.0], y=["a", "b"]), compression=compression).read_bytes()
    generator, raised = np.random.default_rng(2), 0
    for offset in range(len(data)):
        changed = bytearray(data)
        changed[offset] ^= 1 << int(generator.integers(8))
        (tmp_path / "flipped").write_bytes(changed)
        try:
            load_parquet(tmp_path / "flipped", "y")
        except FibrationError:
            raised += 1
    assert raised > len(data) / 10


def test_checksums_of_pages_are_verified(tmp_path):
    path = parquet(
        tmp_path,
        table(x=[1.5, 2.5], y=[0, 1]),
        write_page_checksum=True,
        use_dictionary=False,
        compression="none",
        write_statistics=False,
    )
    data = path.read_bytes()
    assert data.count(np.float64(1.5).tobytes()) >= 1
    path.write_bytes(data.replace(np.float64(1.5).tobytes(), np.float64(1.625).tobytes(), 1))
    with pytest.raises(FileFormatError, match=r"(?i)crc"):
        load_parquet(path, "y")


def test_many_rows_in_few_bytes(tmp_path, small_memory):
    count = 20_000_000
    constant = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int8)), pa.array([1.0]))
    path = parquet(tmp_path, table(x=constant, y=constant))
    del constant
    assert path.stat().st_size < 1e6
    with small_memory(), pytest.raises(FileTooLargeError):
        load_parquet(path, "y", max_bytes=16 * count - 1)


def test_long_class_names_are_held_once(tmp_path, small_memory):
    # 100 000 rows that name a class of 100 kB: 10 GB if each row were spelt out.
    names = pa.array(["a" * 100_000, "b"])
    data = table(x=np.zeros(100_000), y=pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int8)), names))
    path = parquet(tmp_path, data)
    before = pa.default_memory_pool().max_memory()
    with small_memory():
        assert load_parquet(path, "y").targets.max() == 0
    assert pa.default_memory_pool().max_memory() - before < 64e6


def test_rows_that_are_not_there(tmp_path, monkeypatch):
    path = parquet(tmp_path, table(x=[1.0, 2.0], y=[0, 1]))
    original = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: (batch.slice(1) for batch in original(*a, **k)))
    with pytest.raises(TruncatedFileError, match="1 could be read"):
        load_parquet(path, "y")


def test_what_is_no_parquet(tmp_path):
    for data in (b"text", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"PAR1\xff\xff\xff\x7fPAR1"):
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(FileFormatError):
            load_parquet(tmp_path / "a", "y")


def test_without_pyarrow(tmp_path, monkeypatch):
    path = parquet(tmp_path, table(x=[1.0], y=[0]))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fibration\[scale\]'"):
        load_parquet(path, "y")
