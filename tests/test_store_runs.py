"""Runs in the run store of one process: from claim to record, done, failed, interrupted, resumed and listed."""

import dataclasses
import json
import math
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fibration as fb
from fibration.errors import FibrationError, RunBusyError, StoreError
from fibration.study._manifest import run_id
from fibration.study._store import Store
from stores import curve, dataset, finish, known, point, same, store

__all__ = ["store"]  # a fixture


def test_a_run_from_claim_to_record(store):
    study = store.add_study("name = 'one'", {"name": "one"}, [point()])
    with store.claim(point(), study=study.id) as run:
        assert (run.status, run.id, run.point) == ("running", run_id(point()), point())
        assert store.record(run.id).status == "running"
        (run.checkpoint("flow") / "state.npz").write_bytes(b"x")
        assert not run.finished("flow")
        run.write("flow", dataset())
        assert run.finished("flow")
        run.finish({"cost": math.nan, "code": "end", "time": None}, curve(), gradients=np.int64(12))
    record = store.record(run.id[:5])
    assert (record.status, record.seed, record.gradients, record.results) == ("done", 0, 12, ("flow",))
    assert record.axes == {"width": 8, "seed": 0}
    assert record.studies == (study.id,)
    assert same(record.summary, {"cost": math.nan, "code": "end", "time": None})
    assert record.curves == {"cost": {"x": [0.0, 1.0, 2.0, 3.0, 4.0], "y": [1.0, 0.75, 0.5, 0.25, 0.0]}}
    assert record.versions["fibration"] == fb.__version__
    assert record.machine["backend"] == "cpu"
    assert record.point == point()
    assert (record.directory / "checkpoints/flow/state.npz").read_bytes() == b"x"
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.status = "failed"
    with pytest.raises(StoreError, match="'flow'"):
        record.open("../flow")


def test_a_done_run_claimed_again_is_left_alone(store):
    name = finish(store)
    before = {path: path.stat().st_mtime_ns for path in (store.path / "runs" / name).rglob("*") if path.name != "lock"}
    known_before = known(store.record(name))
    with store.claim(point()) as run:
        assert (run.status, run.results) == ("done", ("flow",))
        xr.testing.assert_identical(run.read("flow"), dataset())
        for call in (run.finish, lambda: run.fail(ValueError()), lambda: run.write("flow", dataset())):
            with pytest.raises(StoreError, match="is 'done'"):
                call()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert known(store.record(name)) == known_before


def test_a_second_study_shares_the_run(store):
    finish(store)
    first = store.add_study("a", {"name": "a"}, [point()])
    second = store.add_study("b", {"name": "b"}, [point(), point(1)])
    assert [record.id for record in store.records(study="b")] == [run_id(point())]
    for study in (first, second, second):
        with store.claim(point(), study=study.id) as run:
            assert run.status == "done"
    assert store.record(run.id).studies == (first.id, second.id)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError, None])
def test_a_run_that_is_left_is_interrupted_and_goes_on(store, error):
    def leave():
        with store.claim(point()) as run:
            run.write("flow", dataset())
            if error is not None:
                raise error

    if error is None:
        leave()
    else:
        with pytest.raises(error):
            leave()
    assert [record.status for record in store.records()] == ["interrupted"]
    with store.claim(point()) as run:
        assert (run.status, run.finished("flow")) == ("running", True)
        run.finish()
    assert store.record(run.id).status == "done"


def test_a_failed_run_waits_for_retry(store):
    def fall():
        raise ZeroDivisionError("by the step size")

    with store.claim(point()) as run:
        try:
            fall()
        except ZeroDivisionError as error:
            run.fail(error, gradients=3)
    record = store.record(run.id)
    assert (record.status, record.gradients) == ("failed", 3)
    assert "in fall" in record.error
    assert "ZeroDivisionError: by the step size" in record.error
    with store.claim(point()) as run:
        assert run.status == "failed"
        with pytest.raises(StoreError, match="retry"):
            run.finish()
    store.retry(record)
    assert (store.record(run.id).status, store.record(run.id).error) == ("interrupted", None)
    with store.claim(point()) as run:
        assert run.status == "running"
        with pytest.raises(RunBusyError):
            store.retry(run.id)
        run.finish()
    with pytest.raises(StoreError, match="a run that failed"):
        store.retry(run.id)


def test_a_long_traceback_is_cut_at_its_beginning(store):
    with store.claim(point()) as run:
        run.fail(ValueError("x" * 100_000 + "the end"))
    text = store.record(run.id).error
    assert len(text) <= 20_001
    assert text.endswith("the end\n")


def test_a_run_is_held_by_one_block_at_a_time(store):
    with store.claim(point()), pytest.raises(RunBusyError, match="computed by process"), store.claim(point()):
        pass
    with store.claim(point()), store.claim(point(1)) as other:
        assert other.status == "running"
    assert issubclass(RunBusyError, StoreError)
    assert issubclass(StoreError, FibrationError)


