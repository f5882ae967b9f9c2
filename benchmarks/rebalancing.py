"""Training with and without rebalancing, on real data: low-rank adapters, and deep ReLU networks.

    python benchmarks/rebalancing.py [--parts adapters networks] [--out benchmarks/results/rebalancing.json]

- adapters: a ReLU network that reads scikit-learn's digits is adapted to read them turned by 90 degrees, by adapters
  of rank 4 on its three layers; from B = 0, and from the same adapters after 20 steps, moved along their fibre to
  c A and B/c.
- networks: nine layers, 64 wide, on the same digits; from He's start, from the same function with every hidden unit
  rescaled by exp(1.5 N(0, 1)), and from every layer multiplied by such a factor, which is another function.

Every method has its own learning rate: the best on four seeds that are not reported, on a grid of factors √10 that goes
on until the best is not at its end; best by the geometric mean of the loss at the end, on the training data. Then eight
other seeds, each with its own split, start and batches. A gradient is that of 128 images. Everything in float32.
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import fibration as fb
import runner

B = fb.balance

RULES = {"sgd": optax.identity(), "momentum": optax.trace(0.9), "adam": optax.scale_by_adam()}
FIRST_RATE = {"sgd": 0.1, "momentum": 0.03, "adam": 3e-3}  # the middle of the grid
REPORTED, TUNED, BATCH, EVERY, LORA_PLUS = range(8), range(100, 104), 128, 10, 16.0


@dataclass(frozen=True)
class Method:
    """Rebalance after every k-th step (0: never), and also before the first one (`once`)."""

    name: str
    every: int = 0
    memory: str = "transport"
    ratio: float = 1.0  # of the learning rate of B to that of A
    once: bool = False


@dataclass(frozen=True)
class Task:
    """A function of (params, frozen, x), what can be balanced in it, and the loss that counts as reached."""

    apply: Callable[..., Any]
    balancing: dict[str, Any]
    steps: int
    goal: float
    balance: Callable[..., Any] = lambda params, x: params


def digits(seed, turned=False):
    """1,198 images to train with and 599 to test, by a split of each seed's own."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    x = (np.rot90(images, axes=(1, 2)) if turned else images).reshape(-1, 64)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = jnp.asarray(2 * x[order], jnp.float32), jnp.asarray(labels[order])
    return {"x": x[599:], "y": y[599:], "test x": x[:599], "test y": y[:599]}


