"""A store full of runs that were made up, for the tests of pages: quick, and with every ending that a run can have."""

import itertools
import math

import numpy as np

from fibration.study import Store

AXES = {
    "network.hidden": ([4], [8], [16], [32], [64]),
    "runs.slow.step_size": (0.01, 0.02, 0.05, 0.1, 0.2),
    "data.spread": (0.1, 0.5),
}


def point(hidden=(4,), step=0.1, spread=0.1, seed=0, **more):
    """Make a resolved point with a flow, a descent that follows it, and an optimiser."""
    return {
        "data": {"source": "clusters", "classes": 3, "spread": spread},
        "network": {"kind": "mlp", "hidden": list(hidden), "activation": "relu"},
        "loss": "squared_error",
        "precision": "float64",
        "runs": {
            "adam": {"kind": "descent", "method": "adam", "step_size": 0.01, "steps": 50},
            "slow": {"kind": "descent", "method": "gradient", "step_size": step, "t1": 10.0},
            "flow": {"kind": "flow", "field": "gradient", "t1": 10.0},
        },
        "seed": seed,
        **more,
    }


def results(of, length=61):
    """Make up what a run of this point found: smooth, and different at every place of the sweep."""
    width, seed = of["network"]["hidden"][0], of["seed"]
    step = of["runs"]["slow"]["step_size"]
    rate = 0.1 * math.sqrt(width) * (1 + 0.1 * seed)
    times, steps = np.linspace(0.0, 10.0, length), np.linspace(0.0, 50.0, length)
    sharpness = width / 4 * (1 + 0.5 * np.tanh(times))
    stable = bool(step * sharpness[-1] < 2)
    cost = np.exp(-rate * times)
    distance = step * times * np.exp(-rate * times / 2) * 0.3
    curves = {
        "flow.cost": (times, cost),
        "slow.cost": (times, cost * (1 + step * times) if stable else np.exp(3 * times)),
        "adam.cost": (steps, np.exp(-0.05 * steps)),
        "flow.sharpness": (times, sharpness),
        "slow.sharpness": (times, sharpness * (1 + step / 10)),
        "slow.distance": (times, distance if stable else np.exp(3 * times) - 1),
        "slow.bound": (times, np.where(stable and seed % 2 == 1, 4 * distance, np.inf)),
        "start.singular_values": (np.arange(1.0, 13), np.exp(-np.arange(12.0))),
        "flow.end.singular_values": (np.arange(1.0, 13), np.exp(-0.5 * np.arange(12.0))),
        "flow.imbalance": (times, np.full(length, 0.2)),
        "slow.imbalance": (times, 0.2 + step * times / 100),
    }
    if not stable:
        curves["slow.cost"] = tuple(one[: length // 2] for one in curves["slow.cost"])
    last = {name: float(y[-1]) for name, (_, y) in curves.items()}
    summary = {
        "flow.cost": last["flow.cost"],
        "slow.cost": last["slow.cost"] if stable else math.inf,
        "adam.cost": last["adam.cost"],
        "flow.ended": "completed",
        "slow.ended": "completed" if stable else "nonfinite",
        "adam.ended": "completed",
        "flow.gradients": 1234.0,
        "slow.step_size": step,
        "flow.sharpness_end": last["flow.sharpness"],
        "slow.sharpness_end": last["slow.sharpness"],
        "slow.distance": last["slow.distance"],
        "slow.distance_relative": last["slow.distance"] / 3 if stable else math.nan,
        "slow.bound": last["slow.bound"],
        "slow.certified_until": 5.0,
        "slow.certificate": "valid until t = 5, where the bound runs away",
        "start.rank": 12.0,
        "start.rank_needed": 12.0,
        "start.sigma_ratio": math.exp(-11),
        "flow.end.rank": 12.0 - min(3.0, 16 / width),
        "flow.end.rank_needed": 12.0,
        "flow.end.sigma_ratio": 10.0 ** -(6 - math.log2(width)),
        "flow.imbalance_end": 0.2 / width,
        "slow.imbalance_end": 0.2 / width + step / 10,
        "minimizer": "separable, certified",
        "minimizer.cost": 1e-29,
        "minimizer.affine_cost": 0.1 * of["data"]["spread"],
        "parameters": 5.0 * width,
        "residuals": 180.0,
    }
    return summary, {name: {"x": x.tolist(), "y": y.tolist()} for name, (x, y) in curves.items()}


def fill(store, of, *, end="done", error=None, length=61):
    """Put one run into a store; `end`: its status, of which "interrupted" is what is left without an ending."""
    with store.claim(of) as run:
        if end == "done":
            run.finish(*results(of, length), gradients=1284)
        elif end == "failed":
            try:
                raise error or ValueError("no parameters can fit both of rows 4 and 9")
            except ValueError as raised:
                run.fail(raised)


def damage(store, record):
    """Break the manifest of a run."""
    (record.directory / "manifest.json").write_text("{ broken")


def sweep(folder, axes=AXES, seeds=2, length=61):
    """Fill a store with the product of the axes and seeds; every seventh run fails, one is interrupted."""
    store = Store(folder, create=True)
    for number, (hidden, step, spread, seed) in enumerate(itertools.product(*axes.values(), range(seeds))):
        end = "failed" if number % 7 == 3 else "interrupted" if number == 5 else "done"
        fill(store, point(hidden, step, spread, seed), end=end, length=length)
    return store, {**axes, "seed": tuple(range(seeds))}
