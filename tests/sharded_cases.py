"""One program for any number of devices and processes: computes everything that runs sharded, and saves it.

`python sharded_cases.py OUT [DEVICES [few|many]]` writes OUT.npz, the results, and OUT.json, how arrays lie. Without
DEVICES there is no mesh: the results to compare with. The environment names the coordinator of several processes.
"""

import json
import os
import re
import shutil
import sys
import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fibration as fb
from fibration import _sharding
from fibration.curvature import extreme_eigenvalues
from fibration.errors import NonFiniteDataError, ParameterError, VersionWarning


class Sum:
    """An observer that adds up the outputs of all saved times."""

    def init(self, problem, params):
        return jnp.zeros(21)

    def update(self, problem, params, time, state):
        state = state + problem.outputs(params)[:, 0]
        return state, state


def wave(params, x):
    """A network with a loop and with derivatives of its own."""
    hidden = jax.lax.scan(lambda h, layer: (jax.nn.silu(layer @ h), None), params["in"] @ x, params["layers"])[0]
    return params["out"] @ (jax.nn.softplus(hidden) + jax.nn.relu(hidden))


def problems(mesh):
    """Name problems with their parameters: a dense network, a weighted convolution, a stack, one in chunks."""
    random = np.random.default_rng(0)
    inputs, outputs = random.normal(size=(16, 6)), random.normal(size=(16, 2))
    dense, dense_params = fb.networks.mlp((6, 12, 2), "tanh", key=jax.random.key(0))
    conv, conv_params = fb.networks.convnet(
        (6, 6, 1), 3, "tanh", key=jax.random.key(1), channels=(3,), dense=(), kernel=3, pooling="mean"
    )
    images, classes = random.normal(size=(13, 6, 6, 1)), random.integers(0, 3, 13)
    weights = random.uniform(0.5, 2.0, 13)
    shapes = {"in": (6, 2), "layers": (2, 6, 6), "out": (1, 6)}
    wave_params = {name: jnp.asarray(random.normal(size=shape) / 2) for name, shape in shapes.items()}
    points, edge = random.normal(size=(11, 2)), random.normal(size=(3, 2))
    tall = random.normal(size=(21, 2)), random.normal(size=(21, 1))
    loss = fb.CrossEntropy(n_classes=3)
    return {
        "dense": (fb.Problem(dense, inputs, outputs, mesh=mesh), dense_params),
        "conv": (fb.Problem(conv, images, classes, loss=loss, weights=weights, mesh=mesh), conv_params),
        "stack": (
            fb.stack([
                fb.Problem(wave, points, np.sin(points[:, :1]), weights=np.linspace(1, 2, 11), mesh=mesh),
                fb.Problem(wave, edge, np.zeros((3, 1))),  # on no mesh itself
            ]),
            wave_params,
        ),
        "chunks": (fb.Problem(wave, *tall, memory_budget=11_000, mesh=mesh), wave_params),
    }  # fmt: skip


def few(mesh):
    """Compute what every problem has, by name."""
    found = {}
    for name, (problem, params) in problems(mesh).items():
        cost, gradient = problem.cost_and_gradient(params)
        found[f"{name} cost and gradient"] = (cost, problem.cost(params), gradient)
        found[f"{name} outputs"] = problem.outputs(params)
        found[f"{name} gram"] = fb.tangent.gram(problem, params)
    return found


def solved(mesh):
    """Compute what needs most compiling, by name; two processes leave it to one of more devices."""
    found = {}
    dense, dense_params = problems(mesh)["dense"]
    stack, wave_params = problems(mesh)["stack"]
    chunks, _ = problems(mesh)["chunks"]
    conv, conv_params = problems(mesh)["conv"]
    tall = fb.Problem(lambda w, x: w @ x, np.random.default_rng(2).normal(size=(13, 2)), np.zeros(13), mesh=mesh)
    rhs = np.random.default_rng(1).normal(size=(16, 2))
    found["solve cholesky"] = fb.tangent.minimum_norm(dense, dense_params, rhs, 1e-3, "cholesky")[0]
    found["solve tall"] = fb.tangent.minimum_norm(tall, np.ones(2), np.arange(13.0), 0.0, "normal")[0]
    found["gram by jacobian"] = fb.tangent.gram(chunks, wave_params, "jacobian")
    found["hessian of scales"] = jax.hessian(lambda c: chunks.cost(jax.tree.map(lambda w: c * w, wave_params)))(1.0)
    found["ends"] = extreme_eigenvalues(conv, conv_params, tolerance=1e-8)[:2]
    run = fb.optim.minimize(stack, wave_params, steps=4, acceleration=False)
    return found | {"minimize": (run.params, run.costs)}


