"""The run store in one process: what is put into it comes out, by plain xarray too, and nothing else gets in."""

import dataclasses
import hashlib
import json
import math
import pickle
import shutil
import threading
import time
from pathlib import Path

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings

import fibration as fb
from fibration.errors import FibrationError, RunBusyError, StoreError, StoreWarning
from fibration.study import _zarr
from fibration.study._manifest import run_id
from fibration.study._plain import decode, encode
from fibration.study._store import Store


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True) as opened:
        yield opened


def point(number=0, **more):
    return {"seed": number, "width": 8, "axes": {"width": 8, "seed": number}, **more}


def curve(n=5):
    return {"cost": {"x": np.arange(n), "y": np.linspace(1, 0, n)}}


def dataset(seed=0):
    rng = np.random.default_rng(seed)
    values = {name: ("time", rng.normal(size=7)) for name in ("cost", "sharpness")}
    return xr.Dataset(values, coords={"time": np.arange(7) * 0.5}, attrs={"steps": 6})


def finish(store, number=0, summary=None):
    with store.claim(point(number)) as run:
        run.write("flow", dataset(number))
        run.finish({"cost": 0.5} if summary is None else summary, curve(), gradients=60)
    return run.id


def known(record):
    """Everything that a record tells."""
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if not f.name.startswith("_")}
    return fields | {name: getattr(record, name) for name in ("point", "curves", "versions", "machine", "directory")}


# What JSON lacks ----------------------------------------------------------------------------------------------------

texts = st.text(max_size=12) | st.sampled_from(["NaN", "'NaN", "''-Infinity", "Infinity", "-Infinity", "null", "'"])
scalars = st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats() | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))


