"""Problems over several devices and processes give what one device gives, to rounding."""

import functools
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

import fibration as fb
from fibration.errors import ParameterError
from fibration.study._distributed import initialize_distributed

CASES = Path(__file__).with_name("sharded_cases.py")
COORDINATOR = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start(code, *, devices=1, **environment):
    """Start a process of its own, in which the CPU is made several devices; compiling is most of its work."""
    kept = {name: value for name, value in os.environ.items() if name not in COORDINATOR}
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"} | environment
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *map(str, code)], env=kept | environment, **output)


def finish(process):
    said, _ = process.communicate(timeout=1200)
    return process.returncode, said


def two_processes(code):
    """Start two processes of two devices each, which meet on the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    return [
        start(code, devices=2, **dict(zip(COORDINATOR, (address, "2", str(number)), strict=True)))
        for number in range(2)
    ]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Compute the same on one device without a mesh, on 1, 2 and 8 devices, and in two processes."""
    out = tmp_path_factory.mktemp("sharded")
    first = [start([CASES, out / "one"]), start([CASES, out / "two", 2, "few"], devices=2)]
    said = [finish(process) for process in first]  # the others go on from the first one's checkpoint
    processes = [start([CASES, out / "eight", 8], devices=8), *two_processes([CASES, out / "pair", 4, "many"])]
    processes.append(start([CASES, out / "single", 1, "few"]))
    said += [finish(process) for process in processes]
    assert all(code == 0 for code, _ in said), "\n".join(text[-2000:] for code, text in said if code)
    names = ("one", "two", "eight", "pair", "process1-pair", "single")
    results = {name: dict(np.load(out / f"{name}.npz")) for name in names}
    return results, {name: json.loads((out / f"{name}.json").read_text()) for name in names}


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", ["single", "two", "eight", "pair", "process1-pair"])
def test_sharded_results_are_those_of_one_device(outcomes, name):
    results, facts = outcomes
    one, found = results["one"], results[name]
    assert facts[name]["devices"] == {"single": 1, "two": 2, "eight": 8}.get(name, 4)
    assert facts[name]["processes"] == (2 if "pair" in name else 1)
    assert len(found) == {"single": 12, "two": 12, "eight": len(one)}.get(name, 22)
    for key, value in found.items():
        size = np.max(np.abs(one[key]))
        np.testing.assert_allclose(value, one[key], rtol=0, atol=1e-10 * size, err_msg=key)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_resumed_run_is_bit_identical_on_the_same_devices(outcomes):
    for name in ("one", "eight", "pair", "process1-pair"):
        found = outcomes[0][name]
        np.testing.assert_array_equal(found["same devices"], found["descend"], err_msg=name)
    for key, value in outcomes[0]["pair"].items():  # processes know the same
        np.testing.assert_array_equal(value, outcomes[0]["process1-pair"][key], err_msg=key)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(("name", "devices"), [("two", 2), ("eight", 8), ("pair", 4), ("process1-pair", 4)])