def test_asking_whether_a_run_is_held_does_not_keep_it_from_being_claimed(store):
    finish(store)
    with store.claim(point(1)):
        pass
    stop = threading.Event()

    def ask():
        from fibration.study._files import held

        while not stop.is_set():
            held(store.path / "runs" / run_id(point()) / "lock")

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            with store.claim(point()) as run:
                assert run.status == "done"
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_seconds_add_up_over_resumes_whatever_the_clock_on_the_wall_does(store, monkeypatch):
    ticks = {"monotonic": 100.0, "wall": 2e9}
    monkeypatch.setattr(time, "monotonic", lambda: ticks["monotonic"])
    monkeypatch.setattr(time, "time", lambda: ticks["wall"])
    for number in range(2):
        with store.claim(point(number)) as run:
            ticks["monotonic"] += 3.0
            assert run.seconds == 3.0
        ticks["wall"] -= 1e9  # a clock that was set back by thirty years
    ticks["monotonic"] = 5.0  # another boot
    with store.claim(point()) as run:
        ticks["monotonic"] += 0.5
        run.finish()
    records = store.records()
    assert [record.point for record in records] == [point(0), point(1)]  # in the order of claims, not of `created`
    assert [record.seconds for record in records] == [3.5, 3.0]
    assert [record.created[:4] for record in records] == ["2033", "2001"]
    assert [record.status for record in records] == ["done", "interrupted"]


def test_order_and_contents_survive_the_loss_of_the_index(store):
    names = [finish(store, number) for number in (3, 1, 2)]
    with store.claim(point(9)) as run:
        run.fail(ValueError("no"))
    before = [known(record) for record in store.records()]
    assert [record["id"] for record in before] == [*names, run.id]
    (store.path / "index.sqlite").unlink()
    assert [known(record) for record in store.records()] == before
    finish(store, 0)
    assert [record.seed for record in store.records()] == [3, 1, 2, 9, 0]
    assert store.rebuild_index() == 5
    assert [record.seed for record in store.records()] == [3, 1, 2, 9, 0]
    store.close()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{store.path}/index.sqlite{suffix}").unlink(missing_ok=True)
    reader = Store(store.path, read_only=True)
    assert [known(record) for record in reader.records()][:4] == before
    assert not (store.path / "index.sqlite").exists()


def test_records_follow_the_manifests_and_not_the_index(store):
    first, second = finish(store, 1), finish(store, 2)
    manifest = store.path / "runs" / first / "manifest.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(values | {"summary": {"cost": 0.25}}, indent=4))
    assert store.record(first).summary == {"cost": 0.25}
    assert [record.summary for record in store.records()] == [{"cost": 0.25}, {"cost": 0.5}]
    shutil.rmtree(store.path / "runs" / second)
    assert [record.id for record in store.records()] == [first]
    with pytest.raises(StoreError, match="no runs"):
        store.record(second)


def test_runs_copied_from_another_store_are_there(store, tmp_path):
    with Store(tmp_path / "other", create=True) as other:
        name = finish(other, 5)
    finish(store, 1)
    shutil.copytree(tmp_path / "other" / "runs" / name, store.path / "runs" / name)
    assert {record.seed for record in store.records()} == {1, 5}
    assert store.verify(name) == []


def test_records_are_filtered(store):
    study = store.add_study("", {"name": "odd"}, [point(1), point(3)])
    for number in range(3):
        finish(store, number)
    with store.claim(point(3)):
        pass
    with store.claim(point(8), study="odd"):  # a run that the study had not foreseen
        pass
    assert [record.seed for record in store.records(study=study.id)] == [1, 3, 8]
    assert [record.seed for record in store.records(study="odd", status="done")] == [1]
    assert [record.seed for record in store.records(status="interrupted")] == [3, 8]
    assert store.records(status="damaged") == []
    with pytest.raises(StoreError, match="one of running"):
        store.records(status="finished")


@pytest.mark.parametrize("key", ["", "xyz", "../../etc", "AB", "0" * 17, 5, None, "0%"])
def test_names_of_runs_are_digits(store, key):
    with pytest.raises(StoreError):
        store.record(key)


def test_a_beginning_that_two_runs_share_is_refused(store):
    names = [finish(store, number) for number in range(20)]  # of sixteen first digits two are the same
    shared = next(name[0] for name in names if sum(other[0] == name[0] for other in names) > 1)
    with pytest.raises(StoreError, match=f"runs in .* begin with '{shared}'"):
        store.record(shared)
    assert store.record(names[0]).id == names[0]


def test_long_curves_keep_their_ends(store):
    x = np.linspace(0, 1, 5001)
    with store.claim(point()) as run:
        run.finish(curves={"cost": {"x": x, "y": np.where(x < 0.5, np.nan, x)}})
    kept = store.record(run.id).curves["cost"]
    assert len(kept["x"]) == len(kept["y"]) == 128
    assert (kept["x"][0], kept["x"][-1], kept["y"][-1]) == (0.0, 1.0, 1.0)
    assert math.isnan(kept["y"][0])
    assert np.max(np.abs(np.diff(kept["x"]) - 1 / 127)) < 2 / 5000


@pytest.mark.parametrize(
    ("summary", "curves", "gradients"),
    [
        ({"a": [1]}, None, None),
        ({"a": {"b": 1}}, None, None),
        ({"a": object()}, None, None),
        ([1], None, None),
        (None, {"a": {"x": [1, 2], "y": [1]}}, None),
        (None, {"a": {"x": [1, 2]}}, None),
        (None, {"a": {"x": ["b"], "y": [1]}}, None),
        (None, {"a": [1, 2]}, None),
        (None, {3: {"x": [1], "y": [1]}}, None),
        (None, None, -1),
        (None, None, 1.5),
        (None, None, "many"),
    ],
)
def test_a_wrong_end_is_refused_and_the_run_stays_open(store, summary, curves, gradients):
    with store.claim(point()) as run:
        with pytest.raises(StoreError):
            run.finish(summary, curves, gradients=gradients)
        assert run.status == "running"
        run.finish({"cost": 1.0})
    assert store.record(run.id).summary == {"cost": 1.0}
