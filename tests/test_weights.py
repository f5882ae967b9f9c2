"""The safetensors format: written for and by the library that defines it, and whatever else may stand in a file."""

import errno
import json
import os
import pickle
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file, save_file

from fibration.errors import (
    FibrationError,
    FileFormatError,
    FileTooLargeError,
    MissingFileError,
    OutputDirectoryError,
    PickledDataError,
    TruncatedFileError,
    UnknownNameError,
)
from fibration.weights import _atomic, read, write

TYPES = [
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
]


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(start, stop, dtype="F32", shape=None):
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


# --- what is written is read by the library, and the other way round --------------------------------------------------


@pytest.mark.parametrize("name", TYPES)
def test_every_type_goes_through_the_library_and_back(tmp_path, name):
    values = np.random.default_rng(0).integers(0, 2 if name == "bool" else 100, (3, 4)).astype(dtype_of(name))
    tensors = {"a": values, "scalar": values[0, 0].reshape(()), "empty": values[:0], "turned": values.T}
    path = write(tmp_path / "a.safetensors", tensors, {"key": "väl"})
    ours = read(path)
    assert ours.metadata == {"key": "väl"}
    for key, array in tensors.items():
        assert ours[key].dtype == array.dtype
        assert ours[key].tobytes() == array.tobytes()
        assert ours[key].shape == array.shape
    with safetensors.safe_open(path, "pt") as file:  # torch knows all these types, numpy not
        assert file.metadata() == {"key": "väl"}
        for key, array in tensors.items():
            theirs = file.get_tensor(key)
            assert tuple(theirs.shape) == array.shape
            assert theirs.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == array.tobytes()


def test_files_of_the_library_are_read(tmp_path):
    tensors = {
        "half": torch.randn(3, 5, dtype=torch.float16),
        "brain": torch.randn(7, dtype=torch.bfloat16),
        "long": torch.arange(4),
        "eight": torch.randn(4, 4).to(torch.float8_e4m3fn),
        "flag": torch.tensor([True, False]),
    }
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    found = read(tmp_path / "a.safetensors")
    assert set(found) == set(tensors)
    assert len(found) == 5
    assert found.metadata == {"format": "pt"}
    for name, tensor in tensors.items():
        assert found[name].tobytes() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    assert found.dtypes["eight"] == "F8_E4M3"
    assert "half" in found
    assert "5 tensors of a.safetensors" in repr(found)
    with pytest.raises(KeyError):
        found["absent"]


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__"),
        hnp.arrays(st.sampled_from(["f2", "f4", "f8", "i1", "u2", "?"]), hnp.array_shapes(min_dims=0, min_side=0)),
        max_size=5,
    )
)
def test_any_tensors_come_back(tmp_path_factory, tensors):
    path = write(tmp_path_factory.getbasetemp() / "any.safetensors", tensors)
    found, theirs = read(path), safetensors.numpy.load_file(path)
    assert set(found) == set(theirs) == set(tensors)
    for name, array in tensors.items():
        assert found[name].tobytes() == theirs[name].tobytes() == array.tobytes()


def test_big_endian_numbers_are_written_as_the_format_wants_them(tmp_path):
    path = write(tmp_path / "a.safetensors", {"x": np.arange(3, dtype=">f4")})
    assert safetensors.numpy.load_file(path)["x"].tolist() == [0, 1, 2]


def test_reading_is_lazy_and_read_only(tmp_path):
    path = write(tmp_path / "a.safetensors", {"big": np.zeros(20_000_000), "small": np.ones(3)})
    tracemalloc.start()
    found = read(path)
    big, small = found["big"], found["small"]
    assert small.sum() == 3
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    with pytest.raises(ValueError, match="read-only"):
        big[0] = 1
    write(path, {"other": np.ones(2)})  # replaced, not overwritten: what was opened stays
    assert big[-1] == 0
    assert list(read(path)) == ["other"]


def test_tensors_at_odd_places_and_of_unknown_types(tmp_path):
    header = {"a": entry(0, 1, "U8", [1]), "x": entry(1, 9, "F32", [2]), "new": entry(9, 12, "F4", [6])}
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw(header, b"\7" + np.array([1, 2], "<f4").tobytes() + b"abc"))
    found = read(path)
    assert found["x"].tolist() == [1, 2]
    assert found["x"].flags.aligned
    assert found.dtypes["new"] == "F4"
    with pytest.raises(FileFormatError, match="F4"):
        found["new"]


# --- what is not a safetensors file -----------------------------------------------------------------------------------

