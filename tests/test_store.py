"""The run store in one process: its studies, its directory, and manifests that were edited or cut off."""

import json
import math
import pickle
import threading

import pytest
import xarray as xr

import fibration as fb
from fibration.errors import StoreError, StoreWarning
from fibration.study._manifest import run_id
from fibration.study._store import Store
from stores import dataset, finish, known, point, store

__all__ = ["store"]  # a fixture


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
