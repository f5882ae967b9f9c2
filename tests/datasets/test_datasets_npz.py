import io
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fibration.datasets import load_npz
from fibration.errors import (
    EmptyDataError,
    FibrationError,
    FileFormatError,
    FileTooLargeError,
    NonFiniteDataError,
    PickledDataError,
    ShapeError,
    TruncatedFileError,
    UnknownNameError,
)

REAL = st.sampled_from(["<f4", ">f4", "<f8", ">f8", "<f2", "<i1", "<u1", ">i2", "<i4", ">i8", "<u8", "|b1"])


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def npy(array, shape=None, descr=None):
    """The bytes of a .npy file, with the header's shape and type replaced."""
    stream = io.BytesIO()
    header = {"descr": descr or array.dtype.str, "fortran_order": False, "shape": shape or array.shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + array.tobytes()


def save(path, compressed=False, **arrays):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def elements(dtype):
    return {"allow_nan": False, "allow_infinity": False} if np.dtype(dtype).kind == "f" else None


@given(st.data(), st.booleans(), st.booleans())
def test_round_trip(folder, data, compressed, fortran):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
    kind = data.draw(REAL)
    x = data.draw(hnp.arrays(kind, shape, elements=elements(kind)))
    y = data.draw(hnp.arrays(np.int32, shape[0]))
    stored = np.asfortranarray(x) if fortran else x
    inputs, targets = load_npz(save(folder / "a.npz", compressed, inputs=stored, targets=y))
    np.testing.assert_array_equal(inputs.reshape(x.shape), x.astype(np.float64) if x.dtype.kind != "f" else x)
    assert inputs.dtype == (x.dtype.newbyteorder("=") if x.dtype.kind == "f" else np.float64)
    assert inputs.dtype.isnative
    assert inputs.ndim == max(2, x.ndim)
    np.testing.assert_array_equal(targets, y)
    assert targets.dtype == np.int64


def test_names_and_real_targets(tmp_path):
    path = save(
        tmp_path / "a.npz", x=np.ones((3, 2)), y=np.array([0.5, 1.5, 2.5], np.float32), z=np.arange(6).reshape(3, 2)
    )
    assert load_npz(path, "x", "y").targets.tolist() == [[0.5], [1.5], [2.5]]
    assert load_npz(path, "x", "y").targets.dtype == np.float32
    assert load_npz(str(path), "x", "z").targets.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    with pytest.raises(UnknownNameError, match="x, y, z"):
        load_npz(path)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_all_versions_of_the_header(tmp_path, version):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.arange(3.0), version)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("inputs.npy", stream.getvalue())
        archive.writestr("targets.npy", npy(np.arange(3)))
    assert load_npz(tmp_path / "a.npz").inputs.ravel().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("inputs", "targets", "error"),
    [
        (np.ones((3, 2)), np.arange(4), ShapeError),
        (np.ones((3, 2)), np.float64(3), ShapeError),
        (np.ones((3, 2)), np.ones((3, 2, 2)), ShapeError),
        (np.ones((0, 2)), np.arange(0), EmptyDataError),
        (np.array([[1.0], [np.nan]]), np.arange(2), NonFiniteDataError),
        (np.ones((2, 1)), np.array([1.0, np.inf]), NonFiniteDataError),
        (np.ones(2, complex), np.arange(2), FileFormatError),
        (np.array(["a", "b"]), np.arange(2), FileFormatError),
        (np.zeros(2, [("a", "f8")]), np.arange(2), FileFormatError),
        (np.zeros(2, "M8[s]"), np.arange(2), FileFormatError),
        (np.ones(2), np.array([1, 2**64 - 1], np.uint64), FileFormatError),
    ],
)
def test_arrays_that_are_no_dataset(tmp_path, inputs, targets, error):
    with pytest.raises(error):
        load_npz(save(tmp_path / "a.npz", inputs=inputs, targets=targets))


@pytest.mark.parametrize("compressed", [False, True])
def test_every_truncation_is_noticed(tmp_path, compressed):
    data = save(tmp_path / "a.npz", compressed, inputs=np.ones((3, 2)), targets=np.arange(3)).read_bytes()
    cut = tmp_path / "cut.npz"
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        with pytest.raises(FibrationError):
            load_npz(cut)
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(TruncatedFileError):
        load_npz(cut)


@pytest.mark.parametrize("compressed", [False, True])
def test_flipped_bytes_load_or_raise(tmp_path, compressed):
    original = np.random.default_rng(0).random((3, 2))
    data = save(tmp_path / "a.npz", compressed, inputs=original, targets=np.arange(3)).read_bytes()
    generator, flipped, raised = np.random.default_rng(1), tmp_path / "flipped.npz", 0
    for offset in range(len(data)):
        changed = bytearray(data)
        changed[offset] ^= 1 << int(generator.integers(8))
        flipped.write_bytes(changed)
        try:
            inputs, targets = load_npz(flipped)
        except FibrationError:
            raised += 1
        else:
            # The checksum guards what is inside the entries.
            np.testing.assert_array_equal(inputs, original)
            assert targets.tolist() == [0, 1, 2]
    assert raised > len(data) / 2


