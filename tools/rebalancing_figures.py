"""Draw docs/images/rebalancing-*.png from benchmarks/results/rebalancing.json.

python tools/rebalancing_figures.py [--out docs/images]
"""

import argparse
import json
from pathlib import Path

import numpy as np

import fibration as fb

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "rebalancing.json"
COLOURS = {"none": 4, "every 10": 3, "once": 1, "once, every 10": 2, "LoRA+": 5, "every 1": 6}
NAMES = {
    "none": "never balanced",
    "once": "balanced at the start",
    "every 1": "after every step",
    "every 10": "after every 10th step",
    "once, every 10": "at the start and after every 10th step",
    "LoRA+": "LoRA+, never balanced",
}
RULES = {"sgd": "SGD", "momentum": "Momentum", "adam": "Adam"}


def panel(part, rule, start, methods, good, y_range):
    """Draw the median loss against gradients from one start, and in grey from a good one."""
    found = {(row["rule"], row["start"], row["method"]): row["median loss"] for row in part["rows"]}
    curves = [("ordinary start, never balanced", found[rule, good, "none"], 0)]
    curves += [
        (NAMES[method], found[rule, start, method], COLOURS[method])
        for method in methods
        if (rule, start, method) in found
    ]
    series = tuple(
        fb.plots.Series(name, np.arange(1, len(losses) + 1) * 10.0, np.array(losses, float), colour, wide=colour == 0)
        for name, losses, colour in curves
    )
    return fb.plots.Plot(
        RULES[rule], "", "gradients", "training loss, median of 8 seeds", series, y_log=True, y_range=y_range
    )


def adapters(results):
    """From the worst start, c = 30."""
    methods = ("none", "LoRA+", "every 10", "every 1", "once", "once, every 10")
    return [panel(results["adapters"], rule, "c = 30", methods, "B = 0", (0.008, 4.0)) for rule in ("sgd", "adam")]


def networks(results):
    """From rescaled units, the function being the same."""
    methods = ("none", "every 10", "every 1", "once", "once, every 10")
    lowest = {"sgd": 0.002, "momentum": 0.0005, "adam": 0.00005}
    return [panel(results["networks"], rule, "units", methods, "He", (low, 4.0)) for rule, low in lowest.items()]


FIGURES = {"adapters": (adapters, (9.6, 4.4)), "networks": (networks, (10.4, 4.2))}


def main():
    """Draw the figures, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("names", nargs="*", help=f"of {', '.join(FIGURES)}; all by default")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text())
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or FIGURES:
        draw, size = FIGURES[name]
        figure = fb.plots.to_matplotlib(draw(results), size=size)
        figure.savefig(arguments.out / f"rebalancing-{name}.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
