"""Points of a study against bare calls of the library, whatever data, networks and runs they name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import fibration as fb
from fibration.errors import MissingFileError, StoreError, StudyFileError
from fibration.study._document import identity
from fibration.study._runner import run_one
from study_files import command, small

IRIS = """
name = "iris"
data = { source = "iris", samples = 30, standardize = true }
network = { kind = "mlp", hidden = [4], activation = "relu" }
save_parameters = "all"
[runs.flow]
kind = "flow"
t1 = 2.0
saves = 5
[runs.half]
kind = "descent"
stable_fraction = 0.5
t1 = 2.0
saves = 5
[runs.adam]
kind = "descent"
method = "adam"
step_size = 0.01
steps = 8
saves = 5
[diagnostics]
certificate = true
rank = true
balance = true
minimizer = true
canonical = { degree = 1 }
"""


def only(path, store):
    outcome = fb.study.run_study(path, store)
    (run,) = outcome.outcomes
    return fb.study.Store(store).record(run)


@pytest.fixture(scope="module")
def iris(tmp_path_factory):
    folder = tmp_path_factory.mktemp("iris")
    (folder / "iris.toml").write_text(IRIS)
    record = only(folder / "iris.toml", folder / "store")
    assert record.status == "done", record.error
    return record


@pytest.fixture(scope="module")
def bare():
    """The same, written as a script."""
    with jax.enable_x64(True):
        inputs, labels = fb.datasets.iris(30, standardize=True)
        apply, params = fb.networks.mlp((4, 4, 3), "relu", key=jax.random.key(0))
        targets = fb.datasets.one_hot(labels)
        problem = fb.Problem(apply, inputs, targets)
        times = np.linspace(0, 2, 5)
        flow = fb.integrate(
            problem, fb.GradientFlow(), params, 2.0, times=times, observe={"sharpness": fb.curvature.Sharpness()}
        )
        return problem, params, labels, flow


def test_a_flow_and_its_descent_are_those_of_bare_calls(iris, bare):
    problem, params, _, flow = bare
    with jax.enable_x64(True):
        stored = iris.open("flow")
        np.testing.assert_allclose(stored["cost"], flow.costs, rtol=1e-12)
        np.testing.assert_allclose(stored["params.0.weight"], flow.params[0]["weight"], rtol=1e-9)
        limit = 1.0 / np.max(flow.observed["sharpness"])  # half of 2/sharpness
        per_save = int(np.ceil(0.5 / limit - 1e-9))
        step = 0.5 / per_save
        pace = {"step_size": step, "steps": 4 * per_save, "save_every": per_save}
        descent = fb.descend(problem, fb.GradientFlow(), params, **pace)
        assert iris.summary["half.step_size"] == pytest.approx(step, rel=1e-12)
        np.testing.assert_allclose(iris.open("half")["cost"], descent.costs, rtol=1e-9)
        _, distances = fb.fidelity.distance(descent, flow)
        np.testing.assert_allclose(iris.curves["half.distance"]["y"], distances, rtol=1e-6, atol=1e-12)
        adam = fb.descend(problem, optax.adam(0.01), params, steps=8, save_every=2)
        np.testing.assert_allclose(iris.open("adam")["cost"], adam.costs, rtol=1e-9)
    assert iris.gradients == sum(iris.summary[f"{run}.gradients"] for run in ("flow", "half", "adam"))


def test_diagnostics_are_those_of_bare_calls(iris, bare):
    problem, params, labels, flow = bare
    with jax.enable_x64(True):
        report = fb.tangent.rank(problem, params)
        assert iris.summary["start.rank"] == report.rank
        np.testing.assert_allclose(iris.curves["start.singular_values"]["y"], report.singular_values, rtol=1e-10)
        action = fb.balance.rescaling(problem.apply, params, problem.inputs[0])
        squares = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(params))
        expected = float(jnp.linalg.norm(action.moment_map(params))) / squares
        assert iris.summary["flow.imbalance_start"] == pytest.approx(expected, rel=1e-12)
        made = fb.minimizers.construct(np.asarray(problem.inputs), labels, weights="sample")
        assert iris.summary["minimizer.cost"] == pytest.approx(made.cost**2 / 2, abs=1e-20)
        assert iris.summary["minimizer"].startswith(made.method)
        assert iris.summary["flow.sharpness_max"] == pytest.approx(float(np.max(flow.observed["sharpness"])), rel=1e-9)
        columns = fb.canonical.observer(fb.canonical.Basis((0, 1), 0)).columns
        ratio = np.asarray(iris.open("flow")["observed.canonical"])[:, columns.index("pl_ratio")]
        assert (ratio >= 1).all()
    assert "half.certificate" in iris.summary


def test_stored_trajectories_come_back(iris, bare):
    flow = bare[3]
    found = fb.study.trajectory(iris.open("flow"))
    np.testing.assert_array_equal(found.times, flow.times)
    np.testing.assert_allclose(found.params["1.bias"], flow.params[1]["bias"], rtol=1e-9)
    assert found.result.code == "completed"
    study = fb.study.fidelity_of(iris)
    assert len(study.descents) == 1
    np.testing.assert_allclose(study.distances()[0], iris.curves["half.distance"]["y"], rtol=1e-12)


def test_netcdf_holds_the_same_numbers(iris, tmp_path):
    paths = fb.study.export_netcdf(iris, tmp_path / "out")
    assert len(paths) == 3
    for path in paths:
        name = path.stem.partition("-")[2]
        with xr.open_dataset(path, engine="scipy") as dataset:
            np.testing.assert_array_equal(dataset["cost"], iris.open(name)["cost"])


SOURCES = {
    "digits, convolutions, classes": """
