import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest


@pytest.fixture
def small_memory() -> Callable[[], AbstractContextManager[None]]:
    """Fail if the block ever holds 64 MB more than at its start."""

    @contextmanager
    def limited():
        tracemalloc.start()
        try:
            yield
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 64e6, f"{peak / 1e6:.0f} MB"

    return limited


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="session")
def zero_blocks() -> tuple[bytes, bytes, int]:
    """Sixteen MiB of zeros as a gzip member and as raw deflate blocks that can be repeated, and their number."""
    zeros = bytes(2**24)
    gz = zlib.compressobj(1, zlib.DEFLATED, 31)
    raw = zlib.compressobj(1, zlib.DEFLATED, -15)
    return gz.compress(zeros) + gz.flush(), raw.compress(zeros) + raw.flush(zlib.Z_FULL_FLUSH), len(zeros)


@pytest.fixture(scope="session")
def write_zip() -> Callable[..., None]:
    """Write an archive by hand: entries (name, method, stored bytes, claimed size, checksum)."""

    def write(path: Path, entries: list[tuple[str, int, bytes, int, int]], flags: int = 0) -> None:
        body, directory = b"", b""
        for name, method, data, size, crc in entries:
            fields = struct.pack("<HHHHHIIIHH", 20, flags, method, 0, 0x21, crc, len(data), size, len(name), 0)
            directory += b"PK\1\2\x14\0" + fields + struct.pack("<HHHII", 0, 0, 0, 0, len(body)) + name.encode()
            body += b"PK\3\4" + fields + name.encode() + data
        count = len(entries)
        end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(body), 0)
        path.write_bytes(body + directory + b"PK\5\6" + end)

    return write
