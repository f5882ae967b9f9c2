"""Balancing: closed forms, Newton's method and flows, beside what one would do without them.

    python benchmarks/balance.py [--parts narrow newton induced] [--out benchmarks/results/balance.json]

- narrow: a pair 4096-16-4096 with a condition number of 1e3 whose factors are 1e4 apart. `balanced` beside two thin QR
  factorisations of its ends, the singular value decomposition of the product, and gradient descent on the regulariser
  over the group. Median of several runs; errors relative to ‖X‖ and |W|².
- newton: `kempf_ness` for N = 6 and d = 32, beside sweeps that balance one pair of neighbours after the other in closed
  form, and the squared-moment flow; until |μ| ≤ 1e-12.
- induced: the induced flow for N = 3 and d = 64 to t = 1, in a process of its own, beside one solve with the assembled
  equations; bytes are the growth of the largest resident set (Linux).
"""

import json
import time
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np

import fibration as fb
import runner

B = fb.balance


def timed(functions, repeats):
    """The medians of the seconds of several functions, called in turn, and their last results."""
    seconds, results = [[] for _ in functions], [function() for function in functions]
    for _ in range(repeats):
        for place, function in enumerate(functions):
            began = time.perf_counter()
            results[place] = function()
            seconds[place].append(time.perf_counter() - began)
    return [float(np.median(taken)) for taken in seconds], results


def defects(Ws, Vs):
    """‖X' − X‖/‖X‖, never formed, and |μ'|/|W'|²."""
    left = np.linalg.qr(np.concatenate([Vs[1], -Ws[1]], axis=1), mode="r")
    right = np.linalg.qr(np.concatenate([Vs[0], Ws[0]]).T, mode="r")
    size = np.linalg.norm(np.linalg.qr(Ws[1], mode="r") @ np.linalg.qr(Ws[0].T, mode="r").T)
    error = float(np.linalg.norm(left @ right.T) / size)
    return {"error": error, "imbalance": float(np.linalg.norm(B.moment_map(Vs)[0]) / (2 * B.regularizer(Vs)))}


def two_qr(Ws):
    return np.linalg.qr(Ws[1]), np.linalg.qr(Ws[0].T)


def svd_of_product(Ws):
    rank = Ws[0].shape[0]
    u, s, vh = np.linalg.svd(Ws[1] @ Ws[0], full_matrices=False)
    root = np.sqrt(s[:rank])
    return [root[:, None] * vh[:rank], u[:, :rank] * root]


def descent(Ws, goal=1e-6, most=200_000):
    """Gradient descent on the regulariser over the group, W ← (exp(−hμ)·W), with the largest step that is stable."""
    A, C = Ws[0] @ Ws[0].T, Ws[1].T @ Ws[1]
    g = np.eye(len(A))
    for steps in range(most):  # noqa: B007
        mu = g @ A @ g.T - np.linalg.solve(g.T, np.linalg.solve(g.T, C).T)
        values, vectors = np.linalg.eigh((mu + mu.T) / 2)
        now = np.abs(values).max()
        size = np.trace(g @ A @ g.T) + np.trace(mu)
        if now <= goal * abs(size):
            break
        h = min(0.5 / now, 1 / (4 * np.linalg.norm(g @ A @ g.T, 2)))
        g = (vectors * np.exp(-h * values)) @ vectors.T @ g
    return [g @ Ws[0], np.linalg.solve(g.T, Ws[1].T).T], steps


def narrow():
    rng = np.random.default_rng(0)
    d, r = 4096, 16
    values = np.logspace(0, -3, r)
    mix = rng.normal(size=(r, r))
    Ws = [1e2 * mix @ np.linalg.qr(rng.normal(size=(d, r)))[0].T * values[:, None] ** 0.5 for _ in range(2)]
    Ws = [Ws[0], 1e-4 * Ws[1].T]
    rows = []
    (qr, ours, nearest), (_, chain, turned) = timed(
        [lambda: two_qr(Ws), lambda: B.balanced(Ws), lambda: B.balanced(Ws, "nearest")], 201
    )
    rows.append({"what": "two thin QRs, nothing else", "seconds": qr})
    rows.append({"what": "`balanced`", "seconds": ours} | defects(Ws, chain))
    rows.append({"what": '`balanced`, gauge="nearest"', "seconds": nearest} | defects(Ws, turned))
    began = time.perf_counter()
    chain = svd_of_product(Ws)
    rows.append({"what": "SVD of the product", "seconds": time.perf_counter() - began} | defects(Ws, chain))
    began = time.perf_counter()
    chain, steps = descent(Ws)
    row = {"what": f"gradient descent on R, {steps:,} steps", "seconds": time.perf_counter() - began}
    rows.append(row | defects(Ws, chain))
    for row in rows:
        row["ratio"] = row["seconds"] / qr
        print(row, flush=True)
    return rows


