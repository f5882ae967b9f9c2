"""Studies: what the runner adds to bare calls, what a cluster gains, and that memory does not grow with a run's length.

    python benchmarks/studies.py [--parts overhead throughput memory] [--out benchmarks/results/studies.json]

- overhead: flows and descents of digits from three seeds, with the sharpness at every saved time, by `run_study` into a
  store on disk with its checkpoints, and by `integrate` and `descend` alone. Every measurement is a process of its own,
  compiling included, which begins after the imports; two of each, in turn, and the ratio of their medians (wanted: at
  most 1.05).
- throughput: 1,000 points (5 widths x 10 step sizes x 20 seeds of a small network), by one process and by two workers
  of `--cluster local`, from the call to its end, starting the cluster included (wanted: at least 1.7 times).
- memory: the peak resident size of processes that run 2,000 and 200,000 steps with the same 101 saved times.
"""

import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

import runner

OVERHEAD = """
name = "overhead"
seeds = 3
data = { source = "digits", samples = 1000 }
network = { kind = "mlp", hidden = [32] }
[runs.flow]
kind = "flow"
t1 = 60.0
saves = 61
[runs.descent]
kind = "descent"
step_size = 0.05
steps = 4000
saves = 41
[diagnostics]
sharpness = true
"""
SMALL = """
name = "a thousand"
seeds = 20
data = { source = "waves", samples = 16 }
network = { kind = "mlp", hidden = [4] }
[runs.descent]
kind = "descent"
step_size = 0.1
steps = 200
saves = 21
[diagnostics]
sharpness = true
[sweep]
"network.hidden" = [[2], [3], [4], [6], [8]]
"runs.descent.step_size" = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1]
"""
LONG = """
name = "long"
data = { source = "waves", samples = 16 }
network = { kind = "mlp", hidden = [4] }
budget = { checkpoint_seconds = 0.5 }
[runs.descent]
kind = "descent"
step_size = 0.01
steps = STEPS
saves = 101
"""


def by_runner(text, cluster=None):
    """Run a study in a store on the disk of the working directory; give its seconds."""
    import jax

    import fibration as fb

    jax.config.update("jax_enable_x64", True)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder, "study.toml")
        path.write_text(text)
        begun = time.perf_counter()
        outcome = fb.study.run_study(path, Path(folder, "store"), cluster=cluster)
        seconds = time.perf_counter() - begun
    assert outcome.complete, outcome
    return {"points": len(outcome.outcomes), "seconds": seconds}


def by_hand():
    """Do what OVERHEAD says, as a script does it."""
    import jax

    import fibration as fb

    jax.config.update("jax_enable_x64", True)
    begun = time.perf_counter()
    inputs, targets = fb.datasets.digits(samples=1000, one_hot=True)
    observe, field, costs = {"sharpness": fb.curvature.Sharpness()}, fb.GradientFlow(), []
    for seed in range(3):
        apply, params = fb.networks.mlp((64, 32, 10), "tanh", key=jax.random.key(seed))
        problem = fb.Problem(apply, np.asarray(inputs, float), targets)
        flow = fb.integrate(problem, field, params, 60.0, times=np.linspace(0, 60, 61), observe=observe)
        descent = fb.descend(problem, field, params, step_size=0.05, steps=4000, save_every=100, observe=observe)
        costs += [float(flow.costs[-1]), float(descent.costs[-1])]
    return {"seconds": time.perf_counter() - begun, "costs": costs}


ONE = {
    "bare": by_hand,
    "runner": lambda: by_runner(OVERHEAD),
    "none": lambda: by_runner(SMALL),
    "local": lambda: by_runner(SMALL, "local"),
    "2000": lambda: by_runner(LONG.replace("STEPS", "2000")),
    "200000": lambda: by_runner(LONG.replace("STEPS", "200000")),
}


def one(name):
    """Print the row of one measurement."""
    row = ONE[name]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"name": name} | row | {"peak_mb": peak}))


def part_overhead():
    """Measure the runner against bare calls, in turn."""
    rows = runner.in_processes(__file__, ["bare", "runner"] * 2)
    medians = {name: float(np.median([r["seconds"] for r in rows if r["name"] == name])) for name in ("bare", "runner")}
    return {"rows": rows, "ratio": medians["runner"] / medians["bare"]}


def part_throughput():
    """Measure one process against the local cluster."""
    rows = runner.in_processes(__file__, ["none", "local"])
    return {"rows": rows, "ratio": rows[0]["seconds"] / rows[1]["seconds"]}


def part_memory():
    """Measure a short and a long run."""
    rows = runner.in_processes(__file__, ["2000", "200000"])
    return {"rows": rows, "ratio": rows[1]["peak_mb"] / rows[0]["peak_mb"]}


if __name__ == "__main__":
    parts = {"overhead": part_overhead, "throughput": part_throughput, "memory": part_memory}
    runner.run(__doc__, parts, one, "benchmarks/results/studies.json")
