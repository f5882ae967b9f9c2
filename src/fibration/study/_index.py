"""The index of a store: a cache of its manifests in SQLite, so that ten thousand runs are listed in less than a second.

A row holds what a manifest held, the manifest's `signature` and a checksum. A row whose signature is not that of the
file, or whose checksum is not that of the row, is as good as absent: the manifest is read again. So an index that is
deleted, damaged, out of date, locked or impossible to write costs time and nothing else, and no method here raises.
"""

import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE runs (run TEXT PRIMARY KEY, signature TEXT, facts TEXT, manifest BLOB, checksum INTEGER);
CREATE TABLE counter (value INTEGER);
INSERT INTO counter VALUES (0);
"""
COLUMNS = "run, signature, facts, manifest, checksum"
# How long to wait for another process, how long when the file is opened, and how long not to try after waiting in vain.
BUSY_SECONDS, OPENING_SECONDS, REST_SECONDS = 15.0, 2.0, 60.0
# SQLite's result codes for a file that is damaged, or not ours: ERROR (no such table), CORRUPT, NOTADB, SCHEMA.
DAMAGED = {1, 11, 17, 26}
BUSY = {5, 6}
T = TypeVar("T")
_of_a_parent: list[Any] = []  # connections that a fork brought here: they must be neither used nor closed


class _ForeignError(Exception):
    """A file that is an SQLite database, but no index of this version; it is made anew."""


class Row(NamedTuple):
    """What the index knows of one run: the manifest file as it is, and what lists need of it, as JSON."""

    run: str
    signature: str
    facts: str
    manifest: bytes
    sequence: int

    def columns(self) -> tuple[str, str, str, bytes, int]:
        """Give the columns of the table."""
        texts = (self.run, self.signature, self.facts)
        return (*texts, self.manifest, _checksum(*(text.encode() for text in texts), self.manifest))


class ReadOnlyIndex:
    """The index as it is found, without writing: not to it, and not beside it. It has the methods of `Index`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def rows(self) -> dict[str, Row]:
        """Give every intact row, by run; none if the index is absent, damaged or being written to."""
        return {row.run: row for row in self._select(f"SELECT {COLUMNS} FROM runs", ())}  # noqa: S608

    def row(self, run: str) -> Row | None:
        """Give one row, if it is there and intact."""
        found = self._select(f"SELECT {COLUMNS} FROM runs WHERE run = ?", (run,))  # noqa: S608
        return found[0] if found else None

    def update(self, rows: Iterable[Row], gone: Collection[str] = ()) -> bool:  # noqa: ARG002
        """Do nothing."""
        return False

    def next_sequence(self) -> int | None:
        """Give none."""
        return None

    def clear(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def _select(self, query: str, values: tuple[str, ...]) -> list[Row]:
        # `immutable` reads without locks and without the journal of the writers, which is right while there is none.
        # While there is one, its shared memory is read, and `readonly_shm` keeps SQLite from writing to that.
        before = self._state()
        if before is None:
            return []
        journal = before[0]
        mode = "mode=ro&readonly_shm=1" if journal else "mode=ro&immutable=1"
        try:
            db = sqlite3.connect(f"{self._path.absolute().as_uri()}?{mode}", uri=True, timeout=BUSY_SECONDS)
            try:
                db.text_factory = bytes
                rows = _intact(db.execute(query, values))
            finally:
                db.close()
        except (sqlite3.Error, UnicodeDecodeError):  # the second from messages that quote a damaged file
            return []
        return rows if journal or self._state() == before else []

    def _state(self) -> tuple[bool, int, int] | None:
        try:
            facts = self._path.stat()
        except OSError:
            return None
        return Path(f"{self._path}-wal").exists(), facts.st_mtime_ns, facts.st_size


class Index:
    """The index of a store that is written to; any number of processes and threads may use one at the same time.

    `populate` gives a row for each manifest of the store; it is called whenever the file has to be made anew.
    """

    def __init__(self, path: Path, populate: Callable[[], Iterable[Row]]) -> None:
        self._path, self._populate = path, populate
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int, int] | None = None
        self._rests_until = -float("inf")
        self._alone = threading.RLock()

    def rows(self) -> dict[str, Row]:
        """Give every intact row, by run."""
        query = f"SELECT {COLUMNS} FROM runs"  # noqa: S608
        return {row.run: row for row in self._attempt(lambda db: _intact(db.execute(query)), [])}

    def row(self, run: str) -> Row | None:
        """Give one row, if it is there and intact."""
        query = f"SELECT {COLUMNS} FROM runs WHERE run = ?"  # noqa: S608
        return next(iter(self._attempt(lambda db: _intact(db.execute(query, (run,))), [])), None)

    def update(self, rows: Iterable[Row], gone: Collection[str] = ()) -> bool:
        """Write rows and forget the runs that are gone, in one transaction; False if that was impossible."""
        rows = list(rows)

        def work(db: sqlite3.Connection) -> bool:
            db.execute("BEGIN IMMEDIATE")
            _insert(db, rows)
            db.executemany("DELETE FROM runs WHERE run = ?", [(run,) for run in gone])
            db.execute("COMMIT")
            return True

        return self._attempt(work, default=False)

    def next_sequence(self) -> int | None:
        """Give the next number in the order of runs; None if the index cannot be written."""

        def work(db: sqlite3.Connection) -> int:
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE counter SET value = value + 1")
            values = [value for (value,) in db.execute("SELECT value FROM counter")]
            if len(values) != 1 or not isinstance(values[0], int):
                raise _ForeignError
            db.execute("COMMIT")
            return values[0]

        return self._attempt(work, None)

    def clear(self) -> None:
        """Forget everything, and remove the file."""
        with self._alone:
            self.close()
            self._rests_until = -float("inf")
            for suffix in ("", "-wal", "-shm"):
                with suppress(OSError):
                    os.unlink(f"{self._path}{suffix}")

    def close(self) -> None:
        """Let the file go; the next call opens it again."""
        with self._alone:
            connection, self._connection = self._connection, None
            if connection is None:
                return
            if self._identity is not None and self._identity[0] != os.getpid():
                _of_a_parent.append(connection)
                return
            with suppress(sqlite3.Error):
                connection.close()

    def __del__(self) -> None:
        self.close()

    def _attempt(self, work: Callable[[sqlite3.Connection], T], default: T) -> T:
        """Do something with the index, once more if it had to be made anew, and give the default if it cannot be."""
        with self._alone:
            for _ in range(2):
                if time.monotonic() < self._rests_until:
                    return default
                try:
                    return work(self._open())
                except (sqlite3.Error, OSError, UnicodeDecodeError, _ForeignError) as error:
                    # The low byte is the class of the error; a file that was deleted while open is READONLY_DBMOVED.
                    code = getattr(error, "sqlite_errorcode", None)
                    kind = None if code is None else code & 0xFF
                    if isinstance(error, _ForeignError | UnicodeDecodeError) or kind in DAMAGED:
                        self.clear()
                    elif code == sqlite3.SQLITE_READONLY_DBMOVED:
                        self.close()
                    else:
                        self._roll_back()
                        if kind in BUSY:
                            self._rests_until = time.monotonic() + REST_SECONDS
                        return default
                except BaseException:
                    self._roll_back()
                    raise
            return default

    def _roll_back(self) -> None:
        if self._connection is not None:
            try:
                self._connection.rollback()
            except sqlite3.Error:
                self.close()

    def _open(self) -> sqlite3.Connection:
        """Give the connection of this process to the file that is now there, with its tables."""
        if self._connection is not None:
            if self._identity == self._find():
                return self._connection
            self.close()
        end = time.monotonic() + OPENING_SECONDS
        while True:  # a change of the journal's mode does not wait for other processes by itself
            try:
                return self._connect()
            except sqlite3.OperationalError as error:
                self.close()
                if error.sqlite_errorcode & 0xFF not in BUSY or time.monotonic() > end:
                    raise
                time.sleep(0.02)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=OPENING_SECONDS, isolation_level=None, check_same_thread=False)
        self._connection, self._identity = connection, None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA busy_timeout = {round(1000 * BUSY_SECONDS)}")
        connection.execute("PRAGMA synchronous = NORMAL")
        self._make_tables(connection)
        connection.text_factory = bytes
        self._identity = self._find()
        return connection

    def _make_tables(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == SCHEMA_VERSION:
            return
        if version != 0:
            raise _ForeignError
        db.execute("BEGIN IMMEDIATE")
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:
            for statement in SCHEMA.strip().splitlines():
                db.execute(statement)
            _insert(db, list(self._populate()))
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")

    def _find(self) -> tuple[int, int, int] | None:
        try:
            facts = self._path.stat()
        except OSError:
            return None
        return os.getpid(), facts.st_dev, facts.st_ino


def _insert(db: sqlite3.Connection, rows: list[Row]) -> None:
    db.executemany(f"INSERT OR REPLACE INTO runs ({COLUMNS}) VALUES (?, ?, ?, ?, ?)", [r.columns() for r in rows])  # noqa: S608
    if rows:
        db.execute("UPDATE counter SET value = max(value, ?)", (max(row.sequence for row in rows),))


def _intact(rows: Iterable[tuple[Any, ...]]) -> list[Row]:
    """Keep the rows whose checksum is right."""
    kept: list[Row] = []
    for run, signature, facts, manifest, checksum in rows:
        texts = (run, signature, facts, manifest)
        if all(text.__class__ is bytes for text in texts) and _checksum(*texts) == checksum:
            kept.append(Row(run.decode(), signature.decode(), facts.decode(), manifest, 0))
    return kept


def _checksum(*texts: bytes) -> int:
    return zlib.crc32(b"\0".join(texts))