loss = "cross_entropy"
precision = "float32"
data = { source = "digits", samples = 12 }
network = { kind = "convnet", channels = [2], dense = [4] }
""",
    "diabetes": """
data = { source = "diabetes", samples = 10, standardize = true }
network = { kind = "deep_linear", hidden = [3], balanced = true }
""",
    "clusters": """
data = { source = "clusters", classes = 3, per_class = 4 }
network = { kind = "mlp", hidden = [], bias = false }
""",
    "teacher": """
data = { source = "teacher", samples = 6, widths = [2, 3, 1] }
network = { kind = "mlp", hidden = [3], activation = "sin" }
""",
    "csv": """
data = { source = "csv", path = "d.csv", target = "y", standardize = true }
network = { kind = "mlp", hidden = [2] }
""",
    "npz": """
data = { source = "npz", path = "d.npz", inputs = "x", targets = "y", centre = true }
network = { kind = "mlp", hidden = [2] }
""",
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_of_data_and_network_runs(source, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "d.csv").write_text("x,y\n" + "\n".join(f"{a},{b}" for a, b in rng.normal(size=(6, 2))))
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(5, 2)), y=rng.normal(size=(5, 1)))
    runs = '[runs.descent]\nkind = "descent"\nstep_size = 0.0005\nsteps = 4\nsaves = 3\n'
    (tmp_path / "s.toml").write_text(f'name = "{source}"\n{SOURCES[source]}\n{runs}[diagnostics]\nsharpness = false\n')
    record = only(tmp_path / "s.toml", tmp_path / "store")
    assert record.status == "done", record.error
    costs = np.asarray(record.open("descent")["cost"])
    assert costs.shape == (3,)
    assert costs[-1] < costs[0]
    real = np.float32 if "float32" in SOURCES[source] else np.float64
    kept = record.open("descent")
    assert all(kept[name].dtype == real for name in kept.data_vars if str(name).startswith("params"))


def test_a_point_that_fails_is_recorded_and_the_others_go_on(tmp_path):
    np.savez(tmp_path / "d.npz", inputs=np.ones((3, 11)), targets=np.ones((3, 1)))
    text = """
