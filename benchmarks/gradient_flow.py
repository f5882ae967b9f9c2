"""Gradient flow on digits: `fb.integrate` beside the solvers that people use today.

A 64-32-10 tanh network on 200 centred digits, squared error, float64, from t = 0 to 1000, 11 saved times. Every
contender runs in a process of its own, one after the other, `--rounds` times over: peak memory is its own, and a slow
minute of the machine hits all of them. Reported are gradient evaluations, counted
where the gradient is called; seconds of a warm run (median) and of the first one, compilation included; peak resident
memory over that of the bare gradient; and the error against scipy's DOP853 at rtol 1e-11, relative to the distance
travelled.

    python benchmarks/gradient_flow.py [--rounds 3] [--t1 1000] [--out benchmarks/results/gradient_flow.json]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import diffrax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.integrate
from jax.experimental.ode import odeint
from jax.flatten_util import ravel_pytree

import fibration as fb

RTOLS = (1e-3, 1e-6, 1e-9)


def setup():
    inputs, targets = fb.datasets.digits(samples=200, one_hot=True)
    apply, params = fb.networks.mlp((64, 32, 10), "tanh", key=jax.random.key(0))
    return fb.Problem(apply, inputs - inputs.mean(axis=0), targets), params


def flat_field(problem, params):
    flat, unravel = ravel_pytree(params)
    return (lambda y: -ravel_pytree(problem.gradient(unravel(y)))[0]), flat


def fibration(rtol, times):
    problem, params = setup()

    def run():
        t = fb.integrate(problem, fb.GradientFlow(), params, float(times[-1]), rtol=rtol, atol=rtol / 100, times=times)
        leaves = [leaf.reshape(len(times), -1) for leaf in jax.tree.leaves(t.params)]
        return np.concatenate(leaves, axis=1), t.stats["gradient_evaluations"]

    return run


def diffrax_by_hand(solver, extra_stages):
    def make(rtol, times):
        problem, params = setup()
        field, flat = flat_field(problem, params)
        term = diffrax.ODETerm(lambda t, y, args: field(y))
        controller = diffrax.PIDController(rtol=rtol, atol=rtol / 100)

        def run():
            s = diffrax.diffeqsolve(
                term,
                solver,
                0.0,
                float(times[-1]),
                None,
                flat,
                saveat=diffrax.SaveAt(ts=jnp.asarray(times)),
                stepsize_controller=controller,
                max_steps=None,
                adjoint=diffrax.ForwardMode(),
            )
            # Stages per step less the one saved by first-same-as-last, and three to start: its statistics count steps.
            return np.asarray(s.ys), int(s.stats["num_steps"]) * extra_stages + 3

        return run

    return make


def scipy_solver(method):
    def make(rtol, times):
        problem, params = setup()
        field, flat = flat_field(problem, params)
        compiled = jax.jit(field)

        def run():
            s = scipy.integrate.solve_ivp(
                lambda t, y: np.asarray(compiled(y)), (0, times[-1]), flat, method, times, rtol=rtol, atol=rtol / 100
            )
            return s.y.T, s.nfev

        return run

    return make


def jax_odeint(rtol, times):
    problem, params = setup()
    field, flat = flat_field(problem, params)
    solve = jax.jit(lambda y: odeint(lambda y, t: field(y), y, jnp.asarray(times), rtol=rtol, atol=rtol / 100))

    def run():
        return np.asarray(solve(flat)), None  # it counts nothing, and its steps cannot be seen

    return run


def euler_script(step_size):
    """What people write: gradient descent with a small step, as a stand-in for the flow."""

    def make(rtol, times):
        problem, params = setup()
        per_save = int(np.ceil((times[1] - times[0]) / step_size))
        step = (times[1] - times[0]) / per_save
        optimiser = optax.sgd(step)

        @jax.jit
        def advance(p, state):
            def body(_, carry):
                p, state = carry
                updates, state = optimiser.update(problem.gradient(p), state)
                return optax.apply_updates(p, updates), state

            return jax.lax.fori_loop(0, per_save, body, (p, state))

        def run():
            p, state, saved = params, optimiser.init(params), [ravel_pytree(params)[0]]
            for _ in times[1:]:
                p, state = advance(p, state)
                saved.append(ravel_pytree(p)[0])
            return np.asarray(saved), per_save * (len(times) - 1)

        return run

    return make


CONTENDERS = {
    "fibration": (fibration, RTOLS),
    "diffrax Tsit5": (diffrax_by_hand(diffrax.Tsit5(), 6), RTOLS),
    "diffrax Dopri8": (diffrax_by_hand(diffrax.Dopri8(), 13), RTOLS),
    "scipy DOP853": (scipy_solver("DOP853"), RTOLS),
    "scipy RK45": (scipy_solver("RK45"), (1e-3, 1e-6)),
    "jax odeint": (jax_odeint, (1e-3, 1e-6)),
    "Euler, step 0.1": (euler_script(0.1), (None,)),
    "Euler, step 0.01": (euler_script(0.01), (None,)),
}


def one(name, rtol, t1, reference):
    """Run one contender in this process; print its row."""
    problem, params = setup()
    times = np.linspace(0, t1, 11)
    jax.block_until_ready(problem.gradient(params))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = CONTENDERS[name][0](rtol, times)
    began = time.perf_counter()
    states, evaluations = run()
    first = time.perf_counter() - began
    began = time.perf_counter()
    states, evaluations = run()
    warm = time.perf_counter() - began
    expected = np.load(reference)
    error = np.max(np.linalg.norm(states - expected, axis=1)) / np.linalg.norm(expected[-1] - expected[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    row = {"gradients": evaluations, "seconds": warm, "first_seconds": first, "megabytes": peak / 1024, "error": error}
    print(json.dumps(row))


def machine():
    with Path("/proc/cpuinfo").open() as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = {"cpu": model, "memory GiB": round(pages / 2**30, 1), "scipy": scipy.__version__}
    return fb.study.machine_facts() | memory | {"date": time.strftime("%Y-%m-%d")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--t1", type=float, default=1000.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gradient_flow.json")
    parser.add_argument("--one", nargs=3, metavar=("NAME", "RTOL", "REFERENCE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, rtol, reference = arguments.one
        one(name, None if rtol == "None" else float(rtol), arguments.t1, reference)
        return
    problem, params = setup()
    field, flat = flat_field(problem, params)
    compiled = jax.jit(field)
    times = np.linspace(0, arguments.t1, 11)
    exact = scipy.integrate.solve_ivp(
        lambda t, y: np.asarray(compiled(y)), (0, arguments.t1), flat, "DOP853", times, rtol=1e-11, atol=1e-13
    ).y.T
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        reference = str(Path(folder) / "reference.npy")
        np.save(reference, exact)
        for _ in range(arguments.rounds):
            for name, (_, rtols) in CONTENDERS.items():
                for rtol in rtols:
                    command = [sys.executable, __file__, "--t1", str(arguments.t1), "--one", name, str(rtol), reference]
                    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                    rows.setdefault((name, rtol), []).append(json.loads(answer))
    table = [
        {"solver": name, "rtol": rtol}
        | {key: statistics.median(r[key] for r in runs) if runs[0][key] is not None else None for key in runs[0]}
        for (name, rtol), runs in rows.items()
    ]
    travelled = float(np.linalg.norm(exact[-1] - exact[0]))
    facts = {"t1": arguments.t1, "parameters": int(flat.size), "samples": 200, "rounds": arguments.rounds}
    result = {"problem": facts | {"distance travelled": travelled}, "machine": machine(), "rows": table}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print("| solver | rtol | gradients | seconds | first run | MB | relative error |\n|---|---|---|---|---|---|---|")
    for row in table:
        count = "not counted" if row["gradients"] is None else f"{row['gradients']:,.0f}"
        rtol = "" if row["rtol"] is None else f"{row['rtol']:.0e}"
        print(
            f"| {row['solver']} | {rtol} | {count} | {row['seconds']:.2f} | {row['first_seconds']:.2f} "
            f"| {row['megabytes']:.0f} | {row['error']:.1e} |"
        )


if __name__ == "__main__":
    main()
