"""Runs that are really killed, and what they leave behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fibration as fb
from fibration.errors import CheckpointError, CheckpointMismatchError, OutputDirectoryError
from problems import quadratic

SCRIPT = """
import json, sys
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np
import optax
import fibration as fb

kind, directory, out = sys.argv[1:]
inputs, targets = fb.datasets.digits(samples=60, one_hot=True)
apply, params = fb.networks.mlp((64, 12, 10), "tanh", key=jax.random.key(0))
problem = fb.Problem(apply, inputs, targets)
checkpoint = fb.Checkpoint(directory, every=0.05) if directory != "none" else None
common = dict(checkpoint=checkpoint, observe={"sharpness": fb.curvature.Sharpness()})
common["options"] = fb.Options(chunk_seconds=0.03)
if kind == "integrate":
    run = fb.integrate(problem, fb.GradientFlow(), params, t1=60.0, rtol=1e-6, **common)
elif kind == "descend":
    run = fb.descend(problem, fb.GradientFlow(), params, step_size=0.02, steps=16_000, save_every=100, **common)
else:
    run = fb.descend(problem, optax.noisy_sgd(1e-2, key=1), params, steps=12_000, save_every=100, **common)
leaves = {f"leaf{i}": leaf for i, leaf in enumerate(jax.tree.leaves(run.params))}
np.savez(out, times=run.times, costs=run.costs, sharpness=run.observed["sharpness"], **leaves)
stats = {k: v for k, v in run.stats.items() if k != "wall_seconds"}
print(json.dumps(stats | {"code": run.result.code}))
"""


def start(kind, directory, out):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, kind, str(directory), str(out)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )


def stats_of(process):
    out, _ = process.communicate(timeout=250)
    assert process.returncode == 0
    return json.loads(out)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), [("integrate", [3]), ("descend", [2, 5]), ("optax", [3])])
def test_a_killed_run_goes_on_to_bit_identical_results(kind, kills, tmp_path):
    directory, whole, resumed = tmp_path / "checkpoint", tmp_path / "whole.npz", tmp_path / "resumed.npz"
    expected = stats_of(start(kind, "none", whole))
    victims, n_saved = 0, 0
    for target in kills:  # further on each time
        process = start(kind, directory, resumed)
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:
            n_saved = len(list(directory.glob("saved-*.npz")))
            if n_saved >= target and (directory / "state.npz").exists():
                break
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            victims += 1
        process.wait()
        process.stdout.close()
    assert victims == len(kills)
    assert not resumed.exists()
    stats = stats_of(start(kind, directory, resumed))
    assert stats.pop("resumed_at") > 0
    assert repr(sorted(stats.items())) == repr(sorted(expected.items()))  # there are NaN among them
    with np.load(whole) as a, np.load(resumed) as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


PROBLEM, START = quadratic(np.diag([1.0, 2.0])), np.ones(2)


def run(directory, **changes):
    call = {"t1": 2.0, "rtol": 1e-5, "observe": {"sum": lambda p, w: jnp.sum(w)}} | changes
    problem = call.pop("problem", PROBLEM)
    return fb.integrate(problem, fb.GradientFlow(), call.pop("start", START), checkpoint=directory, **call)


def change_facts(directory, change):
    path = directory / "state.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    facts = json.loads(str(arrays["facts"]))
    change(facts)
    arrays["facts"] = np.asarray(json.dumps(facts))
    np.savez(path, **arrays)


def test_a_finished_run_is_read_and_not_computed(tmp_path):
    first = run(tmp_path)
    calls = []
    again = run(tmp_path, progress=calls.append)
    assert calls == []  # no chunk was run
    assert again.result == first.result
    assert again.stats["resumed_at"] == 2.0
    np.testing.assert_array_equal(again.params, first.params)


def test_a_run_cut_short_by_a_limit_goes_on(tmp_path):
    cut = run(tmp_path, options=fb.Options(max_steps=5))
    assert cut.result.code == "max_steps"
    whole, rest = run(None), run(tmp_path)
    assert rest.stats["resumed_at"] == cut.result.time
    np.testing.assert_array_equal(rest.params, whole.params)
    np.testing.assert_array_equal(rest.times, whole.times)
    np.testing.assert_array_equal(rest.observed["sum"], whole.observed["sum"])
    assert rest.stats["gradient_evaluations"] == whole.stats["gradient_evaluations"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"problem": quadratic(np.diag([1.0, 2.5]))}, "data"),
        ({"start": np.array([1.0, 1.5])}, "initial parameters"),
        ({"t1": 3.0}, "saved times"),
        ({"rtol": 1e-4}, "tolerances"),
        ({"method": "dopri5"}, "network, flow or method"),
        ({"observe": None}, "observers"),
        ({"stop": fb.Stop(cost_below=1e-20)}, "stop conditions"),
        ({"problem": fb.Problem(lambda w, x: x @ w + 0.0 * w[0], PROBLEM.inputs, PROBLEM.targets)}, "network"),
    ],
)
def test_a_checkpoint_of_another_call_is_refused_and_kept(changes, what, tmp_path):
    run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointMismatchError, match=what):
        run(tmp_path, **changes)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def network_of(array, number):
    def apply(w, x):
        return jnp.tanh(array * (x @ w)) + number

    return fb.Problem(apply, PROBLEM.inputs, PROBLEM.targets)


@pytest.mark.parametrize(
    ("array", "number"), [(np.ones(3), 0.1), (np.array([1.0, 1.0, 1.0 + 1e-12]), 0.0), (np.ones(3), 1e-12)]
)
def test_what_a_network_closes_over_is_part_of_its_identity(array, number, tmp_path):
    problem = fb.Problem(network_of(np.ones(3), 0.0).apply, PROBLEM.inputs, np.zeros((2, 3)))
    other = fb.Problem(network_of(array, number).apply, PROBLEM.inputs, np.zeros((2, 3)))
    run(tmp_path, problem=problem)
    run(tmp_path, problem=fb.Problem(network_of(np.ones(3), 0.0).apply, PROBLEM.inputs, np.zeros((2, 3))))
    with pytest.raises(CheckpointMismatchError, match="network"):
        run(tmp_path, problem=other)


def entry(index):
    return lambda p, w: w[index]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda p, w: w[0], lambda p, w: w[1]),
        (lambda p, w: jnp.sum(w), lambda p, w: jnp.prod(w)),
        (entry(0), entry(1)),
        (fb.curvature.Sharpness(tolerance=1e-2), fb.curvature.Sharpness(tolerance=1e-9)),
    ],
)
def test_another_observer_under_the_same_name_is_refused(first, second, tmp_path):
    run(tmp_path, observe={"x": first})
    run(tmp_path, observe={"x": first})
    with pytest.raises(CheckpointMismatchError, match="observers"):
        run(tmp_path, observe={"x": second})


def test_a_callback_is_part_of_the_identity(tmp_path):
    def problem_of(factor):
        def apply(w, x):
            scale = jax.pure_callback(
                lambda: np.float32(factor), jax.ShapeDtypeStruct((), np.float32), vmap_method="expand_dims"
            )
            return jax.lax.stop_gradient(scale) * (x @ w)

        return fb.Problem(apply, PROBLEM.inputs, PROBLEM.targets)

    run(tmp_path, problem=problem_of(1.0))
    run(tmp_path, problem=problem_of(1.0))
    with pytest.raises(CheckpointMismatchError, match="network"):
        run(tmp_path, problem=problem_of(2.0))


def test_another_network_is_refused_whatever_the_versions(tmp_path):
    run(tmp_path)
    change_facts(tmp_path, lambda facts: facts["versions"].update(optax="0.0.1"))
    with pytest.raises(CheckpointMismatchError, match=r"network.*optax 0\.0\.1"):
        run(tmp_path, problem=fb.Problem(lambda w, x: jnp.sin(x @ w), PROBLEM.inputs, PROBLEM.targets))


def test_a_renamed_stop_is_another_call(tmp_path):
    def never(problem, params, time):
        return time > 99

    run(tmp_path, stop=fb.Stop(when={"a": never}))
    with pytest.raises(CheckpointMismatchError, match="stop conditions"):
        run(tmp_path, stop=fb.Stop(when={"b": never}))


def test_two_runs_cannot_share_a_directory(tmp_path):
    def intrude(problem, params):
        with pytest.raises(CheckpointError, match="another run"):
            run(tmp_path)
        return 0.0

    run(tmp_path, observe={"intruder": intrude}, times=[2.0])


def test_a_directory_that_vanishes_loses_nothing(tmp_path):
    directory = tmp_path / "checkpoint"

    def vandal(problem, params):
        shutil.rmtree(directory, ignore_errors=True)
        return 0.0

    with pytest.raises(CheckpointError, match="cannot be written") as caught:
        run(directory, observe={"vandal": vandal})
    np.testing.assert_array_equal(caught.value.trajectory.params, run(None).params)


def test_save_last_is_resumed_too(tmp_path):
    options = {"options": fb.Options(save="last", max_steps=5)}
    run(tmp_path, **options)
    rest = run(tmp_path, options=fb.Options(save="last"))
    np.testing.assert_array_equal(rest.params[0], run(None).params[-1])


def test_damaged_checkpoints_are_named(tmp_path):
    run(tmp_path)
    state = tmp_path / "state.npz"
    whole = state.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"not a zip file" * 50):
        state.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="delete the directory"):
            run(tmp_path)
    state.write_bytes(whole)
    next(iter(tmp_path.glob("saved-*.npz"))).unlink()
    with pytest.raises(CheckpointError, match="FileNotFoundError"):
        run(tmp_path)


def test_a_pickle_in_a_checkpoint_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    directory = tmp_path / "checkpoint"
    run(directory)
    with np.load(directory / "state.npz") as stored:
        arrays = dict(stored)
    arrays["carry-0"] = np.array([Bomb()], dtype=object)
    np.savez(directory / "state.npz", **arrays, allow_pickle=True)
    with pytest.raises(CheckpointError):
        run(directory)
    assert not (tmp_path / "exploded").exists()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputDirectoryError, match="another directory"):
        run(tmp_path / "file" / "below")


def test_other_versions_warn_and_go_on(tmp_path):
    run(tmp_path, options=fb.Options(max_steps=5))
    change_facts(tmp_path, lambda facts: facts["versions"].update(jax="0.0.1"))
    with pytest.warns(fb.errors.VersionWarning, match=r"jax 0\.0\.1"):
        rest = run(tmp_path)
    np.testing.assert_allclose(rest.params, run(None).params, rtol=1e-12)


def test_half_precision_parameters_and_random_keys_survive(tmp_path):
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    problem = fb.Problem(lambda p, x: p["w"].astype(jnp.float32) @ x, jnp.ones((2, 3)), jnp.zeros((2, 1)))
    optimiser = optax.chain(optax.add_noise(1e-2, 0.5, jax.random.key(7)), optax.sgd(0.1))

    def descend(directory, **options):
        return fb.descend(problem, optimiser, params, steps=40, checkpoint=directory, options=fb.Options(**options))

    descend(tmp_path, max_steps=11)
    whole, rest = descend(None), descend(tmp_path)
    assert rest.stats["resumed_at"] == 11
    assert whole.params["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(rest.params["w"].view(np.uint16), whole.params["w"].view(np.uint16))
