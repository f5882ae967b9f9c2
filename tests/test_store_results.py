"""What is put into the run store comes out, values that JSON lacks and arrays alike; all else is refused."""

import hashlib
import json
import math
from pathlib import Path

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings

import fibration as fb
from fibration.errors import StoreError
from fibration.study import _zarr
from fibration.study._manifest import run_id
from fibration.study._plain import decode, encode
from fibration.study._store import Store
from stores import dataset, finish, point, same, store

__all__ = ["store"]  # a fixture


# What JSON lacks ----------------------------------------------------------------------------------------------------

texts = st.text(max_size=12) | st.sampled_from(["NaN", "'NaN", "''-Infinity", "Infinity", "-Infinity", "null", "'"])
scalars = st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats() | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))


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
