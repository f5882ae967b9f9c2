"""Balancing networks by rescaling: Newton's method on the Laplacian, beside sweeps and passes through the network.

    python benchmarks/rescaling.py [--out benchmarks/results/rescaling.json]

Two multilayer perceptrons of a million parameters and a residual network of 50 convolutions, the scales of whose units
were multiplied by e^{1.5 N(0, 1)}: seconds of finding the rescaling, of all of `network`, of one Newton iteration and
one sweep, beside one forward pass over 1,000 samples; iterations until every unit is balanced to rounding, sweeps until
1e-12.
"""

import argparse
import json
import time
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np

import fibration as fb
import runner
from fibration.balance._rescaling._newton import cyclic, edges, layers, newton, sweep

B = fb.balance


def timed(function, repeats=7):
    """The median of the seconds of a call, and its result."""
    result, seconds = function(), []
    for _ in range(repeats):
        began = time.perf_counter()
        result = jax.block_until_ready(function())
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds)), result


def residual_network(key, depth=24, channels=32, size=16):
    """A stem, `depth` blocks of two 3 × 3 convolutions, and a head: one scale per channel of the stream."""
    keys = iter(jax.random.split(key, 2 * depth + 2))

    def filters(n_in, n_out):
        return jax.random.normal(next(keys), (3, 3, n_in, n_out)) * np.sqrt(2 / (9 * n_in))

    params = {
        "stem": filters(3, channels),
        "blocks": [(filters(channels, channels), 0.2 * filters(channels, channels)) for _ in range(depth)],
        "head": jax.random.normal(next(keys), (10, channels)) / np.sqrt(channels),
    }

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def apply(params, x):
        x = convolve(x[None], params["stem"])
        for up, down in params["blocks"]:
            x = x + convolve(jax.nn.relu(convolve(x, up)), down)
        return params["head"] @ jnp.mean(jax.nn.relu(x[0]), (0, 1))

    return apply, params, jnp.zeros((size, size, 3))


def mlp(sizes):
    apply, params = fb.networks.mlp(sizes, "relu", key=jax.random.key(0))
    return apply, params, jnp.zeros(sizes[0])


def measure(name, apply, params, x):
    rng = np.random.default_rng(0)
    action = B.rescaling(apply, params, x)
    params = action.exponential(jnp.asarray(1.5 * rng.normal(size=action.n_units)), params)
    found = edges(action, [np.asarray(w) for w in jax.tree.leaves(params)])
    batch = jnp.asarray(rng.normal(size=(1000, *x.shape)))
    forward = jax.jit(jax.vmap(apply, (None, 0)))
    passes, _ = timed(lambda: forward(params, batch), 15 if x.ndim == 1 else 2)
    tracing, _ = timed(lambda: B.rescaling(apply, params, x), 3)
    whole, (_, report) = timed(lambda: B.network((apply, params), x), 3)
    full, done = timed(lambda: newton(found, action.groups, 1e-14, 100))
    none, _ = timed(lambda: newton(found, action.groups, 1e-14, 0))
    parts = layers(found, action.groups)
    once, _ = timed(lambda: sweep(parts, np.zeros(found.n_units + 1)))
    swept = cyclic(found, action.groups, 1e-12, 5000)
    row = {
        "name": name,
        "parameters": fb.trees.size(params),
        "units": action.n_units,
        "forward": passes,
        "rescaling": tracing,
        "network": whole,
        "iterations": done.iterations,
        "iteration": (full - none) / max(done.iterations, 1),
        "imbalance": done.imbalance,
        "sweep": once,
        "sweeps": swept.iterations,
        "swept": swept.imbalance,
        "change": report.change,
        "regularizer": report.regularizer,
    }
    row["ratio"] = row["iteration"] / passes
    print(row)
    return row


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rescaling.json")
    out = parser.parse_args().out
    rows = [
        measure("MLP 784-512-512-512-10", *mlp((784, 512, 512, 512, 10))),
        measure("MLP 784-1024-256-10", *mlp((784, 1024, 256, 10))),
        measure("residual, 50 convolutions", *residual_network(jax.random.key(0))),
    ]
    out.write_text(json.dumps({"machine": runner.machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