BROKEN = {
    "empty": (b"", TruncatedFileError, "0 bytes"),
    "seven bytes": (b"1234567", TruncatedFileError, "7 bytes"),
    "length beyond the file": (raw({}, length=100), TruncatedFileError, "header"),
    "length beyond reason": (raw({}, length=2**63 + 5), FileTooLargeError, "header"),
    "no header at all": (bytes(8), FileFormatError, "brace"),
    "not JSON": (raw(b"{'a': 1}"), FileFormatError, "JSON"),
    "not UTF-8": (raw(b'{"\xff": 1}'), FileFormatError, "JSON"),
    "not a table": (raw(b"[1]"), FileFormatError, "brace"),
    "space first": (raw(b" {}"), FileFormatError, "brace"),
    "deep": (raw(b'{"a":' + b"[" * 200_000), FileFormatError, "JSON"),
    "huge number": (raw(b'{"a":' + b"9" * 10_000 + b"}"), FileFormatError, "JSON"),
    "half a character": (raw(b'{"\\ud800": 1}'), FileFormatError, "JSON"),
    "twice": (
        raw(
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"x",
        ),
        FileFormatError,
        "twice",
    ),
    "entry no table": (raw({"a": 3}), FileFormatError, "dtype"),
    "entry with more": (raw({"a": entry(0, 4) | {"x": 1}}, bytes(4)), FileFormatError, "dtype"),
    "negative": (raw({"a": entry(0, 4, shape=[-1])}, bytes(4)), FileFormatError, "shape"),
    "true as a number": (raw({"a": entry(0, 4, shape=[True])}, bytes(4)), FileFormatError, "shape"),
    "a broken number": (raw({"a": entry(0, 4, shape=[1.0])}, bytes(4)), FileFormatError, "shape"),
    "overflow": (raw({"a": entry(0, 4, shape=[2**62, 2**62])}, bytes(4)), FileFormatError, "need"),
    "absurd size": (raw({"a": entry(0, 2**60, shape=[2**58])}, bytes(4)), TruncatedFileError, "would end"),
    "wrong length": (raw({"a": entry(0, 4, shape=[2])}, bytes(4)), FileFormatError, "need 8"),
    "backwards": (raw({"a": entry(4, 0, "F4", [1])}, bytes(4)), FileFormatError, "ends before"),
    "overlap": (raw({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)), FileFormatError, "overlaps"),
    "gap": (raw({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), FileFormatError, "gap"),
    "too short": (raw({"a": entry(0, 8)}, bytes(7)), TruncatedFileError, "would end"),
    "too long": (raw({"a": entry(0, 8)}, bytes(9)), FileFormatError, "1 bytes follow"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}}), FileFormatError, "metadata"),
    "metadata no table": (raw({"__metadata__": "a"}), FileFormatError, "metadata"),
    "pickle": (pickle.dumps(list(range(50))), PickledDataError, "never loaded"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", FileFormatError, "git lfs pull"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_and_refused(tmp_path, case):
    contents, error, words = BROKEN[case]
    path = tmp_path / "a.safetensors"
    path.write_bytes(contents)
    tracemalloc.start()
    with pytest.raises(error, match=words):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()


def test_torch_archives_directories_and_pipes(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(PickledDataError):
        read(tmp_path / "a.pt")
    with pytest.raises(FileFormatError, match="a directory"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="not a regular file"):
        read(tmp_path / "pipe")
    with pytest.raises(MissingFileError):
        read(tmp_path / "absent")


VALID = raw({"a": entry(0, 8, shape=[2, 1]), "__metadata__": {"x": "y"}, "b": entry(8, 12)}, bytes(range(12)))


@given(st.data())
def test_no_corruption_does_more_than_raise_our_errors(tmp_path_factory, data):
    contents = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(contents)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "digits"]))
        if kind == "flip" and place < len(contents):
            contents[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del contents[place : place + data.draw(st.integers(1, 20))]
        elif kind == "insert":
            contents[place:place] = data.draw(st.binary(max_size=12))
        else:
            contents[place:place] = str(data.draw(st.integers(-(2**70), 2**70))).encode()
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(contents)
    tracemalloc.start()
    try:
        for array in read(path).values():
            assert array.nbytes <= len(contents)
    except FibrationError as error:
        str(error).encode()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2e6


NAMES = ["dtype", "shape", "data_offsets", "F32", "__metadata__", "a"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@given(ANYTHING, st.binary(max_size=8))
def test_no_header_does_more_than_raise_our_errors(tmp_path_factory, header, data):
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    path.write_bytes(raw({"a": header} if not isinstance(header, dict) else header, data))
    try:
        read(path)
    except FileFormatError:
        return
    assert isinstance(header, dict)


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"a": np.array(["x"])}, None),
        ({"a": np.array([1j])}, None),
        ({"a": np.array([None])}, None),
        ({3: np.ones(2)}, None),
        ({"__metadata__": np.ones(2)}, None),
        ({"a": np.ones(2)}, {"steps": 3}),
    ],
)
def test_what_the_format_cannot_hold(tmp_path, tensors, metadata):
    with pytest.raises(UnknownNameError):
        write(tmp_path / "a.safetensors", tensors, metadata)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write(tmp_path / "a.safetensors", {"a": np.ones(2)})
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_atomic.os, "fsync", full)
    with pytest.raises(OutputDirectoryError, match="No space left"):
        write(path, {"b": np.zeros(9)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_absent_directory(tmp_path):
    with pytest.raises(OutputDirectoryError, match="No such file"):
        write(tmp_path / "absent" / "a.safetensors", {"a": np.ones(2)})


def test_torch_reads_what_is_written(tmp_path):
    path = write(tmp_path / "a.safetensors", {"w": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)})
    assert torch.equal(load_file(path)["w"], torch.arange(6, dtype=torch.bfloat16).reshape(2, 3))