def many(mesh, out):
    """Compute one of each kind, and run, by name."""
    found = {}
    dense, dense_params = problems(mesh)["dense"]
    stack, wave_params = problems(mesh)["stack"]
    chunks, _ = problems(mesh)["chunks"]
    conv, conv_params = problems(mesh)["conv"]
    found["stack residuals"] = stack.residuals(wave_params)
    found["jacobian"] = fb.tangent.jacobian(conv, conv_params)
    rhs = np.random.default_rng(1).normal(size=(16, 2))
    found["solve cg"] = fb.tangent.minimum_norm(dense, dense_params, rhs, 1e-3, "cg")[0]
    report = fb.tangent.rank(stack, wave_params)
    found["rank"] = (report.singular_values, report.leverage)
    found["adapted"] = fb.AdaptedFlow(damping=1e-2)(conv, conv_params)
    found["hvp"] = fb.curvature.hvp(chunks, wave_params, wave_params)
    runs = {"integrate": fb.integrate(dense, fb.GradientFlow(), dense_params, 2.0, times=[1.0, 2.0], method="tsit5")}
    call = {"step_size": 0.1, "steps": 20, "options": fb.Options(chunk_seconds=0.01), "observe": {"sum": Sum()}}
    reports = []
    runs["descend"] = fb.descend(chunks, fb.GradientFlow(), wave_params, progress=reports.append, **call)
    assert bool(reports) == (jax.process_index() == 0)
    half = out.with_suffix(".half")
    cut_short(chunks, wave_params, half, call)
    runs["same devices"], told = resumed(chunks, wave_params, half, out.with_suffix(".copy"), call)
    assert not told
    runs["other devices"], told = resumed(chunks, wave_params, out.with_name("one.half"), out.with_suffix(".on"), call)
    assert told == (mesh is not None)
    for name, run in runs.items():
        found[name] = (run.params, run.costs, *run.observed.values())
        assert "cost" in run.to_xarray()
    return found


def cut_short(problem, params, directory, call):
    """Write the checkpoint of a run that is not over; processes share no directory."""
    directory = of_process(directory)
    short = call | {"options": fb.Options(max_steps=9), "checkpoint": fb.Checkpoint(directory, every=0.0)}
    assert fb.descend(problem, fb.GradientFlow(), params, **short).result.code == "max_steps"
    assert directory.exists() == (jax.process_index() == 0)


def resumed(problem, params, half, copy, call):
    """Go on from a checkpoint, of these devices or of others; tell whether there was a warning of that."""
    if jax.process_index() == 0:
        shutil.copytree(half, copy)
    with warnings.catch_warnings(record=True) as caught:
        run = fb.descend(problem, fb.GradientFlow(), params, checkpoint=of_process(copy), **call)
    assert run.stats["resumed_at"] > 0
    return run, any(issubclass(warning.category, VersionWarning) for warning in caught)


def of_process(path):
    return path if jax.process_index() == 0 else path.with_name(f"process1-{path.name}")


def own_rows(mesh):
    """Build a problem of rows that each process holds some of."""
    problem, params = problems(None)["dense"]
    n = 16 // jax.process_count()
    rows = slice(jax.process_index() * n, (jax.process_index() + 1) * n)

    def global_array(host):
        return jax.make_array_from_process_local_data(NamedSharding(mesh, P("samples")), host[rows])

    inputs, targets = np.array(problem.inputs), np.asarray(problem.targets)
    shared = fb.Problem(problem.apply, global_array(inputs), global_array(targets), mesh=mesh)
    facts = {"own rows": float(shared.cost(params)) / float(problem.cost(params)) - 1}
    inputs[13, 2] = np.nan  # which one process holds
    try:
        fb.Problem(problem.apply, global_array(inputs), global_array(targets), mesh=mesh)
    except NonFiniteDataError as error:
        return facts | {"not finite": str(error)}
    return facts


def lying(mesh):
    """Tell how arrays lie, and what compiled programs send between devices."""
    facts = {"processes": jax.process_count(), "devices": mesh.size, **own_rows(mesh)}
    for name, (problem, params) in problems(mesh).items():
        if name in ("dense", "chunks"):
            matrix = fb.tangent.gram(problem, params)
            arrays = {"inputs": problem._inputs, "outputs": problem.outputs(params), "gram": matrix}
            arrays |= {"gradient": jax.tree.leaves(problem.gradient(params))[0]}
            facts[name] = {key: [list(a.shape), list(a.addressable_shards[0].data.shape)] for key, a in arrays.items()}
            program = eqx.filter_jit(lambda p, w: p.cost_and_gradient(w)).lower(problem, params).compile()
            text = program.compiled.as_text()
            facts[name] |= {op: text.count(f" {op}(") for op in ("all-reduce", "all-gather", "all-to-all")}
            entry = re.search(r"^ENTRY.*?^}", text, re.MULTILINE | re.DOTALL).group()
            facts[name]["all-reduce in loops"] = facts[name]["all-reduce"] - entry.count(" all-reduce(")
    if mesh.size == 1 or mesh.size > jax.local_device_count():
        return facts
    grid = jax.make_mesh((2, mesh.size // 2), ("hosts", "chips"), axis_types=(AxisType.Auto,) * 2)
    facts["by both axes"] = problems(grid)["dense"][0].inputs.sharding.spec == P(("hosts", "chips"))
    problem, params = problems(mesh)["dense"]
    everywhere = _sharding.everywhere(params, mesh)
    facts["committed"] = float(problem.cost(everywhere) - problem.cost(params))
    try:
        problem.check(jax.device_put(params, jax.devices()[1]))
    except ParameterError as error:
        facts["elsewhere"] = str(error)
    return facts


def main(out, devices=None, which="all"):
    jax.config.update("jax_enable_x64", True)
    out = Path(out)
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        from fibration.study._distributed import initialize_distributed

        initialize_distributed()
    mesh = None
    if devices is not None:
        chosen = jax.devices()[: int(devices)]
        mesh = jax.make_mesh((len(chosen),), ("samples",), axis_types=(AxisType.Auto,), devices=chosen)
    found = few(mesh)
    found |= many(mesh, out) if which in ("all", "many") else {}
    found |= solved(mesh) if which == "all" else {}
    found = jax.tree.map(_sharding.on_host, found)
    flat = {name: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for name, tree in found.items()}
    facts = {} if mesh is None else lying(mesh)
    np.savez(of_process(out.with_suffix(".npz")), **flat)
    of_process(out.with_suffix(".json")).write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