name = "some fail"
data = { source = "npz", path = "d.npz" }
network = { kind = "mlp", hidden = [2] }
[runs.descent]
kind = "descent"
step_size = 0.1
steps = 2
saves = 3
[diagnostics]
sharpness = false
[diagnostics.canonical]
degree = 1
[sweep]
"data.source" = ["npz"]
"network.hidden" = [[2]]
"""
    (tmp_path / "s.toml").write_text(text)
    store = fb.study.Store(tmp_path / "store", create=True)
    outcome = fb.study.run_study(tmp_path / "s.toml", store)
    assert set(outcome.outcomes.values()) == {"failed"}
    (record,) = store.records(status="failed")
    assert "at most ten" in record.error
    assert "StudyFileError" in record.error
    again = fb.study.run_study(tmp_path / "s.toml", store)
    assert set(again.outcomes.values()) == {"failed"}
    (tmp_path / "s.toml").write_text(text.replace("[diagnostics.canonical]\ndegree = 1\n", ""))
    assert fb.study.run_study(tmp_path / "s.toml", store).complete


def test_changed_data_is_noticed(tmp_path):
    np.savez(tmp_path / "d.npz", inputs=np.ones((3, 1)), targets=np.ones((3, 1)))
    runs = '[runs.a]\nkind = "descent"\nstep_size = 0.1\nsteps = 2\n'
    head = 'name = "n"\ndata = { source = "npz", path = "d.npz" }\nnetwork = { kind = "mlp", hidden = [] }\n'
    (tmp_path / "s.toml").write_text(head + runs)
    file = fb.study.read_study(tmp_path / "s.toml")
    np.savez(tmp_path / "d.npz", inputs=np.zeros((3, 1)), targets=np.ones((3, 1)))
    with pytest.raises(StudyFileError, match="has changed"):
        fb.study.run_study(file, tmp_path / "store")
    # Changed later, while points run, it is found by each of them.
    store = fb.study.Store(tmp_path / "store", create=True)
    study = store.add_study(file.text, {"name": "n"}, [identity(file.points[0])])
    assert run_one(store, file.points[0], study.id) == "failed"
    assert "has changed" in store.records()[0].error


def test_a_budget_ends_a_run_and_resume_goes_on_to_the_same_bits(tmp_path):
    file = small(tmp_path / "s.toml", steps=2_000_000)
    expected = only(file, tmp_path / "whole").open("long").load()
    limited = tmp_path / "limited.toml"
    limited.write_text(file.read_text() + "seconds = 0.5\n")
    store = fb.study.Store(tmp_path / "store", create=True)
    outcome = fb.study.run_study(limited, store)
    assert set(outcome.outcomes.values()) == {"over budget"}
    assert store.records()[0].status == "interrupted"
    assert fb.study.run_study(file, store).complete
    assert store.records()[0].open("long").load()["cost"].equals(expected["cost"])


def test_a_sweep_on_a_cluster_gives_the_numbers_of_one_process(tmp_path):
    file = small(tmp_path / "s.toml", seeds=4)
    told = []
    local = fb.study.run_study(file, tmp_path / "local", cluster="local", each=lambda *one: told.append(one))
    assert local.complete
    assert sorted(told) == sorted(local.outcomes.items())
    assert fb.study.run_study(file, tmp_path / "alone").complete
    first, second = (fb.study.Store(tmp_path / name).records() for name in ("local", "alone"))
    costs = {record.id: record.summary["long.cost"] for record in first}
    for record in second:
        assert record.summary["long.cost"] == pytest.approx(costs[record.id], rel=1e-12)
    again = fb.study.run_study(file, tmp_path / "local", cluster="local")
    assert set(again.outcomes.values()) == {"kept"}


def test_what_is_not_there_is_named(iris, tmp_path):
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(StudyFileError, match="TOML"):
        fb.study.read_study(tmp_path / "bad.toml")
    with pytest.raises(StoreError, match="two"):
        fb.study.stored_study(fb.study.Store(tmp_path / "new", create=True), "two")
    with pytest.raises(StoreError, match="no result"):
        iris.open("nobody")


def test_the_command_line_from_new_to_report(tmp_path):
    code, out, _ = command("new", folder=tmp_path)
    assert code == 0
    assert "27 points" in out
    code, _, err = command("new", folder=tmp_path)
    assert code == 1
    assert "exists" in err
    text = (tmp_path / "study.toml").read_text()
    for old, new in {"[[4], [8], [16]]": "[[2]]", "[0.1, 0.5, 0.9]": "[0.5]", "t1 = 20.0": "t1 = 1.0"}.items():
        text = text.replace(old, new)
    (tmp_path / "study.toml").write_text(text.replace("seeds = 3 ", "seeds = 2 "))
    code, out, _ = command("run", "study.toml", "--check", folder=tmp_path)
    assert (code, "2 points" in out) == (0, True)
    code, out, err = command("run", "study.toml", "--cluster", "none", folder=tmp_path)
    assert code == 0, err
    assert "2 done" in out
    _, out, _ = command("list", folder=tmp_path)
    runs = [word for word in out.split() if len(word) == 16 and set(word) <= set("0123456789abcdef")]
    assert len(runs) == 2
    for arguments, page in ((["report", "widths"], "report.html"), (["compare", *runs], "compare.html")):
        code, out, err = command(*arguments, folder=tmp_path)
        assert code == 0, err
        assert (tmp_path / page).stat().st_size > 1000
    code, out, _ = command("export", runs[0][:6], "--netcdf", "--out", "nc", folder=tmp_path)
    assert code == 0
    assert len(list((tmp_path / "nc").glob("*.nc"))) == 2
    code, _, err = command("report", "nothing", folder=tmp_path)
    assert code == 1
    assert "fibration list" in err
    code, _, err = command("status", "--store", "nowhere", folder=tmp_path)
    assert code == 1
    assert "StoreError" in err


def test_a_study_goes_on_only_with_the_data_it_was_begun_with(tmp_path):
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "d.csv").write_text("x,y\n1,2\n3,4\n5,5\n")
    text = IRIS.replace(
        '{ source = "iris", samples = 30, standardize = true }', '{ source = "csv", path = "d.csv", target = "y" }'
    )
    path = folder / "s.toml"
    path.write_text(text[: text.index("[runs.half]")])
    first = fb.study.run_study(path, tmp_path / "store")
    store = fb.study.Store(tmp_path / "store")
    assert len(fb.study.stored_study(store, "iris").points) == 1

    (folder / "d.csv").write_text("x,y\n1,2\n3,4\n5,6\n")
    with pytest.raises(StudyFileError, match=rf"d\.csv.*has changed since the study {first.study.id}"):
        fb.study.stored_study(store, "iris")
    (folder / "d.csv").unlink()
    with pytest.raises(MissingFileError, match=r"restore it, or run the study file from where it is"):
        fb.study.stored_study(store, "iris")

    # The same study in another place is the same study, and goes on from there.
    (folder / "d.csv").write_text("x,y\n1,2\n3,4\n5,5\n")
    folder.rename(tmp_path / "elsewhere")
    again = fb.study.run_study(tmp_path / "elsewhere" / "s.toml", store)
    assert (again.study.id, list(again.outcomes.values())) == (first.study.id, ["kept"])
    assert len(fb.study.stored_study(store, "iris").points) == 1
    assert len(store.studies()) == 1


def test_no_stable_step_without_curvature(tmp_path):
    path = tmp_path / "flat.toml"
    path.write_text(IRIS.replace("hidden = [4]", "hidden = [4, 4], bias = false, scale = 1e-200"))
    record = only(path, tmp_path / "store")
    assert record.status == "failed"
    assert "StepSizeError: the largest sharpness along 'flow' is" in record.error