def test_pickles_are_never_loaded(tmp_path):
    mark = tmp_path / "mark"
    trap = np.array([Trap(mark)], object)
    path = save(tmp_path / "a.npz", inputs=trap, targets=np.arange(1))
    np.load(path, allow_pickle=True)["inputs"]
    assert mark.exists()  # the trap works
    mark.unlink()
    with pytest.raises(PickledDataError):
        load_npz(path)
    with pytest.raises(PickledDataError):
        load_npz(save(path, inputs=np.ones(1), targets=trap))
    with pytest.raises(PickledDataError):
        load_npz(save(path, inputs=np.array([(1.0, Trap(mark))], [("a", "f8"), ("b", "O")]), targets=np.arange(1)))
    path.write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(PickledDataError):
        load_npz(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inputs.npy", pickle.dumps(Trap(mark)))
        archive.writestr("targets.npy", npy(np.arange(1)))
    with pytest.raises(FileFormatError):
        load_npz(path)
    assert not mark.exists()


def test_other_kinds_of_files(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(FileNotFoundError):
        load_npz(path)
    with pytest.raises(FileFormatError, match="directory"):
        load_npz(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(EmptyDataError):
        load_npz(path)
    path.write_bytes(b"Hello, this is text")
    with pytest.raises(FileFormatError):
        load_npz(path)
    path.write_bytes(npy(np.ones(3)))
    with pytest.raises(FileFormatError, match="savez"):
        load_npz(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError):
        load_npz(tmp_path / "pipe")


def test_encrypted_and_oddly_compressed_entries(tmp_path, write_zip):
    data = npy(np.ones(2))
    entries = [(name, 0, data, len(data), zlib.crc32(data)) for name in ("inputs.npy", "targets.npy")]
    write_zip(tmp_path / "a.npz", entries)
    assert load_npz(tmp_path / "a.npz").inputs.tolist() == [[1], [1]]  # the writer writes what can be read
    write_zip(tmp_path / "a.npz", entries, flags=1)
    with pytest.raises(FileFormatError, match="encrypted"):
        load_npz(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("inputs.npy", data)
    with pytest.raises(FileFormatError, match="compressed by method 14"):
        load_npz(tmp_path / "b.npz")


@pytest.mark.parametrize("shape", [(2**37,), (2**31, 2**31), (2**62,), (2**61, 2**61, 4)])
@pytest.mark.parametrize(("max_bytes", "error"), [(2**32, FileTooLargeError), (2**200, TruncatedFileError)])
def test_a_header_that_claims_a_terabyte(tmp_path, write_zip, small_memory, shape, max_bytes, error):
    data = npy(np.ones(3), shape)
    write_zip(tmp_path / "a.npz", [("inputs.npy", 0, data, len(data), zlib.crc32(data))])
    with small_memory(), pytest.raises(error):
        load_npz(tmp_path / "a.npz", max_bytes=max_bytes)


@pytest.mark.parametrize("method", [0, 8])
def test_an_entry_that_claims_as_much_as_its_header(tmp_path, write_zip, small_memory, method):
    data = npy(np.ones(3), (2**28,))
    packed = zlib.compress(data, wbits=-15) if method else data
    write_zip(tmp_path / "a.npz", [("inputs.npy", method, packed, len(data) - 24 + 2**31, zlib.crc32(data))])
    with small_memory(), pytest.raises(TruncatedFileError):
        load_npz(tmp_path / "a.npz")


def test_max_bytes_counts_both_arrays(tmp_path):
    path = save(tmp_path / "a.npz", inputs=np.ones((10, 2)), targets=np.arange(10))
    load_npz(path, max_bytes=240)
    with pytest.raises(FileTooLargeError):
        load_npz(path, max_bytes=239)
    with pytest.raises(FileTooLargeError):
        load_npz(path, max_bytes=159)


@pytest.mark.parametrize("honest", [True, False])
def test_zip_bomb(tmp_path, write_zip, zero_blocks, small_memory, honest):
    head = zlib.compressobj(1, zlib.DEFLATED, -15)
    start = npy(np.ones(3))
    data = head.compress(start) + head.flush(zlib.Z_FULL_FLUSH) + zero_blocks[1] * 70 + b"\x03\x00"
    size = len(start) + 70 * zero_blocks[2]
    assert size > 1e9
    assert len(data) < 1e7
    write_zip(tmp_path / "a.npz", [("inputs.npy", 8, data, size if honest else len(start), 0)])
    with small_memory(), pytest.raises(FileFormatError):
        load_npz(tmp_path / "a.npz")


def test_a_header_without_end(tmp_path, write_zip, zero_blocks, small_memory):
    head = zlib.compressobj(1, zlib.DEFLATED, -15)
    start = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**30)
    data = head.compress(start) + head.flush(zlib.Z_FULL_FLUSH) + zero_blocks[1] * 64 + b"\x03\x00"
    write_zip(tmp_path / "a.npz", [("inputs.npy", 8, data, 12 + 2**30, 0)])
    with small_memory(), pytest.raises(FileTooLargeError):
        load_npz(tmp_path / "a.npz")


def test_a_table_of_contents_without_end(tmp_path, small_memory):
    body = b"PK\3\4" + bytes(26)
    table = (b"PK\1\2" + bytes(42)) * 500_000
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(table), len(body), 0)
    (tmp_path / "a.npz").write_bytes(body + table + b"PK\5\6" + end)
    del table
    with small_memory(), pytest.raises(FileTooLargeError):
        load_npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (True,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': 3}",
        "{'descr': '<f8', 'fortran_order': 0, 'shape': (3,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': " + repr((1,) * 40) + "}",
        "{'descr': '|V0', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '|S1000000000000', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<f8', 'fortran_order': False}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), 'more': 1}",
        "__import__('os').getcwd()",
        "(" * 5000,
        "[1, 2",
    ],
)
def test_malformed_headers(tmp_path, header):
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(24)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("inputs.npy", data)
        archive.writestr("targets.npy", npy(np.arange(3)))
    with pytest.raises(FileFormatError):
        load_npz(tmp_path / "a.npz")


def test_bytes_after_the_array(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("inputs.npy", npy(np.ones(3)) + b"x")
    with pytest.raises(FileFormatError, match="holds more"):
        load_npz(tmp_path / "a.npz")
