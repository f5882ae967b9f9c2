"""The Gram matrix of the differential beside `jacrev` and a matrix product, in one process each.

    python benchmarks/gram.py [--parts "conv net on digits, N = 200" …]     # writes benchmarks/results/gram.json

Seconds are the least of several calls, all compiled, float64, in turn in one process; the error is relative to the
largest entry. Memory is what XLA sets aside beside arguments and results.
"""

import json
import time

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np

import fibration as fb
import runner


def dense(sizes, samples):
    apply, params = fb.networks.mlp(sizes, "tanh", key=jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (samples, sizes[0]))
    return fb.Problem(apply, inputs, jnp.zeros((samples, sizes[-1]))), params


def convnet(samples=200):
    """A convolutional network on the 8×8 digits: 16 and 32 channels, stride 2, ten outputs."""
    inputs, targets = fb.datasets.digits(samples=samples, one_hot=True)
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"first": (16, 1, 3, 3), "second": (32, 16, 3, 3), "last": (10, 512)}
    params = {
        name: jax.random.normal(k, s) / np.sqrt(np.prod(s[1:]))
        for k, (name, s) in zip(keys, shapes.items(), strict=True)
    }
    params |= {"bias": jnp.zeros(16), "offset": jnp.zeros(32)}

    def apply(p, x):
        h = jax.lax.conv(x.reshape(1, 1, 8, 8), p["first"], (1, 1), "SAME")
        h = jnp.tanh(h + p["bias"][None, :, None, None])
        h = jnp.tanh(jax.lax.conv(h, p["second"], (2, 2), "SAME") + p["offset"][None, :, None, None])
        return p["last"] @ h.reshape(-1)

    return fb.Problem(apply, jnp.asarray(inputs), jnp.asarray(targets)), params


def laplacian(d, widths, samples):
    """The Laplacian of a network, as the residual of Poisson's equation has it, by forward differentiation."""
    network, params = fb.networks.mlp((d, *widths, 1), "tanh", key=jax.random.key(0))

    def apply(p, x):
        def second(axis):
            return jax.jvp(lambda y: jax.jvp(lambda z: network(p, z), (y,), (axis,))[1], (x,), (axis,))[1]

        return jnp.sum(jax.vmap(second)(jnp.eye(d)), axis=0)

    inputs = jax.random.uniform(jax.random.key(1), (samples, d))
    return fb.Problem(apply, inputs, jnp.zeros((samples, 1))), params


CASES = {
    "64-50-50-10, N = 300": lambda: dense((64, 50, 50, 10), 300),
    "64-256-256-10, N = 300": lambda: dense((64, 256, 256, 10), 300),
    "64-1024-1024-10, N = 50": lambda: dense((64, 1024, 1024, 10), 50),
    "64-1024-1024-10, N = 200": lambda: dense((64, 1024, 1024, 10), 200),
    "conv net on digits, N = 200": convnet,
    "Laplacian 2-d, 64": lambda: laplacian(2, (64,), 900),
    "Laplacian 2-d, 64-64": lambda: laplacian(2, (64, 64), 900),
    "Laplacian 5-d, 64-64-48-48": lambda: laplacian(5, (64, 64, 48, 48), 1000),
    "Laplacian 5-d, 256-256": lambda: laplacian(5, (256, 256), 500),
}


def fastest(function, params, reference, repeats):
    compiled = jax.jit(function).lower(params).compile()
    times = []
    while not times or (len(times) < repeats and sum(times) < 20):
        began = time.perf_counter()
        found = jax.block_until_ready(compiled(params))
        times.append(time.perf_counter() - began)
    error = None if reference is None else float(jnp.max(jnp.abs(found - reference)) / jnp.max(jnp.abs(reference)))
    memory = compiled.memory_analysis()
    return found, {"seconds": min(times), "error": error, "temporary_mb": memory.temp_size_in_bytes / 2**20}


def one(name):
    problem, params = CASES[name]()

    def naive(p):
        # Leaf by leaf, since with a copy the largest would not fit in 24 GB.
        parts = [part.reshape(problem.n_residuals, -1) for part in jax.tree.leaves(jax.jacrev(problem.outputs)(p))]
        return sum(part @ part.T for part in parts)

    def by(method):
        return lambda p: fb.tangent.gram(problem, p, method)

    reference, auto = fastest(by("auto"), params, None, 7)
    row = {"case": name, "outputs": problem.n_residuals, "parameters": problem.n_parameters(params)}
    row |= {"gram_mb": problem.n_residuals**2 * 8 / 2**20, "auto": auto}
    whole = row["outputs"] * row["parameters"] * 8
    for label, function in {"structured": by("structured"), "jacobian": by("jacobian"), "jacrev": naive}.items():
        if label == "jacobian" and whole > 6e9:
            continue  # D and its product take more than the machine has
        if label == "jacrev" and whole > 6e9:
            row[label] = {"failed": f"D alone takes {whole / 1e9:.0f} GB"}
            continue
        try:
            row[label] = fastest(function, params, reference, 5)[1]
        except jax.errors.JaxRuntimeError as failure:  # out of memory
            row[label] = {"failed": str(failure).splitlines()[0]}
            continue
        row[label]["ratio"] = row[label]["seconds"] / auto["seconds"]
    print(json.dumps(row))


if __name__ == "__main__":
    parts = {name: lambda name=name: runner.in_processes(__file__, [name]) for name in CASES}
    runner.run(__doc__, parts, one, "benchmarks/results/gram.json")