def test_samples_and_rows_are_divided_and_parameters_are_not(outcomes, name, devices):
    dense, chunks = outcomes[1][name]["dense"], outcomes[1][name]["chunks"]
    assert dense["inputs"] == [[16, 6], [16 // devices, 6]]
    assert dense["outputs"] == [[16, 2], [16 // devices, 2]]
    assert dense["gram"] == [[32, 32], [32 // devices, 32]]
    assert dense["gradient"][0] == dense["gradient"][1]
    own = -(-21 // devices)  # 21 samples in equal parts, the last repeated
    assert chunks["inputs"] == [[own * devices, 2], [own, 2]]
    assert chunks["outputs"] == [[21, 1], [21, 1]]
    for facts in (dense, chunks):  # gradients are added up, once however many chunks, and no samples are sent
        assert facts["all-reduce"] >= 1
        assert facts["all-reduce in loops"] == facts["all-gather"] == facts["all-to-all"] == 0


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", ["two", "pair", "process1-pair"])
def test_each_process_may_hold_its_own_rows(outcomes, name):
    facts = outcomes[1][name]
    assert abs(facts["own rows"]) < 1e-14
    assert "hold 1 values that are NaN or infinite, the first at index (13, 2)" in facts["not finite"]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_meshes_of_two_axes_and_parameters_that_lie_somewhere(outcomes):
    facts = outcomes[1]["eight"]
    assert facts["by both axes"] is True
    assert facts["committed"] == 0
    assert re.search("were put on 1 devices, which are not the 8 .*device_put", facts["elsewhere"])


def make_mesh(name="samples", kind=AxisType.Auto):
    return jax.make_mesh((1,), (name,), axis_types=(kind,), devices=jax.devices()[:1])


make = functools.partial(fb.Problem, lambda w, x: w @ x, np.eye(2), np.ones((2, 1)))


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (8, "mesh is int"),
        ("samples", "mesh is str"),
        (jax.devices(), "mesh is list"),
        (make_mesh().abstract_mesh, "mesh is AbstractMesh"),
        (make_mesh(kind=AxisType.Explicit), r"'samples' are not Auto.*axis_types=\(jax.sharding.AxisType.Auto,\) \* 1"),
    ],
)
def test_a_mesh_that_will_not_do_is_refused_by_name(mesh, message):
    with pytest.raises(ParameterError, match=message):
        make(mesh=mesh)


def test_blocks_on_two_meshes_are_refused():
    mesh, other = make_mesh(), make_mesh("others")
    assert fb.stack([make(mesh=mesh), make(mesh=mesh), make()]).mesh == mesh
    with pytest.raises(ParameterError, match="2 different meshes"):
        fb.stack([make(mesh=mesh), make(mesh=other)])


def test_global_arrays_stay_where_they_are():
    mesh = Mesh(np.array(jax.devices()[:1]), ("samples",))  # axes of such a mesh are Auto
    problem = make(mesh=mesh)
    again = fb.Problem(lambda w, x: w @ x, problem.inputs, problem.targets, mesh=mesh)
    assert again.inputs.sharding == problem.inputs.sharding
    assert again.cost(jnp.ones((1, 2))) == make().cost(jnp.ones((1, 2)))


def test_problems_on_a_mesh_are_made_in_compiled_code_too():
    mesh, w = make_mesh(), jnp.full((1, 2), 3.0)
    program = jax.jit(lambda x, y: fb.Problem(lambda w, x: w @ x, x, y, mesh=mesh).cost(w))
    np.testing.assert_allclose(program(np.eye(2), np.ones((2, 1))), make().cost(w))


def test_checks_of_data_hold_with_a_mesh():
    with pytest.raises(fb.errors.NonFiniteDataError, match=r"first at index \(1, 0\)"):
        fb.Problem(lambda w, x: w @ x, np.array([[1.0], [np.nan]]), np.ones((2, 1)), mesh=make_mesh())
    loss = fb.CrossEntropy(n_classes=3)
    with pytest.raises(ParameterError, match="classes run from 0 to 3"):
        fb.Problem(lambda w, x: w @ x, np.eye(2), np.array([0, 3]), loss=loss, mesh=make_mesh())


def test_without_a_mesh_nothing_is_said_of_devices():
    def told(problem):
        text = str(jax.make_jaxpr(problem.cost_and_gradient)(jnp.ones((1, 2))))
        return {word for word in ("shard_map", "sharding_constraint", "mesh") if word in text}

    assert told(make()) == set()
    assert told(make(mesh=make_mesh())) == {"shard_map", "sharding_constraint", "mesh"}


def test_a_checkpoint_without_a_mesh_goes_on_with_one(tmp_path):
    call = {"step_size": 0.1, "steps": 6, "checkpoint": tmp_path}
    short = fb.descend(make(), fb.GradientFlow(), np.zeros((1, 2)), options=fb.Options(max_steps=3), **call)
    run = fb.descend(make(mesh=make_mesh()), fb.GradientFlow(), np.zeros((1, 2)), **call)  # one device: no warning
    assert (short.result.code, run.stats["resumed_at"]) == ("max_steps", pytest.approx(0.3))
    np.testing.assert_allclose(run.params[-1], 1 - 0.95**6, rtol=1e-12)  # (1 − η/N)^k


STUDY = """
name = "waves in two processes"
seeds = 2
[data]
source = "waves"
samples = 18
[network]
kind = "mlp"
hidden = [6]
[runs.flow]
kind = "flow"
t1 = 3.0
[runs.descent]
kind = "descent"
step_size = 0.1
t1 = 3.0
[runs.solve]
kind = "least_squares"
steps = 5
[diagnostics]
sharpness = true
fidelity = true
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_over_two_processes_is_that_of_one(tmp_path):
    """`fibration run --distributed`: one store, written by process 0, with the results of one device to rounding."""
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    command = ["-m", "fibration", "run", path, "--store"]
    said = [finish(process) for process in two_processes([*command, tmp_path / "pair", "--distributed"])]
    said.append(finish(start([*command, tmp_path / "one", "--cluster", "none"])))
    assert [code for code, _ in said] == [0, 0, 0], said
    stores = [fb.study.Store(tmp_path / name, create=False) for name in ("one", "pair")]
    runs = [{record.id: record for record in store.records(status="done")} for store in stores]
    assert len(runs[0]) == 2
    assert runs[0].keys() == runs[1].keys()
    for name, one in runs[0].items():
        pair = runs[1][name]
        assert one.results == pair.results
        for result in ("flow", "descent", "solve"):
            first, second = one.open(result), pair.open(result)
            compared = [name for name in first if name.split(".")[0] in ("cost", "params")]
            assert len(compared) >= 5
            for variable in compared:
                np.testing.assert_allclose(second[variable], first[variable], rtol=1e-9, atol=1e-9, err_msg=variable)
    again = [finish(process) for process in two_processes([*command, tmp_path / "pair", "--distributed"])]
    assert all(code == 0 and "2 points, 2 kept" in text for code, text in again), again


def test_joining_needs_a_coordinator():
    code = "from fibration.study._distributed import initialize_distributed as join; join()"
    status, said = finish(start(["-c", code]))
    assert status != 0
    assert "the environment sets none of JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID" in said
    assert "To mend it: start the processes by `srun`" in said


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "a call before anything is computed"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'"),
        ({"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID is ''"),
        ({"JAX_COORDINATOR_ADDRESS": "node1"}, "JAX_COORDINATOR_ADDRESS is 'node1'.*add a port"),
    ],
)
def test_what_the_environment_says_wrong_is_named(environment, message, monkeypatch):
    jnp.ones(1).block_until_ready()
    for name in COORDINATOR:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ParameterError, match=message):
        initialize_distributed()
