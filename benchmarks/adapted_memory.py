"""Memory of one adapted step on a network of 10 million parameters, N·Q = 2 000.

64-2 230-2 230-2 230-10 tanh, float64, N = 200. The step is compiled first; then the peak of the resident set is reset,
and read after the step, above what was resident before it (parameters, data, JAX). XLA's own count of temporaries
stands beside it. The bound asked for is 4× the parameters plus the Gram matrix. Each in a process of its own.

    python benchmarks/adapted_memory.py
"""

import gc
import json
import os
import time
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp

import fibration as fb
from runner import in_processes, run

RESULTS = Path(__file__).parent / "results" / "adapted_memory.json"
WIDTH = int(os.environ.get("FIBRATION_WIDTH", "2230"))
OPTIONS = {
    "adapted": {},
    "adapted, acceleration": {"acceleration": True},
    "adapted, adaptive": {"adaptive": True},
    "adapted, adaptive, acceleration": {"adaptive": True, "acceleration": True},
}


def resident(name):
    """Read a number of bytes from the kernel: VmRSS, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def one(name):
    """Take one step in this process; print its row."""
    apply, params = fb.networks.mlp((64, WIDTH, WIDTH, WIDTH, 10), "tanh", key=jax.random.key(0))
    inputs, targets = jax.random.normal(jax.random.key(1), (200, 64)), jax.random.normal(jax.random.key(2), (200, 10))
    optimiser = fb.optim.adapted(**OPTIONS[name])
    state = optimiser.init(params)

    def step(inputs, targets, state, params):
        updates, state = optimiser.update(fb.Problem(apply, inputs, targets), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    compiled = jax.jit(step, donate_argnums=(3,)).lower(inputs, targets, state, params).compile()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    gram = (200 * 10) ** 2 * 8
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, began = resident("VmRSS"), time.perf_counter()
    params, state = jax.block_until_ready(compiled(inputs, targets, state, params))
    seconds = time.perf_counter() - began
    peak = resident("VmHWM") - before
    analysis = compiled.memory_analysis()
    row = {
        "name": name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "parameters MB": size / 1e6,
        "gram MB": gram / 1e6,
        "peak MB": peak / 1e6,
        "peak less the Gram matrix, in parameters": (peak - gram) / size,
        "XLA temporaries MB": analysis.temp_size_in_bytes / 1e6,
        "seconds": seconds,
    }
    print(json.dumps(row))


if __name__ == "__main__":
    run(__doc__, {"memory": lambda: in_processes(__file__, OPTIONS)}, one, RESULTS)
