"""Function fitting: `fb.optim.minimize` beside Adam, L-BFGS and Levenberg–Marquardt, cost against wall time.

N = 512 points uniform on [−1, 1]², target sin 4x cos 3y + 0.3 sin 7xy, 2-128-128-1 tanh (17 025 parameters), float64;
C = ½ mean (x − y)². Each contender runs in a process of its own. Times leave compilation out, which is reported by
itself. Adam's learning rate is the best of three, each with a cosine schedule that ends with its time; optimistix's
Levenberg–Marquardt runs with its default solver, a dense QR factorisation, which asks for tens of gigabytes here and is
given eight, and with conjugate gradients on the normal equations.

    python benchmarks/adapted_fitting.py [--parts fitting]
"""

import json
import os
import resource
import time
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import equinox as eqx
import jax.numpy as jnp
import lineax
import numpy as np
import optax
import optimistix

import fibration as fb
from curves import descend_for, timed_minimize
from runner import in_processes, run

RESULTS = Path(__file__).parent / "results" / "adapted_fitting.json"
SHRINK = float(os.environ.get("FIBRATION_SHRINK", "1"))
SECONDS = {"ours": 40.0 * SHRINK, "others": 60.0 * SHRINK}
TARGETS = (1e-4, 1e-6, 1e-8, 1e-10, 1e-12, 1e-14)
RATES = (1e-2, 3e-3, 1e-3)


def fitting():
    """Build the problem, and the initial parameters."""
    apply, params = fb.networks.mlp((2, 128, 128, 1), "tanh", key=jax.random.key(0))
    points = jax.random.uniform(jax.random.key(1), (512, 2), minval=-1, maxval=1)
    x, y = points.T
    values = jnp.sin(4 * x) * jnp.cos(3 * y) + 0.3 * jnp.sin(7 * x * y)
    return fb.Problem(apply, points, values[:, None]), params


def levenberg_marquardt(solver, problem, params, seconds):
    """Step optimistix's solver by hand, as its documentation shows, so that every step's time is known."""
    residuals, dynamic = eqx.filter_closure_convert(lambda y, _: (problem.residuals(y), None), params, None), None
    shapes = jax.eval_shape(lambda y: residuals(y, None), params)
    state = solver.init(residuals, params, None, {}, *shapes, frozenset())
    dynamic, static = eqx.partition(state, eqx.is_array)

    @jax.jit
    def step(y, dynamic):
        y, state, _ = solver.step(residuals, y, None, {}, eqx.combine(dynamic, static), frozenset())
        return y, eqx.filter(state, eqx.is_array)

    began = time.perf_counter()
    compiled_step = step.lower(params, dynamic).compile()
    compiled = time.perf_counter() - began
    y, spent, curve = params, 0.0, [(0.0, float(problem.cost(params)))]
    while spent < seconds and len(curve) < 3000:
        began = time.perf_counter()
        y, dynamic = jax.block_until_ready(compiled_step(y, dynamic))
        spent += time.perf_counter() - began
        curve.append((spent, float(problem.cost(y))))
    times, costs = np.array(curve).T.tolist()
    return {"seconds": times, "costs": costs, "steps": len(curve) - 1, "compile_seconds": compiled}


def one(name):
    """Run one contender in this process; print its row."""
    problem, params = fitting()

    def cost(params):
        return problem.cost(params)

    seconds = SECONDS["others"]
    if name.startswith("fibration"):
        acceleration = "without" not in name
        steps, seconds = max(2, int(1500 * SHRINK)), SECONDS["ours"]
        row = timed_minimize(problem, params, cost, steps=steps, seconds=seconds, acceleration=acceleration)
    elif name == "optax L-BFGS":
        row = descend_for(optax.lbfgs(), problem, params, cost, seconds)
    elif name.startswith("Adam"):
        rate = float(name.split()[1])
        row = descend_for(lambda n: optax.adam(optax.cosine_decay_schedule(rate, n)), problem, params, cost, seconds)
    else:
        solver = optimistix.LevenbergMarquardt(rtol=1e-12, atol=1e-14)
        if "CG" in name:
            linear = lineax.Normal(lineax.CG(rtol=1e-6, atol=1e-12, max_steps=500))
            solver = optimistix.LevenbergMarquardt(rtol=1e-12, atol=1e-14, linear_solver=linear)
        else:
            resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
        try:
            row = levenberg_marquardt(solver, problem, params, seconds)
        except (MemoryError, RuntimeError) as error:  # JAX's own out-of-memory error is a RuntimeError
            print(json.dumps({"name": name, "failed": str(error).splitlines()[0][:200]}))
            return
    row.pop("errors", None)
    times, costs = np.array(row["seconds"]), np.array(row["costs"])
    row["to"] = {f"{t:g}": float(times[np.argmax(costs < t)]) if (costs < t).any() else None for t in TARGETS}
    print(json.dumps({"name": name, "final cost": float(costs[-1])} | row))


CONTENDERS = (
    "fibration",
    "fibration without acceleration",
    *(f"Adam {rate:g}" for rate in RATES),
    "optax L-BFGS",
    "optimistix LM, CG",
    "optimistix LM, dense QR",
)

if __name__ == "__main__":
    run(__doc__, {"fitting": lambda: in_processes(__file__, CONTENDERS)}, one, RESULTS)
