import gzip
import os
import pickle
import struct
import zlib
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fibration.datasets import load_cifar, load_mnist, read_idx
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

CODES = {">u1": 8, ">i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}


def idx(array, code=None, shape=None):
    """The bytes of an IDX file, with the header's code and shape replaced."""
    shape = array.shape if shape is None else shape
    big = array.astype(array.dtype.newbyteorder(">"))
    kind = f">{array.dtype.kind}{array.dtype.itemsize}"
    return (
        struct.pack(f">HBB{len(shape)}I", 0, CODES[kind] if code is None else code, len(shape), *shape) + big.tobytes()
    )


def write(path, data):
    path.write_bytes(data)
    return path


@given(st.data(), st.sampled_from(sorted(CODES)), st.booleans())
def test_idx_round_trip(folder, data, kind, zipped):
    array = data.draw(hnp.arrays(kind, hnp.array_shapes(max_dims=4, max_side=5)))
    stored = gzip.compress(idx(array)) if zipped else idx(array)
    result = read_idx(write(folder / ("a" if zipped else "a.gz"), stored))
    np.testing.assert_array_equal(result, array)
    assert result.dtype == array.dtype.newbyteorder("=")
    assert result.dtype.isnative
    assert result.shape == array.shape


def test_mnist(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    images = write(tmp_path / "images", gzip.compress(idx(pixels)))
    labels = write(tmp_path / "labels.gz", idx(np.array([3, 1, 4, 1, 5], np.uint8)))
    inputs, targets = load_mnist(images, str(labels))
    np.testing.assert_array_equal(inputs, pixels[..., None] / 255)
    assert targets.tolist() == [3, 1, 4, 1, 5]
    assert (inputs.dtype, targets.dtype) == (np.float64, np.int64)
    flat, _ = load_mnist(images, labels, flat=True, dtype=np.float32)
    np.testing.assert_allclose(flat, pixels.reshape(5, 12) / 255, rtol=1e-6)
    assert flat.dtype == np.float32
    # Five images of 12 pixels take 480 bytes as float64.
    load_mnist(images, labels, max_bytes=480)
    with pytest.raises(FileTooLargeError):
        load_mnist(images, labels, max_bytes=479)


def test_other_element_types_are_not_scaled(tmp_path):
    values = np.array([[-3.5, 2.0], [1.0, 300.0]], np.float32)
    images, labels = write(tmp_path / "x", idx(values)), write(tmp_path / "y", idx(np.array([0, 1], np.int32)))
    np.testing.assert_array_equal(load_mnist(images, labels).inputs, values)
    write(images, idx(np.array([1.0, np.nan])))
    with pytest.raises(NonFiniteDataError):
        load_mnist(images, labels)


def test_mnist_files_that_do_not_fit(tmp_path):
    images = write(tmp_path / "images", idx(np.zeros((2, 3, 3), np.uint8)))
    labels = tmp_path / "labels"
    with pytest.raises(ShapeError, match="2 images and 3 labels"):
        load_mnist(images, write(labels, idx(np.zeros(3, np.uint8))))
    with pytest.raises(ShapeError, match="swap"):
        load_mnist(labels, images)
    with pytest.raises(FileFormatError):
        load_mnist(images, write(labels, idx(np.array([0, -1], np.int8))))
    with pytest.raises(FileFormatError):
        load_mnist(images, write(labels, idx(np.zeros(2, np.float32))))
    with pytest.raises(FileNotFoundError):
        load_mnist(images, tmp_path / "none")


@pytest.mark.parametrize("zipped", [False, True])
def test_every_truncation_of_idx_is_noticed(tmp_path, zipped):
    data = idx(np.arange(12, dtype=np.int16).reshape(3, 4))
    data = gzip.compress(data) if zipped else data
    for length in range(len(data)):
        path = write(tmp_path / "cut", data[:length])
        with pytest.raises(EmptyDataError if length == 0 else FileFormatError):
            read_idx(path)
    with pytest.raises(TruncatedFileError):
        read_idx(write(tmp_path / "cut", data[:-1]))


@pytest.mark.parametrize("zipped", [False, True])
def test_flipped_bytes_of_idx_load_or_raise(tmp_path, zipped):
    array = np.arange(12, dtype=np.int16).reshape(3, 4)
    data = gzip.compress(idx(array), mtime=0) if zipped else idx(array)
    raised = []
    for offset in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[offset] ^= 1 << bit
            try:
                result = read_idx(write(tmp_path / "flipped", bytes(changed)))
            except FibrationError:
                raised.append(offset)
            else:
                assert result.size == 12
    # Without checksum only the header can betray a change; with it everything but the time, flags and system name can.
    assert set(raised) >= (set(range(10, len(data))) if zipped else set(range(12)))


def test_wrong_magic(tmp_path):
    good = idx(np.arange(3, dtype=np.uint8))
    for data in (
        b"\x01" + good[1:],
        b"\0\0\x0a\x01" + good[4:],
        b"\0\0\x08\x00",
        b"\0\0\x08\xff" + bytes(2000),
        b"text" * 9,
    ):
        with pytest.raises(FileFormatError):
            read_idx(write(tmp_path / "a", data))
    with pytest.raises(FileFormatError):
        read_idx(write(tmp_path / "a", gzip.compress(b"text" * 9)))
    with pytest.raises(FileFormatError, match="directory"):
        read_idx(tmp_path)


@pytest.mark.parametrize("zipped", [False, True])
def test_bytes_left_over(tmp_path, zipped):
    data = idx(np.arange(3, dtype=np.uint8)) + b"\0"
    with pytest.raises(FileFormatError, match="goes on"):
        read_idx(write(tmp_path / "a", gzip.compress(data) if zipped else data))


def test_idx_without_samples(tmp_path):
    for shape in [(0,), (0, 5), (5, 0), (2**32 - 1, 2**32 - 1, 0)]:
        with pytest.raises(EmptyDataError):
            read_idx(write(tmp_path / "a", idx(np.zeros(0, np.uint8), shape=shape)))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("shape", [(2**31, 2**31), (2**30,), (2**32 - 1,) * 32], ids=["square", "line", "deep"])
@pytest.mark.parametrize("max_bytes", [2**32, 10**999], ids=["limited", "unlimited"])
def test_absurd_idx_headers(tmp_path, small_memory, zipped, shape, max_bytes):
    data = idx(np.arange(3, dtype=np.uint8), shape=shape)
    path = write(tmp_path / "a", gzip.compress(data) if zipped else data)
    error = TruncatedFileError if max_bytes > 2**32 or shape == (2**30,) else FileTooLargeError
    with small_memory(), pytest.raises(error):
        read_idx(path, max_bytes=max_bytes)


def test_gzip_bomb(tmp_path, zero_blocks, small_memory):
    bomb = gzip.compress(idx(np.arange(3, dtype=np.uint8))) + zero_blocks[0] * 70
    assert 70 * zero_blocks[2] > 1e9
    assert len(bomb) < 1e7
    with small_memory(), pytest.raises(FileFormatError, match="goes on"):
        read_idx(write(tmp_path / "a", bomb))
    # One that keeps its promise is stopped by the limit.
    header = gzip.compress(struct.pack(">HBBI", 0, 8, 1, 70 * zero_blocks[2]))
    with small_memory(), pytest.raises(FileTooLargeError):
        read_idx(write(tmp_path / "a", header + zero_blocks[0] * 70), max_bytes=10**9)


def test_gzip_that_promises_what_its_size_allows(tmp_path, small_memory):
    # 3 MB that do not compress, with a header that claims 1 GB: within gzip's best ratio, so only reading can tell.
    noise = np.random.default_rng(0).bytes(3_000_000)
    path = write(tmp_path / "a", gzip.compress(struct.pack(">HBBI", 0, 8, 1, 10**9) + noise, 1))
    with small_memory(), pytest.raises(TruncatedFileError):
        read_idx(path)


def records(count, classes, seed=0):
    generator = np.random.default_rng(seed)
    labels = [generator.integers(0, limit, (count, 1)) for limit in ((10,) if classes == 10 else (20, 100))]
    return np.concatenate([*labels, generator.integers(0, 256, (count, 3072))], axis=1).astype(np.uint8)


def test_cifar10(tmp_path):
    first, second = records(3, 10), records(2, 10, 1)
    paths = [write(tmp_path / name, data.tobytes()) for name, data in (("1.bin", first), ("2.bin", second))]
    inputs, targets = load_cifar(paths)
    both = np.concatenate([first, second])
    assert targets.tolist() == both[:, 0].tolist()
    assert targets.dtype == np.int64
    for channel in range(3):
        plane = both[:, 1 + 1024 * channel : 1 + 1024 * (channel + 1)].reshape(5, 32, 32)
        np.testing.assert_array_equal(inputs[..., channel], plane / 255)
    assert load_cifar(str(paths[0]), dtype=np.float32).inputs.dtype == np.float32
    load_cifar(paths, max_bytes=5 * 3072 * 8)
    with pytest.raises(FileTooLargeError):
        load_cifar(paths, max_bytes=5 * 3072 * 8 - 1)


def test_cifar100(tmp_path):
    data = records(4, 100)
    path = write(tmp_path / "train.bin", data.tobytes())
    fine, coarse = load_cifar(path, classes=100), load_cifar(path, classes=100, fine=False)
    assert fine.targets.tolist() == data[:, 1].tolist()
    assert coarse.targets.tolist() == data[:, 0].tolist()
    np.testing.assert_array_equal(fine.inputs[:, 0, 1, 2], data[:, 2 + 2048 + 1] / 255)
    with pytest.raises(TruncatedFileError, match="classes=10"):
        load_cifar(path)


@pytest.mark.parametrize("classes", [10, 100])
def test_every_truncation_of_cifar_is_noticed(tmp_path, classes):
    path = write(tmp_path / "cut", records(1, classes).tobytes())
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        with pytest.raises(EmptyDataError if length == 0 else TruncatedFileError):
            load_cifar(path, classes=classes)


def test_flipped_bytes_of_cifar(tmp_path):
    data = records(1, 10)
    data[0, 0] = 7
    for offset, bit in [(0, bit) for bit in range(8)] + [(offset, 3) for offset in range(1, 3073, 101)]:
        changed = data.copy()
        changed[0, offset] ^= 1 << bit
        path = write(tmp_path / "flipped", changed.tobytes())
        if changed[0, 0] >= 10:
            with pytest.raises(FileFormatError):
                load_cifar(path)
        else:
            assert load_cifar(path).targets[0] == changed[0, 0]


def test_what_is_no_cifar(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(UnknownNameError):
        load_cifar(path, classes=11)
    with pytest.raises(FileNotFoundError):
        load_cifar(path)
    with pytest.raises(EmptyDataError):
        load_cifar([])
    with pytest.raises(FileFormatError, match="directory"):
        load_cifar(tmp_path)
    data = records(2, 100)
    data[1, 1] = 100
    with pytest.raises(FileFormatError, match="label 100"):
        load_cifar(write(path, data.tobytes()), classes=100)
    with pytest.raises(FileFormatError, match="compressed"):
        load_cifar(write(path, gzip.compress(data.tobytes())), classes=100)


def test_cifars_python_version_is_not_unpickled(tmp_path):
    mark = tmp_path / "mark"

    class Trap:
        def __reduce__(self):
            return Path.touch, (mark,)

    path = write(tmp_path / "data_batch_1", pickle.dumps(Trap()))
    with pytest.raises(PickledDataError):
        load_cifar(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()


def test_a_huge_cifar_file_is_refused_before_it_is_read(tmp_path, small_memory):
    with open(tmp_path / "a", "wb") as file:
        file.truncate(3073 * 10**6)  # sparse: it takes no space
    with small_memory(), pytest.raises(FileTooLargeError):
        load_cifar(tmp_path / "a")


def test_checksum_of_gzip_is_verified(tmp_path):
    data = gzip.compress(idx(np.arange(3, dtype=np.uint8)))
    (crc,) = struct.unpack("<I", data[-8:-4])
    assert crc == zlib.crc32(idx(np.arange(3, dtype=np.uint8)))
    with pytest.raises(FileFormatError, match="CRC"):
        read_idx(write(tmp_path / "a", data[:-8] + struct.pack("<I", crc ^ 1) + data[-4:]))
