"""Gradient flows: `fb.integrate` beside the solvers that people use today, in one run.

Every contender runs in a process of its own, one after the other, so that peak memory is its own. Reported are
gradients (a Hessian–vector product counts 2; the Jacobians of implicit methods are made by JAX and count K gradients
each), seconds of a warm run and of the first one, compilation included, peak memory over that of the bare gradient, and
the error at the end against scipy's DOP853 at rtol 1e-11, relative to the distance travelled. atol = rtol/100 for all.

    python benchmarks/gradient_flow.py [--problems A B C D quadratic] [--out benchmarks/results/gradient_flow.json]
"""

import argparse
import json
import os
import resource
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
import scipy
import scipy.integrate

import fibration as fb
from stiff_problems import FLOWS


def fibration(method):
    def make(flow, rtol):
        def run():
            t = fb.integrate(
                flow.problem,
                fb.GradientFlow(),
                flow.params,
                flow.t1,
                rtol=rtol,
                atol=rtol / 100,
                times=[flow.t1],
                method=method,
                options=fb.Options(save="last"),
            )
            end = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t.final_params)])
            return end, t.stats["gradient_evaluations"] + 2 * t.stats["hvp_evaluations"]

        return run

    return make


def diffrax_by_hand(solver, evaluations, max_steps=None):
    def make(flow, rtol):
        term = diffrax.ODETerm(lambda t, y, args: flow.field(y))
        controller = diffrax.PIDController(rtol=rtol, atol=rtol / 100)
        start = flow.flat

        def run():
            s = diffrax.diffeqsolve(
                term,
                solver,
                0.0,
                flow.t1,
                None,
                start,
                stepsize_controller=controller,
                max_steps=max_steps,
                adjoint=diffrax.ForwardMode(),
            )
            # Its statistics count steps: the stages of each, less the one saved by first-same-as-last, and 3 to start.
            return np.asarray(s.ys[-1]), int(s.stats["num_steps"]) * evaluations(start.size) + 3

        return run

    return make


def scipy_solver(method):
    def make(flow, rtol):
        field, jacobian = jax.jit(flow.field), jax.jit(jax.jacfwd(flow.field))
        implicit = {"jac": lambda t, y: np.asarray(jacobian(y))} if method in ("BDF", "Radau", "LSODA") else {}

        def run():
            s = scipy.integrate.solve_ivp(
                lambda t, y: np.asarray(field(y)),
                (0, flow.t1),
                np.asarray(flow.flat),
                method,
                [flow.t1],
                rtol=rtol,
                atol=rtol / 100,
                **implicit,
            )
            return s.y[:, -1], s.nfev + s.njev * flow.flat.size

        return run

    return make


def fixed_steps(method, size_of):
    """Euler or the classical Runge–Kutta method at a fixed step, by hand: `size_of(sharpness)`."""

    def make(flow, rtol):
        y, v = flow.flat, jnp.ones_like(flow.flat)
        # The largest sharpness along a flow is known to nobody beforehand; the end's is taken from the reference.
        end = jnp.asarray(np.load(os.environ["FIBRATION_REFERENCE"]))
        sharpness = 0.0
        for place in (y, end):
            for _ in range(100):
                w = jax.jvp(flow.field, (place,), (v,))[1]
                v = w / jnp.linalg.norm(w)
            sharpness = max(sharpness, float(jnp.linalg.norm(w)))
        steps = int(np.ceil(flow.t1 / size_of(sharpness)))
        h = flow.t1 / steps

        def euler(_, y):
            return y + h * flow.field(y)

        def rk4(_, y):
            k1 = flow.field(y)
            k2 = flow.field(y + h / 2 * k1)
            k3 = flow.field(y + h / 2 * k2)
            return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + flow.field(y + h * k3))

        step = {"Euler": euler, "RK4": rk4}[method]
        solve = jax.jit(lambda y: jax.lax.fori_loop(0, steps, step, y))
        return lambda: (np.asarray(solve(y)), steps * (4 if method == "RK4" else 1))

    return make


def torchdiffeq(flow, rtol):
    """The same network written in torch, its gradient by autograd."""
    import torch
    from torchdiffeq import odeint

    torch.set_default_dtype(torch.float64)
    inputs, targets = (torch.tensor(np.asarray(a)) for a in (flow.problem.inputs, flow.problem.targets))
    shapes = [leaf.shape for leaf in jax.tree.leaves(flow.params)]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    count = 0

    def cost(y):
        parts = torch.tensor_split(y, ends[:-1].tolist())
        b1, w1, b2, w2 = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        outputs = torch.tanh(inputs @ w1.T + b1) @ w2.T + b2
        return ((outputs - targets) ** 2).sum() / (2 * len(inputs))

    def field(t, y):
        nonlocal count
        count += 1
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            return -torch.autograd.grad(cost(y), y)[0]

    start = torch.tensor(np.asarray(flow.flat))

    def run():
        nonlocal count
        count = 0
        y = odeint(field, start, torch.tensor([0.0, flow.t1]), rtol=rtol, atol=rtol / 100, method="dopri5")[-1]
        return y.numpy(), count

    return run


def erk(evaluations):
    return lambda size: evaluations