def sweeps(Ws, goal, most=2000):
    """Balance neighbours exactly, one pair after the other."""
    Ws = list(Ws)
    for count in range(most):
        for p in range(len(Ws) - 1):
            Ws[p : p + 2] = B.balanced(Ws[p : p + 2], "nearest")
        if np.sqrt(sum(np.linalg.norm(mu) ** 2 for mu in B.moment_map(Ws))) <= goal:
            return Ws, count + 1
    return Ws, most


def newton():
    rng = np.random.default_rng(0)
    Ws = [rng.normal(size=(32, 32)) / 32**0.5 * np.exp(0.5 * rng.normal()) for _ in range(6)]
    goal, rows = 1e-12, []
    size = float(np.sqrt(sum(np.linalg.norm(W) ** 2 for W in Ws)))
    tolerance = goal / (2 * B.minimum_on_fibre(B.end_to_end(Ws), 6))
    began = time.perf_counter()
    B.kempf_ness(Ws, tolerance=tolerance)
    first = time.perf_counter() - began
    (seconds, closed), (found, chain) = timed(
        [lambda: B.kempf_ness(Ws, tolerance=tolerance), lambda: B.balanced(Ws)], 7
    )
    moment = float(found.history[-1])
    rows.append(
        {"what": "`kempf_ness`", "count": found.iterations, "seconds": seconds, "first": first, "moment": moment}
    )
    moment = float(np.sqrt(sum(np.linalg.norm(mu) ** 2 for mu in B.moment_map(chain))))
    rows.append({"what": "`balanced`, closed form", "count": 1, "seconds": closed, "moment": moment})
    began = time.perf_counter()
    chain, count = sweeps(Ws, goal)
    moment = float(np.sqrt(sum(np.linalg.norm(mu) ** 2 for mu in B.moment_map(chain))))
    seconds = time.perf_counter() - began
    rows.append({"what": "sweeps over pairs of neighbours", "count": count, "seconds": seconds, "moment": moment})
    began = time.perf_counter()
    run = B.flow(Ws, 200.0, "squared_moment", times=[200.0], rtol=1e-6, atol=1e-8)
    moment = float(np.linalg.norm(run.observed["moment_map"][-1]))
    row = {"what": "squared-moment flow to t = 200", "count": run.stats["gradient_evaluations"]}
    rows.append(row | {"seconds": time.perf_counter() - began, "moment": moment})
    for row in rows:
        print(row, flush=True)
    return {"length": size, "goal": goal, "rows": rows}


def resident(what):
    """The resident set of this process in MB, now ("VmRSS") or at most since the last reset ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def one(what):
    """Do one thing in this process; print its row."""
    rng = np.random.default_rng(0)
    d = 64
    Ws = [rng.normal(size=(d, d)) / d**0.5 for _ in range(3)]
    B.flow([W[:2, :2] for W in Ws], 0.1, times=[0.1], rtol=1e-6)  # JAX is up
    Path("/proc/self/clear_refs").write_text("5")
    before, began = resident("VmRSS"), time.perf_counter()
    if what == "flow":
        run = B.flow(Ws, 1.0, times=[1.0], rtol=1e-6, atol=1e-8)
        row = {"what": "`flow`, t = 0 to 1, compilation included", "count": run.stats["gradient_evaluations"]}
        start = np.concatenate([mu.ravel() for mu in B.moment_map(Ws)])
        law = np.abs(run.observed["moment_map"][-1] - np.exp(-2) * start).max() / np.abs(start).max()
        row |= {"law": float(law), "drift": float(run.observed["drift"][-1])}
    elif what == "multiplier":
        L = np.asarray(B.dual_multiplier(Ws))
        row = {"what": "`dual_multiplier`, compilation included", "count": 1, "residual": residual(Ws, L)}
    else:
        S, T = B.partial_products(Ws)
        matrix = sum(np.kron(T[p] @ T[p].T, (S[p - 1].T @ S[p - 1]).T) for p in range(1, 4))
        L = np.linalg.solve(matrix, 3 * S[-1].ravel()).reshape(d, d)
        row = {"what": "the same equations, 4,096 × 4,096, assembled", "count": 1, "residual": residual(Ws, L)}
    row |= {"seconds": time.perf_counter() - began, "megabytes": resident("VmHWM") - before}
    print(json.dumps(row))


def residual(Ws, L):
    S, T = B.partial_products(Ws)
    applied = sum(T[p] @ T[p].T @ L @ S[p - 1].T @ S[p - 1] for p in range(1, 4))
    return float(np.linalg.norm(applied - 3 * S[-1]) / np.linalg.norm(3 * S[-1]))


def induced():
    return runner.in_processes(__file__, ("flow", "multiplier", "assembled"))


PARTS = {"narrow": narrow, "newton": newton, "induced": induced}


if __name__ == "__main__":
    runner.run(__doc__, PARTS, one, "benchmarks/results/balance.json")
