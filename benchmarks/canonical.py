"""Canonical space: the disparity matrix beside its two parts, and coordinates in six dimensions beside Monte Carlo.

- disparity: M = 101 000 parameters (2-315-315-1 tanh), K = 256 modes, 4 096 nodes (64 × 64 Gauss–Legendre), float64.
  Beside it the 4 096 per-sample gradients alone, in the same chunks, and the product of an M × 4 096 with a 4 096 × 256
  matrix alone. Memory: the peak of the resident set above what was resident before.
- lattice: 880 modes of a sum of cosines in six dimensions, whose coefficients are known; the root mean square error of
  the tent-transformed lattice and of Monte Carlo with as many nodes.

    python benchmarks/canonical.py
"""

import gc
import json
import time
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np

import fibration as fb
from runner import in_processes, run

RESULTS = Path(__file__).parent / "results" / "canonical.json"
CHUNK = 128


def resident(name):
    """Read a number of bytes from the kernel: VmRSS, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def fastest(function, repeats=3):
    """Time calls of a compiled function; return the least, and the last result."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        found = jax.block_until_ready(function())
        times.append(time.perf_counter() - began)
    return min(times), found


def product_alone(m, g, k):
    """Time the product of an M × G with a G × K matrix."""
    left, right = jax.random.normal(jax.random.key(1), (m, g)), jax.random.normal(jax.random.key(2), (g, k))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(left, right))
    return fastest(lambda: product(left, right))[0]


def disparity():
    """Time H and its parts."""
    apply, params = fb.networks.mlp((2, 315, 315, 1), "tanh", key=jax.random.key(0))
    basis = fb.canonical.Basis([(-1, 1)] * 2, 15)
    rule = fb.canonical.quadrature(basis, nodes=64)
    vector, unravel = jax.flatten_util.ravel_pytree(params)
    samples, m, k = jnp.asarray(rule.samples), vector.size, basis.size

    @jax.jit
    def gradients(vector):
        rows = jax.vmap(jax.grad(lambda w, x: apply(unravel(w), x)[0]), (None, 0))
        chunks = samples.reshape(-1, CHUNK, 2)
        # Every entry is used, so that all are computed.
        return jax.lax.scan(lambda total, x: (total + rows(vector, x).sum(axis=0), None), jnp.zeros(m), chunks)[0]

    jax.block_until_ready(gradients(vector))
    one, _ = fastest(lambda: gradients(vector))
    two = product_alone(m, rule.size, k)
    found = fb.canonical.disparity(apply, params, basis, rule=rule)
    del found
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    whole, found = fastest(lambda: fb.canonical.disparity(apply, params, basis, rule=rule), repeats=2)
    return {
        "name": "disparity",
        "parameters": m,
        "modes": k,
        "nodes": rule.size,
        "gradients, seconds": one,
        "product, seconds": two,
        "disparity, seconds": whole,
        "ratio": whole / (one + two),
        "peak MB": (resident("VmHWM") - before) / 1e6,
        "H MB": found.nbytes / 1e6,
    }


def lattice():
    """Measure errors and times in six dimensions."""
    rng = np.random.default_rng(0)
    basis = fb.canonical.Basis([(0, 1)] * 6, 4, index_set="hc")
    params = {"weight": jnp.asarray(rng.normal(size=(8, 6))), "bias": jnp.asarray(rng.uniform(0, 2 * np.pi, size=8))}

    def apply(p, x):
        return jnp.sum(jnp.cos(p["weight"] @ x + p["bias"]))

    k, omega = np.arange(5), np.asarray(params["weight"])[..., None]
    plus, minus = ((np.exp(1j * (omega + s * np.pi * k)) - 1) / (1j * (omega + s * np.pi * k)) for s in (1, -1))
    table = (plus + minus) / 2 * np.where(k == 0, 1, np.sqrt(2))
    product = np.prod([table[:, axis, basis.indices[:, axis]] for axis in range(6)], axis=0)
    exact = (np.exp(1j * np.asarray(params["bias"]))[:, None] * product).real.sum(axis=0)

    began = time.perf_counter()
    rule = fb.canonical.quadrature(basis, nodes=524_288)
    searched = time.perf_counter() - began
    seconds, theta = fastest(lambda: fb.canonical.coordinates(apply, params, basis, rule=rule))
    points = jnp.asarray(rng.uniform(size=(rule.size, 6)))

    @jax.jit
    def monte_carlo(points):
        chunks = points[: 2048 * (len(points) // 2048)].reshape(-1, 2048, 6)
        step = lambda total, x: (total + basis.evaluate_unit(x).T @ jax.vmap(lambda y: apply(params, y))(x), None)  # noqa: E731
        return jax.lax.scan(step, jnp.zeros(basis.size), chunks)[0] / (len(chunks) * 2048)

    jax.block_until_ready(monte_carlo(points))
    carlo_seconds, carlo = fastest(lambda: monte_carlo(points), repeats=1)

    def rms(found):
        return float(np.sqrt(np.mean((np.asarray(found).reshape(-1) - exact) ** 2)))

    return {
        "name": "lattice",
        "modes": basis.size,
        "nodes": rule.size,
        "rms coefficient": float(np.sqrt(np.mean(exact**2))),
        "lattice error": rms(theta),
        "lattice seconds": seconds,
        "search seconds": searched,
        "Monte Carlo error": rms(carlo),
        "Monte Carlo seconds": carlo_seconds,
    }


def one(name):
    """Run one part in this process; print its row."""
    print(json.dumps({"disparity": disparity, "lattice": lattice}[name]()))


if __name__ == "__main__":
    parts = {name: (lambda name=name: in_processes(__file__, [name])) for name in ("disparity", "lattice")}
    run(__doc__, parts, one, RESULTS)
