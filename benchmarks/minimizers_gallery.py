"""Minimisers written down on real data, beside what else one would fit: iris, wine and digits.

One stratified split of 70 and 30 per cent; features standardised on the training part, those constant there left out.
`cost` is the class-weighted cost on the training part, for those that have outputs with unit vectors for targets.

    python benchmarks/minimizers_gallery.py [--out benchmarks/results/minimizers_gallery.json]
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import fibration as fb
from minimizers import RATE, STEPS, descend, machine

SEEDS = 3
RIVALS = {
    "logistic regression": lambda: LogisticRegression(max_iter=10_000),
    "linear SVM": lambda: LinearSVC(max_iter=100_000),
    "nearest class mean": NearestCentroid,
}


def split(name):
    """Split and standardise a data set."""
    inputs, labels = getattr(fb.datasets, name)()
    train, test, own, others = train_test_split(inputs, labels, test_size=0.3, random_state=0, stratify=labels)
    kept = np.ptp(train, axis=0) > 0
    scaler = StandardScaler().fit(train[:, kept])
    return scaler.transform(train[:, kept]), own, scaler.transform(test[:, kept]), others


def timed(make):
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = make()
    return found, time.perf_counter() - began, sorted({str(one.message) for one in caught})


def scores(predict, data):
    train, own, test, others = data
    return {"train": float(np.mean(predict(train) == own)), "test": float(np.mean(predict(test) == others))}


def written_down(data, name, **options):
    found, seconds, said = timed(lambda: fb.minimizers.construct(data[0], data[1], **options))
    return found, {
        "model": name,
        "method": found.method,
        "certified": found.certified,
        "margin": found.margin if found.certified else None,
        "condition": max(layer.condition for layer in found.layers[1:]),
        "cost": found.cost,
        "seconds": seconds,
        **scores(found.predict, data),
        "attempts": [f"{attempt}" for attempt in found.attempts],
        "warnings": said,
    }


def trained(data, sizes):
    """Train a network of the same shape: the best in training cost of a few random starts."""
    params, values, seconds = descend(sizes, data[0], data[1], SEEDS, seed=0)
    best = int(np.argmin(values[-1]))
    chosen = jax.tree.map(lambda leaf: leaf[best], params)
    apply, _ = fb.networks.mlp(sizes, "relu", key=jax.random.key(0))
    outputs = jax.jit(jax.vmap(apply, in_axes=(None, 0)))

    def predict(inputs):
        return np.argmax(np.asarray(outputs(chosen, inputs)), axis=1)

    costs = np.sqrt(values[-1]).tolist()
    row = {"model": "trained network of that shape", "cost": costs[best], "costs": costs, "seconds": seconds}
    return row | scores(predict, data) | {"steps": STEPS, "learning rate": RATE, "starts": SEEDS}


def gallery(name):
    data = split(name)
    found, row = written_down(data, "construct")
    rows = [row, written_down(data, "best affine map", method="affine")[1]]
    for rival, make in RIVALS.items():
        model, seconds, said = timed(lambda make=make: make().fit(data[0], data[1]))
        rows.append({"model": rival, "seconds": seconds, **scores(model.predict, data), "warnings": said})
    rows.append(trained(data, found.apply.sizes))
    conditions = found.conditions
    return {
        "classes": len(found.classes),
        "features": data[0].shape[1],
        "samples": [len(data[1]), len(data[3])],
        "shape": list(found.apply.sizes),
        "noise to signal": conditions.noise_to_signal,
        "noise bound": conditions.noise_bound,
        "radius over least separation": conditions.radius / conditions.least_separation,
        "rows": rows,
    }


def markdown(name, facts):
    """Write a data set's table."""
    n, m = facts["samples"]
    title = f"\n{name}: {facts['classes']} classes, {facts['features']} features, {n} samples to train and {m} to test"
    lines = [title, "", "| model | cost | train | test | seconds |", "|---|---|---|---|---|"]
    for row in facts["rows"]:
        kind = f" ({row['method']}{', certified' if row['certified'] else ''})" if row["model"] == "construct" else ""
        cost = f"{row['cost']:.3g}" if "cost" in row else "–"
        lines.append(
            f"| {row['model']}{kind} | {cost} | {row['train']:.3f} | {row['test']:.3f} | {row['seconds']:.2g} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=("iris", "wine", "digits"), default=["iris", "wine", "digits"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "minimizers_gallery.json")
    arguments = parser.parse_args()
    done = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.data:
        done[name] = gallery(name) | {"machine": machine()}
        print(markdown(name, done[name]), flush=True)
        arguments.out.parent.mkdir(exist_ok=True)
        arguments.out.write_text(json.dumps(done, indent=1) + "\n")


if __name__ == "__main__":
    main()
