"""Physics-informed networks: Poisson's equation in 2 and 5 dimensions, `fb.optim.minimize` beside Adam and L-BFGS.

−Δu = f on the unit cube, u given on its boundary; float64. The cost is ½ mean (Δu + f)² + ½ w mean (u − g)² over fixed
points, w the weight of the boundary, for all contenders alike. The error is |u − u*|/|u*| in L2, by Monte Carlo on
points of its own in 5-d, and on a grid of 101 × 101 points in 2-d.

- poisson-2d: u* = sin πx sin πy; 2-64-1 tanh, 257 parameters; 30 × 30 midpoints, and 30 midpoints of each side; w = 10.
- poisson-5d: u* = Σ cos πxᵢ; 5-64-64-48-48-1 tanh, 10 065 parameters; 3 000 and 500 uniform random points; w = 100. The
  problem, the network and the numbers of points are those of Dangel, Müller and Zeinhofer, arXiv 2405.15603.

Each contender runs in a process of its own, ours from FIBRATION_SEEDS (3) initial parameters. Times leave compilation
out, which is reported by itself. Errors are computed afterwards. Rivals get 30 seconds in 2-d and 60 in 5-d;
Adam's learning rate is the best of three, each with a cosine schedule that ends with its time.

    python benchmarks/adapted_pinn.py [--parts poisson-2d poisson-5d]
"""

import json
import os
from pathlib import Path

# Threads of LAPACK that wait for one another cost more than they bring for matrices of this size on shared cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np
import optax

import fibration as fb
from curves import descend_for, timed_minimize
from runner import in_processes, run

RESULTS = Path(__file__).parent / "results" / "adapted_pinn.json"
SEEDS = int(os.environ.get("FIBRATION_SEEDS", "3"))
# Only to try the script: a part of the points, of the steps and of the seconds.
SHRINK = float(os.environ.get("FIBRATION_SHRINK", "1"))
TARGETS = {"poisson-2d": (1e-4, 1e-5, 1e-6, 1e-7, 3e-8), "poisson-5d": (1e-2, 1e-3, 3e-4, 1e-4)}


def laplacian(u, x):
    """Sum the second derivatives of u at x along the axes."""

    def second(v):
        return jax.jvp(lambda y: jax.jvp(u, (y,), (v,))[1], (x,), (v,))[1]

    return jnp.sum(jax.vmap(second)(jnp.eye(x.size)))


def network(widths, key):
    """Tanh layers: weights of Glorot's variance, biases uniform in [−1, 1], so that the units spread over the cube."""
    keys = jax.random.split(key, (len(widths) - 1, 2))
    params = [
        (
            jax.random.normal(k[0], (n_out, n_in)) * np.sqrt(2 / (n_in + n_out)),
            jax.random.uniform(k[1], (n_out,), minval=-1, maxval=1) if n_out > 1 else jnp.zeros(1),
        )
        for k, n_in, n_out in zip(keys, widths[:-1], widths[1:], strict=True)
    ]

    def apply(params, x):
        for weight, bias in params[:-1]:
            x = jnp.tanh(weight @ x + bias)
        weight, bias = params[-1]
        return (weight @ x + bias)[0]

    return apply, params


def poisson(apply, solution, source, interior, boundary, weight):
    """The interior and the boundary as one least-squares problem."""
    inside = fb.Problem(
        lambda p, x: laplacian(lambda y: apply(p, y), x), interior, -jax.vmap(source)(interior)[:, None]
    )
    edge = fb.Problem(apply, boundary, jax.vmap(solution)(boundary)[:, None], weights=weight * np.ones(len(boundary)))
    return fb.stack([inside, edge])


def poisson_2d(seed):
    """Build the problem, the initial parameters and the error."""
    n = max(4, int(30 * SHRINK))
    middle = (np.arange(n) + 0.5) / n
    interior = np.stack(np.meshgrid(middle, middle), -1).reshape(-1, 2)
    zero, one = np.zeros(n), np.ones(n)
    sides = [(middle, zero), (middle, one), (zero, middle), (one, middle)]
    boundary = np.concatenate([np.stack(side, -1) for side in sides])

    def solution(x):
        return jnp.prod(jnp.sin(jnp.pi * x))

    apply, params = network((2, 64, 1), jax.random.key(seed))
    problem = poisson(apply, solution, lambda x: 2 * jnp.pi**2 * solution(x), interior, boundary, 10.0)
    line = np.linspace(0, 1, 101)
    return problem, params, error_on(apply, solution, np.stack(np.meshgrid(line, line), -1).reshape(-1, 2))


def poisson_5d(seed):
    """Build the problem, the initial parameters and the error."""
    rng = np.random.default_rng(seed)
    n, m = max(8, int(3000 * SHRINK)), max(4, int(500 * SHRINK))
    boundary = rng.uniform(size=(m, 5))
    boundary[np.arange(m), rng.integers(5, size=m)] = rng.integers(2, size=m)

    def solution(x):
        return jnp.sum(jnp.cos(jnp.pi * x))

    apply, params = network((5, 64, 64, 48, 48, 1), jax.random.key(seed))
    interior = rng.uniform(size=(n, 5))
    problem = poisson(apply, solution, lambda x: jnp.pi**2 * solution(x), interior, boundary, 100.0)
    return problem, params, error_on(apply, solution, np.random.default_rng(99).uniform(size=(20_000, 5)))


def error_on(apply, solution, points):
    """Make the relative L2 error of parameters on test points."""
    exact = jax.vmap(solution)(points)

    @jax.jit
    def error(params):
        values = jax.vmap(lambda x: apply(params, x))(points)
        return jnp.linalg.norm(values - exact) / jnp.linalg.norm(exact)

    return error


BUILD = {"poisson-2d": poisson_2d, "poisson-5d": poisson_5d}
STEPS = {"poisson-2d": 1500, "poisson-5d": 200}
SECONDS = {"poisson-2d": 45.0, "poisson-5d": 600.0}  # of ours, at most
RIVALS = {"poisson-2d": 30.0, "poisson-5d": 60.0}
RATES = (1e-2, 3e-3, 1e-3)


def one(name):
    """Run one contender in this process; print its row: curves of error and cost against seconds."""
    part, contender, seed = name.split("|")
    problem, params, error = BUILD[part](int(seed))
    seconds = (SECONDS if contender == "fibration" else RIVALS)[part] * SHRINK
    if contender == "fibration":
        row = timed_minimize(problem, params, error, steps=max(2, int(STEPS[part] * SHRINK)), seconds=seconds)
    elif contender == "optax L-BFGS":
        row = descend_for(optax.lbfgs(), problem, params, error, seconds)
    else:
        rate = float(contender.split()[1])
        row = descend_for(lambda n: optax.adam(optax.cosine_decay_schedule(rate, n)), problem, params, error, seconds)
    times, errors = np.array(row["seconds"]), np.array(row["errors"])
    row["to"] = {f"{t:g}": float(times[np.argmax(errors < t)]) if (errors < t).any() else None for t in TARGETS[part]}
    print(json.dumps({"name": contender, "seed": int(seed), "parameters": problem.n_parameters(params)} | row))


def part(name):
    """Run all contenders of one equation."""

    def rows():
        contenders = ["fibration", "optax L-BFGS", *(f"Adam {rate:g}" for rate in RATES)]
        seeds = {"fibration": range(SEEDS)}
        return in_processes(__file__, [f"{name}|{c}|{s}" for c in contenders for s in seeds.get(c, range(1))])

    return rows


if __name__ == "__main__":
    run(__doc__, {name: part(name) for name in BUILD}, one, RESULTS)