def same(a, b):
    """Equality with NaN equal to itself, and without 1 == 1.0 == True or 0.0 == -0.0."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    return type(a) is type(b) and a == b


@given(values)
def test_every_plain_value_comes_back_from_strict_json(value):
    text = json.dumps(encode(value), allow_nan=False)
    assert same(decode(json.loads(text)), value)


@given(st.dictionaries(texts, values, max_size=4), st.randoms())
def test_the_name_of_a_run_depends_on_the_point_and_not_on_the_order_of_its_keys(document, random):
    keys = list(document)
    random.shuffle(keys)
    assert run_id({key: document[key] for key in keys}) == run_id(document)
    assert run_id(document) != run_id({**document, "one more": 1})


def test_the_name_of_a_run_is_the_hash_of_canonical_json():
    text = '{"a":[1,0.1],"b":"Infinity"}'
    assert run_id({"b": math.inf, "a": (1, 0.1)}) == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert (
        len({run_id({"a": value}) for value in (1, 1.0, True, "1", None, [1], math.inf, "Infinity", -0.0, 0.0)}) == 10
    )


def test_numbers_of_numpy_and_jax_are_numbers():
    given = {"a": np.float64(0.1), "b": np.int32(3), "c": jnp.asarray(0.5), "d": np.array([1, 2]), "e": np.bool_(True)}
    assert same(encode(given), {"a": 0.1, "b": 3, "c": 0.5, "d": [1, 2], "e": True})
    assert encode(np.float32(math.nan)) == "NaN"


@pytest.mark.parametrize(
    "value",
    [
        1j,
        object(),
        {1: 2},
        b"bytes",
        {3},
        2**300,
        np.array([None]),
        np.datetime64("2020-01-01"),
        Path(),
        np.longdouble(1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_refused_by_name(value):
    with pytest.raises(StoreError, match=r"point\['x'\]\[1\]"):
        run_id({"x": [0, value]})


def test_what_holds_itself_is_refused():
    endless = {}
    endless["again"] = endless
    with pytest.raises(StoreError, match="64 deep"):
        run_id(endless)


@settings(max_examples=25)
@given(st.dictionaries(texts, st.none() | st.floats() | texts, max_size=4), st.dictionaries(texts, values, max_size=3))
def test_summaries_and_points_come_back_from_the_store(tmp_path_factory, summary, document):
    place = tmp_path_factory.mktemp("store")
    with Store(place, create=True) as store:
        with store.claim(document) as run:
            run.finish(summary)
        from_index = store.record(run.id)
        (place / "index.sqlite").unlink()
        from_manifest = store.record(run.id)
    for record in (from_index, from_manifest):
        assert same(record.summary, summary)
        assert same(record.point, document)


# Results -------------------------------------------------------------------------------------------------------------

EVERYTHING = xr.Dataset(
    {
        "zeros": (("time", "column"), np.zeros((3, 2))),
        "float32": ("time", np.array([1.5, np.nan, -np.inf], np.float32)),
        "float16": ("time", np.arange(3, dtype=np.float16)),
        "big endian": ("time", np.arange(3, dtype=">f8")),
        "integers": ("time", np.array([0, -(2**63), 2**63 - 1])),
        "bytes": ("time", np.array([0, 1, 255], np.uint8)),
        "complex": ("time", np.array([1 + 2j, np.nan, 0])),
        "truth": ("time", np.array([True, False, True])),
        "words": ("time", np.array(["", "σ²", "a long one"])),
        "no words": ("time", np.array(["", "", ""])),
        "dates": ("time", np.array(["2020-01-01", "1999-12-31T23:59:59", "NaT"], "datetime64[ns]")),
        "durations": ("time", np.array([1, 2, 3], "timedelta64[ms]")),
        "scalar": ((), 2.5),
        "empty": (("nothing", "time"), np.zeros((0, 3))),
        "transposed": (("column", "time"), np.arange(6.0).reshape(3, 2).T, {"units": "m", "long_name": "length"}),
    },
    coords={"time": [0.0, 0.5, 2.0], "label": ("time", ["x", "y", "z"]), "run": 3, "column": ["l", "r"]},
    attrs={"cost": 0.1, "method": "rock4", "list": [1, 2], "nothing": None, "yes": True},
)


def test_plain_xarray_reads_a_result_without_a_warning(store):
    # pytest turns every warning into an error.
    with store.claim(point()) as run:
        path = run.write("everything", EVERYTHING)
        read = run.read("everything")
    assert path == store.path / "runs" / run.id / "results" / "everything.zarr"
    for opened in (xr.open_zarr(path).load(), read, store.record(run.id).open("everything").load()):
        xr.testing.assert_identical(opened, EVERYTHING)
        for name in EVERYTHING.variables:
            assert opened[name].dtype == EVERYTHING[name].dtype.newbyteorder("=")
            assert not opened[name].attrs.keys() ^ EVERYTHING[name].attrs.keys()


def test_plain_zarr_reads_a_result(store):
    with store.claim(point()) as run:
        path = run.write("flow", dataset())
    for consolidated in (True, False):
        group = zarr.open_group(path, mode="r", use_consolidated=consolidated)
        assert sorted(group.array_keys()) == ["cost", "sharpness", "time"]
        np.testing.assert_array_equal(group["cost"][:], dataset().cost)
        assert group["cost"].metadata.dimension_names == ("time",)


def test_an_array_of_several_chunks_reads_as_one(store, monkeypatch):
    whole = xr.Dataset({"a": (("t", "x", "y"), np.arange(70.0).reshape(7, 5, 2)), "b": ("t", np.arange(7))})
    monkeypatch.setattr(_zarr, "CHUNK_BYTES", 3 * 5 * 2 * 8)  # three rows of a: the last chunk is not full
    with store.claim(point()) as run:
        path = run.write("long", whole)
    assert sorted(p.name for p in (path / "a").iterdir()) == ["0.0.0", "1.0.0", "2.0.0", "zarr.json"]
    xr.testing.assert_identical(xr.open_zarr(path).load(), whole)


def test_slashes_and_nonfinite_attributes_come_back(store):
    # xarray by itself writes "params/w" into a group, and then does not find it.
    trajectory = xr.Dataset(
        {"params/w": (("time", "params/w_0"), np.ones((3, 2))), "observed/sharpness": ("time", np.arange(3.0))},
        coords={"time": [0.0, 1.0, 2.0]},
        attrs={"end": math.inf, "note": "NaN"},
    )
    trajectory["observed/sharpness"].attrs["limit"] = -math.inf
    with store.claim(point()) as run:
        path = run.write("flow", trajectory)
        xr.testing.assert_identical(run.read("flow"), trajectory)
    plain = xr.open_zarr(path)
    assert set(plain.data_vars) == {"params.w", "observed.sharpness"}
    assert plain.attrs["end"] == "Infinity"


def test_a_trajectory_comes_back(store):
    problem = fb.Problem(lambda p, x: p["w"] * x, jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0]))
    trajectory = fb.integrate(problem, fb.GradientFlow(), {"w": jnp.array(0.0)}, t1=1.0).to_xarray()
    with store.claim(point()) as run:
        run.write("flow", trajectory)
        xr.testing.assert_equal(run.read("flow"), trajectory)


@given(st.data())
@settings(max_examples=15)
def test_any_numbers_come_back_bit_for_bit(tmp_path_factory, data):
    shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
    raw = data.draw(st.binary(min_size=8 * math.prod(shape), max_size=8 * math.prod(shape)))
    array = np.frombuffer(raw, np.float64).reshape(shape)
    place = tmp_path_factory.mktemp("zarr") / "x.zarr"
    _zarr.write_dataset(place, xr.Dataset({"x": ([f"d{i}" for i in range(len(shape))], array)}))
    assert _zarr.read_dataset(place)["x"].values.tobytes() == raw


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (xr.Dataset({"x": ("t", np.array([None, 1], object))}), "never Python objects"),
        (xr.Dataset({"x": ("t", np.zeros(2, np.longdouble))}), "64 bits"),
        (xr.Dataset({"x": ("t", jnp.zeros(2, jnp.bfloat16))}), "64 bits"),
        (xr.Dataset({"../x": ("t", np.zeros(2))}), "name of a file"),
        (xr.Dataset({"/x": ("t", np.zeros(2))}), "name of a file"),
        (xr.Dataset({".x": ("t", np.zeros(2))}), "name of a file"),
        (xr.Dataset({"a\\b": ("t", np.zeros(2))}), "name of a file"),
        (xr.Dataset({"zarr.json": ("t", np.zeros(2))}), "name of a file"),
        (xr.Dataset({"a/b": ("t", np.zeros(2)), "a.b": ("t", np.zeros(2))}), "stay different"),
        (xr.Dataset({"x": ("t", np.zeros(2), {"_FillValue": 0.0})}), "attributes"),
        (xr.Dataset({"x": ("t", np.zeros(2), {"units": "days since 2000-01-01"})}), "attributes"),
        (xr.Dataset({"x": ("t", np.zeros(2))}, coords={"two words": 1}), "spaces"),
        (xr.Dataset(attrs={"f": print}), "attributes of the dataset"),
        ({"x": np.zeros(2)}, "xarray.Dataset"),
    ],
)
def test_what_would_not_come_back_is_refused(store, bad, says):
    with store.claim(point()) as run:
        with pytest.raises(StoreError, match=says):
            run.write("bad", bad)
        assert not run.finished("bad")
        assert not list((run.directory / "results").iterdir())


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "../x", "a..b", ".hidden", "a b", "x" * 101, "a\n", 3, None]
)
def test_names_of_results_stay_inside_the_run(store, name):
    with store.claim(point()) as run:
        for call in (run.checkpoint, run.finished, lambda n: run.write(n, dataset())):
            with pytest.raises(StoreError, match="letters, digits"):
                call(name)


def test_pickled_codecs_are_never_read(store):
    with store.claim(point()) as run:
        path = run.write("flow", dataset())
    for change in ({"codecs": [{"name": "numcodecs.pickle"}]}, {"zarr_format": 2}):
        for file in ("zarr.json", "cost/zarr.json"):
            before = (path / file).read_text()
            metadata = json.loads(before)
            target = metadata["consolidated_metadata"]["metadata"]["cost"] if file == "zarr.json" else metadata
            target |= change
            (path / file).write_text(json.dumps(metadata))
            with pytest.raises(StoreError, match=r"codecs that are not read|format 2"):
                store.record(run.id).open("flow")
            (path / file).write_text(before)
    assert store.verify(run.id) == []


def test_a_result_is_replaced_whole(store):
    with store.claim(point()) as run:
        run.write("flow", dataset(1))
        run.write("flow", dataset(2))
        xr.testing.assert_identical(run.read("flow"), dataset(2))
        assert [p.name for p in (run.directory / "results").iterdir()] == ["flow.zarr"]
        run.finish()
    assert store.verify(run.id) == []


def test_the_hash_is_that_of_the_files(store):
    run = store.record(finish(store))
    place = run.directory / "results" / "flow.zarr"
    files = [path for path in place.rglob("*") if path.is_file()]
    hashes = {path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    lines = [f"{name} {digest}\n" for name, digest in hashes.items()]
    stored = json.loads((run.directory / "manifest.json").read_text())["results"]["flow"]
    assert stored == hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def test_verify_finds_every_kind_of_damage(store):
    name = finish(store)
    results = store.path / "runs" / name / "results"
    assert store.verify(name) == []
    chunk = results / "flow.zarr/cost/0"
    before = chunk.read_bytes()
    chunk.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert "not those that were written" in store.verify(store.record(name))[0]
    chunk.unlink()
    assert "not those that were written" in store.verify(name)[0]
    chunk.write_bytes(before)
    (results / "flow.zarr/more").write_text("")
    assert "not those that were written" in store.verify(name)[0]
    (results / "flow.zarr/more").unlink()
    (results / "flow.zarr").rename(results / "other.zarr")
    problems = store.verify(name)
    assert any("'other' is there, but not finished" in text for text in problems)
    assert any("'flow' cannot be read" in text for text in problems)


# Runs ----------------------------------------------------------------------------------------------------------------


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


# Studies -------------------------------------------------------------------------------------------------------------


def test_a_study_is_found_by_its_id_its_name_and_a_beginning(store):
    points = [point(2), point(1)]
    study = store.add_study("name = 'Wide nets!'  # σ", {"name": "Wide nets!", "limit": math.inf}, points)
    assert study.id.startswith("wide-nets-")
    assert len(study.id) == len("wide-nets-") + 8
    assert study.points == [run_id(point) for point in points]
    assert study.path == store.path / "studies" / study.id
    assert (study.text, study.document, study.resolved) == (
        "name = 'Wide nets!'  # σ",
        {"name": "Wide nets!", "limit": math.inf},
        points,
    )
    for key in (study.id, "Wide nets!", "wide"):
        assert store.study(key) == study


def test_a_study_is_added_once_for_each_content(store):
    first = store.add_study("a", {"name": "s"}, [point()])
    again = store.add_study("a # with a comment", {"name": "s"}, [point()])
    assert (again, again.text) == (first, "a # with a comment")
    other = store.add_study("a", {"name": "s"}, [point(), point(1)])
    third = store.add_study("a", {"name": "s", "x": 1}, [point()])
    assert [study.id for study in store.studies()] == [first.id, other.id, third.id]
    with pytest.raises(StoreError, match="3 studies"):
        store.study("s")
    assert store.study(other.id) == other


@pytest.mark.parametrize("key", ["", "nothing", "../runs", None, 3])
def test_an_unknown_study_is_refused_with_those_that_are_there(store, key):
    study = store.add_study("", {"name": "σσ"}, [])
    assert study.id.startswith("study-")
    with pytest.raises(StoreError, match=study.id):
        store.study(key)
    if key is not None:
        with pytest.raises(StoreError, match=study.id), store.claim(point(), study=key):
            pass


@pytest.mark.parametrize("document", [{}, {"name": ""}, {"name": 3}, {"name": "x", "y": object()}])
def test_a_study_needs_a_name_and_plain_contents(store, document):
    with pytest.raises(StoreError):
        store.add_study("", document, [])
    assert store.studies() == []


def test_a_study_that_cannot_be_read_says_what_to_do(store):
    study = store.add_study("", {"name": "s"}, [point()])
    other = store.add_study("", {"name": "other"}, [point()])
    (study.path / "study.json").write_text("{")
    with pytest.raises(StoreError, match="run the study file again"):
        store.study(study.id)
    with pytest.warns(StoreWarning, match="run the study file again"):
        assert store.studies() == [other]
    assert store.study(other.id) == other
    with pytest.warns(StoreWarning):  # the store takes new ones as before
        assert store.add_study("", {"name": "third"}, []).sequence > other.sequence
    with pytest.raises(StoreError, match="remove this directory"):
        store.add_study("", {"name": "s"}, [point()])


# The directory -------------------------------------------------------------------------------------------------------


def test_a_store_is_made_only_where_nothing_is(tmp_path):
    with pytest.raises(StoreError, match="create=True"):
        Store(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / ".notes.partial").write_text("mine")
    with pytest.raises(StoreError, match=r"holds '\.notes\.partial' and no store"):
        Store(tmp_path / "foreign", create=True)
    assert (tmp_path / "foreign" / ".notes.partial").read_text() == "mine"
    with pytest.raises(StoreError, match="create=True"):
        Store(tmp_path / "foreign")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        Store(tmp_path / "file", create=True)
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        Store(tmp_path / "empty", create=True).close()
    assert json.loads((tmp_path / "empty" / "store.json").read_text()) == {"format": 1, "fibration": fb.__version__}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"format": 2, "fibration": "9.0"}', "upgrade Fibration"),
        ('{"format": "1"}', "does not tell the format"),
        ('{"format": 0}', "does not tell the format"),
        ("[1]", "does not tell the format"),
        ("", "does not tell the format"),
        ("\x00\xff", "does not tell the format"),
    ],
)
def test_another_format_is_refused(store, text, says):
    finish(store)
    (store.path / "store.json").write_text(text, encoding="latin-1")
    for options in ({}, {"create": True}, {"read_only": True}):
        with pytest.raises(StoreError, match=says):
            Store(store.path, **options)


def test_a_read_only_store_takes_nothing(store):
    finish(store)
    study = store.add_study("", {"name": "s"}, [point()])
    reader = Store(store.path, read_only=True)
    for call in (
        lambda: reader.claim(point()).__enter__(),
        lambda: reader.add_study("", {"name": "t"}, []),
        lambda: reader.retry(run_id(point())),
        reader.rebuild_index,
    ):
        with pytest.raises(StoreError, match="read_only"):
            call()
    assert reader.studies() == [study]
    assert reader.verify(run_id(point())) == []


def test_a_store_is_sent_to_threads_and_processes(store):
    finish(store)
    copy = pickle.loads(pickle.dumps(store))
    assert known(copy.records()[0]) == known(store.records()[0])
    copy.close()
    failures = []

    def work(number):
        try:
            for k in range(5):
                with store.claim(point(10 * number + k + 1)) as run:
                    run.finish({"k": k})
                store.records()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    records = store.records()
    assert len(records) == 21
    assert len({record.sequence for record in records}) == 21


# Manifests that were edited, or cut off -------------------------------------------------------------------------------


def edited(**changes):
    return lambda text: json.dumps({**json.loads(text), **changes})


def without(name):
    return lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != name})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: "", "is not JSON"),
        (lambda text: text.replace("0.5", "NaN"), "without quotes"),
        (lambda text: "[" * 100_000, "is not JSON"),
        (lambda text: "[]", "is not a JSON object"),
        (without("results"), "lacks 'results'"),
        (without("point"), "lacks 'point'"),
        (edited(point={"seed": 1}), "another point"),
        (edited(id="0" * 16), "another point"),
        (edited(status="finished"), "'finished' as 'status'"),
        (edited(status=["done"]), "as 'status'"),
        (edited(results={"../../x": "0" * 64}), "as 'results'"),
        (edited(results={"flow": "0"}), "as 'results'"),
        (edited(seconds="long"), "as 'seconds'"),
        (edited(summary={"a": []}), "as 'summary'"),
        (edited(curves={"a": {"x": [1], "y": ["b"]}}), "as 'curves'"),
        (edited(sequence=-1), "as 'sequence'"),
    ],
)
def test_a_damaged_manifest_is_said_to_be_and_set_aside(store, damage, says):
    name = finish(store)
    path = store.path / "runs" / name / "manifest.json"
    bad = damage(path.read_text())
    for number in (1, 2):
        path.write_text(bad)
        record = store.record(name)
        assert [one.status for one in store.records()] == ["damaged"]
        assert record.status == "damaged"
        assert says in record.error
        assert "run the study again" in record.error
        assert (record.point, record.axes, record.results) == ({}, {}, ("flow",))
        xr.testing.assert_identical(record.open("flow").load(), dataset())
        assert store.verify(name) == [record.error]
        with pytest.raises(StoreError, match="damaged"):
            store.retry(name)
        with store.claim(point()) as run:
            assert (run.status, run.finished("flow")) == ("running", False)
            run.write("flow", dataset())
            run.finish({"cost": 0.5})
        assert path.with_name(f"manifest.json.damaged-{number}").read_text() == bad
        assert store.record(name).status == "done"
        assert store.verify(name) == []


def test_results_without_a_manifest_are_damaged_and_a_directory_without_both_is_nothing(store):
    name = finish(store)
    (store.path / "runs" / name / "manifest.json").unlink()
    assert [(record.status, record.results) for record in store.records()] == [("damaged", ("flow",))]
    assert "is missing" in store.record(name).error
    with store.claim(point()) as run:
        run.finish()
    assert store.record(name).status == "done"
    (store.path / "runs" / ("a" * 16)).mkdir()
    (store.path / "runs" / "notes").mkdir()
    assert [record.id for record in store.records()] == [name]
    with pytest.raises(StoreError, match="no runs"):
        store.record("a" * 16)


def test_a_result_of_damaged_files_says_so(store):
    name = finish(store)
    path = store.path / "runs" / name / "results" / "flow.zarr" / "zarr.json"
    path.write_text("{")
    with pytest.raises(StoreError, match="cannot be opened"):
        store.record(name).open("flow")
    path.unlink()
    with pytest.raises(StoreError, match="cannot be opened"):
        store.record(name).open("flow")
