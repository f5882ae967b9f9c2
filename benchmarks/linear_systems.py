"""Balanced truncation of linear systems: `fb.balance.truncate` beside SLICOT (through slycot), pyMOR and SciPy.

    python benchmarks/linear_systems.py [--parts dense digits large] [--out benchmarks/results/linear_systems.json]

- dense: random stable systems with 200 states, 4 inputs and 3 outputs, continuous and discrete, reduced to 20 states.
  Median of several runs in turn; the error bounds relative to SLICOT's.
- digits: the smallest Hankel singular value of A = diag(−1 … −8), B and C of ones, beside its value in 50 digits; also
  by the eigenvalues of W_c W_o, as it is in many textbooks.
- large: 1,000 states, each in a process of its own; bytes are the growth of the largest resident set (Linux).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small matrices: threads would wait for one another

import functools
import json
import logging
import time
from pathlib import Path

import mpmath
import numpy as np
import scipy.linalg
import slycot

import fibration as fb
import runner

B = fb.balance


def system(n, *, discrete=False, seed=0):
    """A random stable system with 4 inputs and 3 outputs."""
    rng = np.random.default_rng(seed)
    A, b, c = rng.normal(size=(n, n)) / n**0.5, rng.normal(size=(n, 4)), rng.normal(size=(3, n))
    poles = np.linalg.eigvals(A)
    return (0.9 * A / np.abs(poles).max() if discrete else A - (poles.real.max() + 0.1) * np.eye(n)), b, c


def timed(functions, repeats):
    """The medians of the seconds of several functions, called in turn, and their last results."""
    seconds, results = [[] for _ in functions], [function() for function in functions]
    for _ in range(repeats):
        for place, function in enumerate(functions):
            began = time.perf_counter()
            results[place] = function()
            seconds[place].append(time.perf_counter() - began)
    return [float(np.median(taken)) for taken in seconds], results


def by_slycot(A, b, c, order, discrete):
    kind = "D" if discrete else "C"
    *_, hsv = slycot.ab09ad(kind, "B", "N", len(A), b.shape[1], len(c), A.copy(), b.copy(), c.copy(), nr=order)
    return 2 * hsv[order:].sum()


def by_pymor(A, b, c, order, discrete):
    from pymor.models.iosys import LTIModel
    from pymor.reductors.bt import BTReductor

    logging.getLogger("pymor").setLevel(logging.ERROR)
    reductor = BTReductor(LTIModel.from_matrices(A, b, c, sampling_time=1.0 if discrete else 0))
    reductor.reduce(order)
    return reductor.error_bounds()[order - 1]


def by_us(A, b, c, order, discrete):
    return B.truncate(A, b, c, order=order, dt=True if discrete else None).error_bound


def dense():
    rows = []
    for discrete in (False, True):
        given = *system(200, discrete=discrete), 20, discrete
        ways = {"slycot.ab09ad": by_slycot, "`truncate`": by_us, "pyMOR": by_pymor}
        calls = [functools.partial(way, *given) for way in ways.values()]
        seconds, bounds = timed(calls, 15)
        for what, taken, bound in zip(ways, seconds, bounds, strict=True):
            row = {"what": what, "discrete": discrete, "seconds": taken, "ratio": taken / seconds[0]}
            rows.append(row | {"bound": float(bound), "difference": float(abs(bound / bounds[0] - 1))})
            print(rows[-1], flush=True)
    return rows


def digits(n=8):
    A, b, c = np.diag(-1.0 - np.arange(n)), np.ones((n, 1)), np.ones((1, n))
    with mpmath.workdps(50):
        cauchy = mpmath.matrix(n, n)
        for i in range(n):
            for j in range(n):
                cauchy[i, j] = mpmath.mpf(1) / (i + j + 2)
        exact = float(min(mpmath.eigsy(cauchy, eigvals_only=True)))
    Wc = scipy.linalg.solve_continuous_lyapunov(A, -b @ b.T)
    Wo = scipy.linalg.solve_continuous_lyapunov(A.T, -c.T @ c)
    *_, hsv = slycot.ab09ad("C", "B", "N", n, 1, 1, A.copy(), b.copy(), c.copy(), nr=1)
    found = {
        "`hankel_singular_values`": B.hankel_singular_values(A, b, c)[-1],
        "slycot.ab09ad": hsv[-1],
        "eigenvalues of W_c W_o": np.sqrt(np.abs(np.linalg.eigvals(Wc @ Wo)).min()),
    }
    rows = [{"what": what, "value": float(v), "error": float(abs(v / exact - 1))} for what, v in found.items()]
    for row in rows:
        print(row, flush=True)
    return {"exact": exact, "rows": rows}


def resident(what):
    """The resident set of this process in MB, now ("VmRSS") or at most since the last reset ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def one(what):
    """Reduce one large system in this process; print its row."""
    A, b, c = system(1000)
    way = by_us if what == "`truncate`" else by_slycot
    way(*(M.copy() for M in system(20)), 5, False)
    Path("/proc/self/clear_refs").write_text("5")
    before, began = resident("VmRSS"), time.perf_counter()
    bound = way(A, b, c, 50, False)
    row = {"what": what, "seconds": time.perf_counter() - began, "megabytes": resident("VmHWM") - before}
    print(json.dumps(row | {"bound": float(bound)}))


def large():
    return runner.in_processes(__file__, ("`truncate`", "slycot.ab09ad"))


PARTS = {"dense": dense, "digits": digits, "large": large}


if __name__ == "__main__":
    runner.run(__doc__, PARTS, one, "benchmarks/results/linear_systems.json")