def cross_entropy(task, params, frozen, x, y):
    logits = jax.vmap(task.apply, (None, None, 0))(params, frozen, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def mistakes(task, params, frozen, x, y):
    return jnp.mean(jnp.argmax(jax.vmap(task.apply, (None, None, 0))(params, frozen, x), -1) != y)


def optimiser(task, rule, method, rate):
    parts = [RULES[rule]]
    if method.ratio != 1:  # LoRA+: the same rule, larger steps for B
        parts.append(optax.stateless(lambda u, _: [{"A": pair["A"], "B": method.ratio * pair["B"]} for pair in u]))
    inner = optax.chain(*parts, optax.scale(-rate))
    if not method.every:
        return optax.with_extra_args_support(inner)
    return B.rebalance(inner, method.every, memory=method.memory, **task.balancing)


def trainer(task, rule, method):
    """Compile a training run: the loss on all training data every ten steps, and the parameters at the end."""

    @jax.jit
    def run(params, frozen, data, rate, key):
        optimizer = optimiser(task, rule, method, rate)

        def step(carry, key):
            """One step, unless the run has broken down: LAPACK may never return from infinite numbers."""
            params, state, broken = carry
            chosen = jax.random.randint(key, (BATCH,), 0, len(data["y"]))
            value, gradient = jax.value_and_grad(partial(cross_entropy, task))(
                params, frozen, data["x"][chosen], data["y"][chosen]
            )
            broken |= ~((value < 1e6) & (optax.global_norm(gradient) < 1e8))

            def update(params, state):
                updates, state = optimizer.update(gradient, state, params)
                return optax.apply_updates(params, updates), state

            params, state = jax.lax.cond(broken, lambda *same: same, update, params, state)
            return (params, state, broken), None

        def part(carry, keys):
            carry, _ = jax.lax.scan(step, carry, keys)
            return carry, jnp.where(carry[2], jnp.inf, cross_entropy(task, carry[0], frozen, data["x"], data["y"]))

        keys = jax.random.split(key, task.steps).reshape(-1, EVERY)
        begin = (params, optimizer.init(params), jnp.array(False))
        (params, *_), losses = jax.lax.scan(part, begin, keys)
        wrong = mistakes(task, params, frozen, data["test x"], data["test y"])
        return {"losses": losses, "error": wrong, "params": params}

    return run


def study(task, starts, rules, methods, imbalance):
    """Tune and run every method with every rule from every start. `starts`: name -> seed -> (params, frozen, data)."""
    rows = []
    with ThreadPoolExecutor(2) as pool:
        for rule in rules:
            runs = {}
            for method in methods:
                if rule == "sgd" and method.memory != "transport":
                    continue  # there is no memory
                key = (method.every, method.memory, method.ratio)
                runs[key] = run = runs.get(key) or trainer(task, rule, method)

                def begin(start, seed, once=method.once):
                    params, frozen, data = starts[start][seed]
                    return (task.balance(params, data["x"][0]) if once else params), frozen, data

                def end(arguments, run=run):
                    """The loss at the end, infinite if the run broke down; and all the rest."""
                    _, seed, rate, began = arguments
                    found = jax.device_get(run(*began, jnp.float32(rate), jax.random.key(seed)))
                    losses = np.where(np.isfinite(found["losses"]), found["losses"], np.inf)
                    return losses[-1], found | {"losses": losses}

                for start in starts:
                    if method.once and start == "B = 0":
                        continue  # nothing can be balanced yet
                    tuning = {seed: begin(start, seed) for seed in TUNED}
                    places, grid = list(range(-2, 3)), {}
                    while places:
                        jobs = [(start, s, rate_at(rule, place), tuning[s]) for place in places for s in TUNED]
                        last = np.array([loss for loss, _ in pool.map(end, jobs)]).reshape(len(places), -1)
                        grid |= dict(zip(places, np.exp(np.mean(np.log(last), axis=1)).tolist(), strict=True))
                        best = min(sorted(grid), key=grid.get)  # the lowest, if all broke down
                        at_end = [best - 1] * (best == min(grid)) + [best + 1] * (best == max(grid))
                        places = at_end if len(grid) < 16 else []
                    jobs = [(start, s, rate_at(rule, best), begin(start, s)) for s in REPORTED]
                    found = [result for _, result in pool.map(end, jobs)]
                    losses = np.array([result["losses"] for result in found], float)
                    reached = [np.flatnonzero(np.r_[loss, -np.inf] <= task.goal)[0] for loss in losses]
                    rows.append(
                        {
                            "rule": rule,
                            "method": method.name,
                            "start": start,
                            "rate": rate_at(rule, best),
                            "grid": [[rate_at(rule, place), grid[place]] for place in sorted(grid)],
                            "loss": losses[:, -1].tolist(),
                            "error": [float(result["error"]) for result in found],
                            "gradients to the goal": [
                                int(EVERY * (place + 1)) if place < losses.shape[1] else None for place in reached
                            ],
                            "median loss": np.median(losses, axis=0).tolist(),
                            "imbalance": [
                                float(np.median([imbalance(began[0]) for *_, began in jobs])),
                                float(np.median([imbalance(result["params"]) for result in found])),
                            ],
                        }
                    )
                    show(rows[-1])
    return rows


def rate_at(rule, place):
    return float(FIRST_RATE[rule] * 10 ** (place / 2))


def show(row):
    loss, error = (f"{np.median(row[k]):.4f} [{min(row[k]):.4f}, {max(row[k]):.4f}]" for k in ("loss", "error"))
    steps = [s if s is not None else np.inf for s in row["gradients to the goal"]]
    print(
        f"{row['rule']:9}{row['start']:18}{row['method']:28} rate {row['rate']:.1e}  loss {loss}  error {error}  "
        f"goal {np.median(steps):.0f}  imbalance {row['imbalance'][0]:.2g} -> {row['imbalance'][1]:.2g}",
        flush=True,
    )


def overhead(task, start, rules, methods):
    """Microseconds of one step of each method, in turn; the median of five runs."""
    rows = []
    for rule in rules:
        chosen = [method for method in methods if not method.once and method.ratio == 1]
        runs = [trainer(task, rule, method) for method in chosen]
        arguments = (*start, jnp.float32(1e-3), jax.random.key(0))
        for run in runs:
            jax.block_until_ready(run(*arguments))
        seconds = [[] for _ in runs]
        for _ in range(5):
            for taken, run in zip(seconds, runs, strict=True):
                began = time.perf_counter()
                jax.block_until_ready(run(*arguments))
                taken.append((time.perf_counter() - began) / task.steps)
        for method, taken in zip(chosen, seconds, strict=True):
            rows.append({"rule": rule, "method": method.name, "microseconds": 1e6 * float(np.median(taken))})
            print(rows[-1], flush=True)
    return rows


def adapters(steps=400):
    mlp, _ = fb.networks.mlp((64, 128, 128, 10), "relu", key=jax.random.key(0))

    def adapted(params, frozen, x):
        layers = zip(frozen, params, strict=True)
        return mlp([{"weight": f["weight"] + p["B"] @ p["A"], "bias": f["bias"]} for f, p in layers], x)

    def pairs(params):
        return [[pair["A"], pair["B"]] for pair in params]

    def balance(params, _):
        chains = [B.balanced([pair["A"], pair["B"]], "nearest") for pair in params]
        return [{"A": A, "B": Bm} for A, Bm in chains]

    def imbalance(params):
        """‖A A* − B* B‖/(‖A‖² + ‖B‖²), of the layer in the middle."""
        A, Bm = np.asarray(params[1]["A"], float), np.asarray(params[1]["B"], float)
        return np.linalg.norm(A @ A.T - Bm.T @ Bm) / (np.sum(A**2) + np.sum(Bm**2))

    task = Task(adapted, {"chains": pairs}, steps, goal=0.3, balance=balance)
    whole = trainer(Task(lambda p, _, x: mlp(p, x), {}, 500, 0.0), "adam", Method("none"))
    warm = trainer(Task(adapted, {}, 20, 0.0), "adam", Method("none"))
    starts, upright = {"B = 0": {}, "c = 10": {}, "c = 30": {}}, []
    for seed in [*REPORTED, *TUNED]:
        key = jax.random.key(1000 + seed)
        found = whole(fb.networks.mlp((64, 128, 128, 10), "relu", key=key)[1], None, digits(seed), 3e-3, key)
        frozen, data = found["params"], digits(seed, turned=True)
        upright.append([float(found["error"]), float(mistakes(task, zero(frozen, key), frozen, data["x"], data["y"]))])
        started = warm(zero(frozen, key), frozen, data, 3e-3, key)["params"]
        starts["B = 0"][seed] = (zero(frozen, key), frozen, data)
        for c in (10, 30):
            moved = [{"A": c * pair["A"], "B": pair["B"] / c} for pair in started]
            starts[f"c = {c}"][seed] = (moved, frozen, data)
    print("error upright, and turned before adapting:", np.median(upright, axis=0), flush=True)
    methods = [
        Method("none"),
        *(Method(f"every {k}", k) for k in (1, 10, 100)),
        Method("every 10, reset", 10, "reset"),
        Method("every 10, keep", 10, "keep"),
        Method("once", once=True),
        Method("once, every 10", 10, once=True),
        Method("LoRA+", ratio=LORA_PLUS),
        Method("LoRA+, every 10", 10, ratio=LORA_PLUS),
        Method("LoRA+, once", ratio=LORA_PLUS, once=True),
    ]
    return {
        "steps": steps,
        "goal": task.goal,
        "before": np.median(upright, axis=0).tolist(),
        "rows": study(task, starts, ("sgd", "adam"), methods, imbalance),
        "overhead": overhead(task, starts["c = 10"][0], ("sgd", "adam"), methods),
    }


def zero(frozen, key, rank=4):
    """Adapters as they start: A as He has it, B = 0."""
    keys = jax.random.split(key, len(frozen))
    shapes = [layer["weight"].shape for layer in frozen]
    return [
        {"A": jax.random.normal(k, (rank, n)) * (2 / n) ** 0.5, "B": jnp.zeros((m, rank))}
        for k, (m, n) in zip(keys, shapes, strict=True)
    ]


def networks(steps=400):
    sizes = (64, *(64,) * 8, 10)
    mlp, example = fb.networks.mlp(sizes, "relu", key=jax.random.key(0))
    rescaling = B.rescaling(mlp, example, jnp.zeros(64))

    def balance(params, x):
        return B.network((mlp, params), x)[0][1]

    task = Task(lambda p, _, x: mlp(p, x), {"rescaling": rescaling}, steps, 0.1, balance)
    starts = {"He": {}, "units": {}, "layers": {}}
    for seed in [*REPORTED, *TUNED]:
        key, data = jax.random.key(1000 + seed), digits(seed)
        rng = np.random.default_rng(1000 + seed)
        layers = [
            {"weight": jax.random.normal(k, (n, m)) * (2 / m) ** 0.5, "bias": jnp.zeros(n)}
            for k, m, n in zip(jax.random.split(key, len(sizes) - 1), sizes[:-1], sizes[1:], strict=True)
        ]
        logs = jnp.asarray(1.5 * rng.normal(size=rescaling.n_units), jnp.float32)
        factors = np.exp(1.5 * rng.normal(size=len(layers)))
        starts["He"][seed] = (layers, None, data)
        starts["units"][seed] = (rescaling.exponential(logs, layers), None, data)
        scaled = [
            layer | {"weight": jnp.float32(c) * layer["weight"]} for c, layer in zip(factors, layers, strict=True)
        ]
        starts["layers"][seed] = (scaled, None, data)

    @jax.jit
    def imbalance(params):
        """√Σμ²/|W|² of what can be rescaled."""
        return jnp.linalg.norm(rescaling.moment_map(params)) / sum(jnp.sum(w**2) for w in jax.tree.leaves(params))

    methods = [
        Method("none"),
        *(Method(f"every {k}", k) for k in (1, 10, 100)),
        Method("once", once=True),
        Method("once, every 10", 10, once=True),
    ]
    rules = ("sgd", "momentum", "adam")
    return {
        "steps": steps,
        "goal": task.goal,
        "rows": study(task, starts, rules, methods, lambda p: float(imbalance(p))),
        "overhead": overhead(task, starts["He"][0], rules, methods),
    }


PARTS = {"adapters": adapters, "networks": networks}


def written(value):
    """What JSON can hold, to six digits: null for the loss of a run that broke down."""
    if isinstance(value, dict):
        return {name: written(part) for name, part in value.items()}
    if isinstance(value, list):
        return [written(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rebalancing.json"))
    arguments = parser.parse_args()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.parts:
        began = time.perf_counter()
        results[name] = PARTS[name](arguments.steps) | {"seconds": time.perf_counter() - began}
        results["machine"] = runner.machine()
        arguments.out.write_text(json.dumps(written(results)) + "\n")


if __name__ == "__main__":
    main()
