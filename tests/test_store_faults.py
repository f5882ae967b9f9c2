"""The run store when things go wrong: a damaged or locked index, full and read-only disks, a store of somebody else."""

import errno
import os
import random
import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest

from fibration.errors import StoreError
from fibration.study import _files, _index
from fibration.study._manifest import run_id
from fibration.study._store import Store
from seeded_stores import answer, check_whole, compute, dataset, leftovers, point, start


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True) as opened:
        for number in range(5):
            compute(opened, number)
        yield opened


# The index ------------------------------------------------------------------------------------------------------------


def other_database(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE things (thing TEXT)")
    db.close()


def emptied_tables(path):
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM runs")
        db.execute("DELETE FROM counter")
    db.close()


def newer_tables(path):
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE runs")
        db.execute("PRAGMA user_version = 99")
    db.close()


def changed_rows(path):
    with sqlite3.connect(path) as db:
        db.execute("UPDATE runs SET facts = replace(facts, 'done', 'failed')")
    db.close()


def noise(path):
    contents = bytearray(path.read_bytes())
    rng = random.Random(1)
    for _ in range(300):
        contents[rng.randrange(100, len(contents))] = rng.randrange(256)
    path.write_bytes(contents)


DAMAGES = {
    "deleted": Path.unlink,
    "garbage": lambda path: path.write_bytes(os.urandom(10_000)),
    "text": lambda path: path.write_text("not a database, but long enough to look like one " * 50),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "noise": noise,
    "another database": other_database,
    "emptied": emptied_tables,
    "newer": newer_tables,
    "changed rows": changed_rows,
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("opened", [False, True], ids=["closed", "open"])
def test_a_damaged_index_costs_only_time(store, damage, opened):
    before = store.records()
    index = store.path / "index.sqlite"
    if not opened:
        store.close()
    damage(index)
    reader = Store(store.path, read_only=True)
    assert reader.records() == before
    assert store.records() == before
    assert store.record(before[0].id) == before[0]
    compute(store, 7)
    assert [record.seed for record in store.records()] == [0, 1, 2, 3, 4, 7]
    with Store(store.path) as another:
        assert [record.seed for record in another.records()] == [0, 1, 2, 3, 4, 7]
    if index.is_dir():
        with pytest.raises(StoreError, match="cannot be written"):
            store.rebuild_index()
        index.rmdir()
    assert store.rebuild_index() == 6
    check_whole(store.path, least=6)


def test_the_index_is_used(store, monkeypatch):
    before = store.records()
    monkeypatch.setattr("fibration.study._store.read_row", lambda *_: pytest.fail("a manifest was read"))
    assert store.records() == before
    assert store.record(before[2].id) == before[2]
    reader = Store(store.path, read_only=True)
    assert reader.records() == before  # while the other has the journal open
    store.close()
    assert reader.records() == before
    assert not (store.path / "index.sqlite-wal").exists()
    assert reader.record(before[2].id) == before[2]
    with sqlite3.connect(store.path / "index.sqlite") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


def test_a_locked_index_keeps_nobody_waiting_for_ever(store, monkeypatch):
    monkeypatch.setattr(_index, "BUSY_SECONDS", 0.05)
    store.close()
    blocker = sqlite3.connect(store.path / "index.sqlite", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    try:
        compute(store, 8)
        assert [record.seed for record in store.records()] == [0, 1, 2, 3, 4, 8]
    finally:
        blocker.execute("ROLLBACK")
        blocker.close()
    compute(store, 9)
    assert sorted(record.seed for record in store.records()) == [0, 1, 2, 3, 4, 8, 9]


# Full and read-only disks ---------------------------------------------------------------------------------------------

LIMITED = """
import resource
store = Store(sys.argv[1], create=True)
compute(store, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
answers = []
with store.claim(point(2)) as run:
    run.write("flow", dataset(2))
    try:
        run.write("large", xr.Dataset({"x": ("t", np.zeros(100_000))}))
    except StoreError as error:
        answers.append(str(error))
    try:
        run.write("flow", xr.Dataset({"x": ("t", np.zeros(100_000))}))
    except StoreError as error:
        answers.append(str(error))
    results = sorted(os.listdir(run.directory / "results"))
statuses = [record.status for record in store.records()]
try:
    store.add_study("x" * 100_000, {"name": "large"}, [])
except StoreError as error:
    answers.append(str(error))
print(json.dumps([answers, results, statuses, compute(store, 3)]))
"""


def test_a_file_that_grows_past_the_limit(tmp_path):
    path = tmp_path / "store"
    answers, results, statuses, last = answer(start(LIMITED, path))
    assert len(answers) == 3
    assert all("a file would grow past the size that is allowed" in text for text in answers)
    assert (results, statuses, last) == (["flow.zarr"], ["done", "interrupted"], "done")
    assert leftovers(path) == []
    check_whole(path, least=2)
    with Store(path) as store:
        assert store.record(run_id(point(2))).results == ("flow",)
        assert compute(store, 2) == "done"


class Disk:
    """A disk on which every call of one kind fails after the first few."""

    def __init__(self, monkeypatch, number):
        self.number, self.left = number, None
        for module, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (os, "mkdir"), (Path, "write_bytes")):
            monkeypatch.setattr(module, name, self.wrap(getattr(module, name)))

    def wrap(self, call):
        def wrapped(*args, **options):
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise OSError(self.number, os.strerror(self.number))
            return call(*args, **options)

        return wrapped


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission is denied"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_a_full_disk_loses_nothing_that_was_finished(store, monkeypatch, number, says):
    before = store.records()
    disk = Disk(monkeypatch, number)
    failures, seed, left = 0, 100, 0
    while True:
        disk.left, failure = left, None
        try:
            compute(store, seed)
            break
        except StoreError as error:
            failure = error
        disk.left = None
        failures += 1
        assert says in str(failure)
        assert failure.fix.endswith("what was finished before is kept")
        assert store.records()[:5] == before
        assert leftovers(store.path) == []
        seed, left = seed + 1, left + (1 if number == errno.ENOSPC else 7)
    disk.left = None
    assert failures > 4
    done = [record.seed for record in store.records(status="done")]
    # If only the last flush of a directory fails, the run is done all the same.
    assert set(done) - {seed - 1} == {0, 1, 2, 3, 4, seed}
    for record in store.records():
        assert compute(store, record.seed) == "done"
    check_whole(store.path, least=len(before) + 1)


def test_a_full_disk_at_the_end_leaves_the_run_open(store, monkeypatch):
    disk = Disk(monkeypatch, errno.ENOSPC)
    with store.claim(point(6)) as run:
        run.write("flow", dataset(6))
        disk.left = 0
        with pytest.raises(StoreError, match="room on the disk"):
            run.finish({"seed": 6})
        assert run.status == "running"
        disk.left = None
        run.write("descent", dataset(6))
        run.finish({"seed": 6})
    check_whole(store.path, least=6)


def test_a_file_system_without_locks_is_refused(store, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(_files.fcntl, "flock", fail)
    with pytest.raises(StoreError, match="local disk"), store.claim(point(1)):
        pass


def snapshot(path):
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(path.rglob("*"))}


def test_reading_only_changes_no_file(store):
    study = store.add_study("", {"name": "s"}, [point(1)])
    with store.claim(point(9)):
        for close in (False, True):
            if close:
                store.close()
            before = snapshot(store.path)
            reader = Store(store.path, read_only=True)
            assert len(reader.records()) == 6
            reader.record(run_id(point(9)))
            reader.records(study=study.id)[0].open("flow").load()
            assert reader.verify(run_id(point(1))) == []
            reader.close()
            assert snapshot(store.path) == before


NOBODY = """
store = Store(sys.argv[1], read_only=True)
store.records()[0].open("flow").load()  # what is imported on the way may lie where only root reads
os.setgid(65534)
os.setuid(65534)
seeds = []
for options in ({"read_only": True}, {}):
    store = Store(sys.argv[1], **options)
    seeds.append([[r.seed, r.status, r.results, float(r.open("flow").cost[0])] for r in store.records()])
    seeds.append(store.study("s").points)
answers = []
for call in (lambda: compute(store, 1), lambda: store.add_study("", {"name": "t"}, []), store.rebuild_index):
    try:
        answers.append(call())
    except StoreError as error:
        answers.append(str(error))
try:
    Store(sys.argv[1] + "/runs/more", create=True)
except StoreError as error:
    answers.append(str(error))
print(json.dumps([seeds, answers]))
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("indexed", [True, False, "damaged"])
def test_a_store_of_somebody_else_is_read(indexed):
    place = Path(tempfile.mkdtemp(prefix="fibration-"))
    try:
        with Store(place / "store", create=True) as store:
            store.add_study("", {"name": "s"}, [point(1)])
            for number in range(3):
                compute(store, number)
        index = place / "store" / "index.sqlite"
        if indexed == "damaged":
            index.write_bytes(b"x" * 5000)
        elif not indexed:
            index.unlink()
        place.chmod(0o755)
        before = snapshot(place)
        seeds, answers = answer(start(NOBODY, place / "store"))
        assert snapshot(place) == before
    finally:
        shutil.rmtree(place)
    expected = [[number, "done", ["descent", "flow"], float(dataset(number).cost[0])] for number in range(3)]
    assert seeds == [expected, [run_id(point(1))]] * 2
    assert len(answers) == 4
    assert "permission is denied" in answers[0]
    assert "permission is denied" in answers[1]
    assert "cannot be written" in answers[2]
    assert "permission is denied" in answers[3]