EXPLICIT = {
    "diffrax Tsit5": (diffrax_by_hand(diffrax.Tsit5(), erk(6)), (1e-4, 1e-7)),
    "diffrax Dopri8": (diffrax_by_hand(diffrax.Dopri8(), erk(13)), (1e-4, 1e-8)),
}
CONTENDERS = {
    "fibration auto": (fibration("auto"), (1e-3, 1e-4, 1e-6, 1e-8)),
    "fibration rkc2": (fibration("rkc2"), (1e-3, 1e-4)),
    "fibration rock4": (fibration("rock4"), (1e-3, 1e-4, 1e-6, 1e-8)),
    **EXPLICIT,
    "scipy LSODA": (scipy_solver("LSODA"), (1e-4, 1e-7)),
    "scipy BDF": (scipy_solver("BDF"), (1e-4, 1e-7)),
    "scipy Radau": (scipy_solver("Radau"), (1e-4,)),
    # Each of its six implicit stages costs a Jacobian in the worst case; it refactors once a step.
    "diffrax Kvaerno5": (diffrax_by_hand(diffrax.Kvaerno5(), lambda size: 7 * 5 + size, 100_000), (1e-4,)),
    "torchdiffeq dopri5": (torchdiffeq, (1e-4,)),
    "RK4, step 1/sharpness": (fixed_steps("RK4", lambda s: 1 / s), (None,)),
    "Euler, step 1.8/sharpness": (fixed_steps("Euler", lambda s: 1.8 / s), (None,)),
    "Euler, step 0.2/sharpness": (fixed_steps("Euler", lambda s: 0.2 / s), (None,)),
}
DENSE = {"scipy LSODA", "scipy BDF", "scipy Radau", "diffrax Kvaerno5"}
LEFT_OUT = {
    "A": DENSE,  # 2 410 parameters: a dense Jacobian is 46 MB, and a step factors it
    "B": set(),
    "C": DENSE | {"torchdiffeq dopri5"},
    "D": DENSE | {"torchdiffeq dopri5"},
    # Explicit methods need millions of gradients for it.
    "quadratic": DENSE | set(EXPLICIT) | {"torchdiffeq dopri5"} | {name for name in CONTENDERS if "step" in name},
}


def one(problem, name, rtol):
    """Run one contender in this process; print its row."""
    flow = FLOWS[problem]()
    jax.block_until_ready(flow.problem.gradient(flow.params))
    reference = np.load(os.environ["FIBRATION_REFERENCE"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = CONTENDERS[name][0](flow, rtol)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        end, gradients = run()
        seconds.append(time.perf_counter() - began)
        if seconds[0] > 20:  # compilation is lost in it
            seconds.append(seconds[0])
            break
    error = np.linalg.norm(end - reference) / np.linalg.norm(reference - np.asarray(flow.flat))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    row = {
        "gradients": int(gradients),
        "seconds": seconds[1],
        "first": seconds[0],
        "megabytes": peak,
        "error": float(error),
    }
    print(json.dumps(row))


def machine():
    with Path("/proc/cpuinfo").open() as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = {"cpu": model, "memory GiB": round(pages / 2**30, 1), "scipy": scipy.__version__}
    return fb.study.machine_facts() | memory | {"date": time.strftime("%Y-%m-%d")}


def reference(problem):
    flow = FLOWS[problem]()
    if problem == "quadratic":  # in closed form; an explicit method would need millions of gradients
        return np.asarray(flow.flat) * np.exp(-flow.t1 * np.geomspace(1e-6, 1, 100))
    compiled = jax.jit(flow.field)
    solution = scipy.integrate.solve_ivp(
        lambda t, y: np.asarray(compiled(y)),
        (0, flow.t1),
        np.asarray(flow.flat),
        "DOP853",
        [flow.t1],
        rtol=1e-11,
        atol=1e-13,
    )
    return solution.y[:, -1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=FLOWS, default=list(FLOWS))
    parser.add_argument("--solvers", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gradient_flow.json")
    parser.add_argument("--one", nargs=3, metavar=("PROBLEM", "NAME", "RTOL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        problem, name, rtol = arguments.one
        one(problem, name, None if rtol == "None" else float(rtol))
        return
    done = json.loads(arguments.out.read_text())["problems"] if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for problem in arguments.problems:
            path = str(Path(folder) / f"{problem}.npy")
            np.save(path, reference(problem))
            flow, rows = FLOWS[problem](), []
            print(f"\n{problem}: {flow.title}\n\n| solver | rtol | gradients | seconds | first run | MB | error |")
            print("|---|---|---|---|---|---|---|")
            for name, (_, rtols) in CONTENDERS.items():
                if name in LEFT_OUT[problem] or name not in arguments.solvers:
                    continue
                for rtol in rtols:
                    command = [sys.executable, __file__, "--one", problem, name, str(rtol)]
                    environment = os.environ | {"FIBRATION_REFERENCE": path}
                    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
                    if answer.returncode:
                        print(
                            f"| {name} | {rtol} | failed: {answer.stderr.strip().splitlines()[-1][:80]} |", flush=True
                        )
                        continue
                    row = {"solver": name, "rtol": rtol} | json.loads(answer.stdout.splitlines()[-1])
                    rows.append(row)
                    asked = "" if rtol is None else f"{rtol:.0e}"
                    spent = f"{row['gradients']:,} | {row['seconds']:.2f} | {row['first']:.1f} | {row['megabytes']:.0f}"
                    print(f"| {name} | {asked} | {spent} | {row['error']:.1e} |", flush=True)
            # Rows of an earlier call stay, unless this one measured them again.
            new = {(row["solver"], row["rtol"]) for row in rows}
            kept = [r for r in done.get(problem, {"rows": []})["rows"] if (r["solver"], r["rtol"]) not in new]
            rows = kept + rows
            facts = {"title": flow.title, "parameters": int(flow.flat.size), "t1": flow.t1}
            done[problem] = facts | {"machine": machine(), "rows": rows}
            arguments.out.parent.mkdir(exist_ok=True)
            arguments.out.write_text(json.dumps({"problems": done}, indent=1) + "\n")


if __name__ == "__main__":
    main()
