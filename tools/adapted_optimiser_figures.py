"""Draw docs/images/adapted-fitting.png and adapted-pinn.png from benchmarks/results/adapted_*.json.

python tools/adapted_optimiser_figures.py [--out docs/images] [fitting] [pinn]
"""

import argparse
import json
from pathlib import Path

import numpy as np

import fibration as fb

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
COLOURS = {
    "fibration": 1,
    "fibration without acceleration": 6,
    "Adam": 3,
    "optax L-BFGS": 2,
    "optimistix LM, CG": 4,
    "optimistix LM, dense QR": 5,
}


def best(rows, of):
    """Keep one row for each contender: the first seed, and Adam's best learning rate by the end of its curve."""
    kept = {}
    for row in rows:
        if "failed" in row or row.get("seed", 0) != 0:
            continue
        name = row["name"].split()[0] if row["name"].startswith("Adam") else row["name"]
        if name not in kept or row[of][-1] < kept[name][of][-1]:
            kept[name] = row
    return kept


def curves(rows, of):
    """Make a series of each contender, from the end of its first step or chunk."""
    return tuple(
        fb.plots.Series(
            "Adam, best of three rates" if name == "Adam" else row["name"],
            np.array(row["seconds"][1:]),
            np.minimum.accumulate(row[of])[1:],
            COLOURS[name],
            wide=name == "fibration",
        )
        for name, row in best(rows, of).items()
    )


def fitting():
    """Draw cost against wall time."""
    rows = json.loads((RESULTS / "adapted_fitting.json").read_text())["fitting"]
    title = "Fitting 512 points with a 2-128-128-1 network"
    caption = "Lowest cost so far; compilation left out."
    return [fb.plots.Plot(title, caption, "seconds", "cost", curves(rows, "costs"), x_log=True, y_log=True)]


def pinn():
    """Draw the error against wall time, in 2 and in 5 dimensions."""
    results = json.loads((RESULTS / "adapted_pinn.json").read_text())
    titles = {"poisson-2d": "Poisson's equation in 2-d", "poisson-5d": "in 5-d"}
    return [
        fb.plots.Plot(
            title, "", "seconds", "relative L2 error", curves(results[part], "errors"), x_log=True, y_log=True
        )
        for part, title in titles.items()
        if part in results
    ]


FIGURES = {"fitting": (fitting, (7.2, 4.6)), "pinn": (pinn, (9.6, 4.4))}


def main():
    """Draw the figures, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("names", nargs="*", help=f"of {', '.join(FIGURES)}; all by default")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or FIGURES:
        draw, size = FIGURES[name]
        figure = fb.plots.to_matplotlib(draw(), size=size)
        figure.savefig(arguments.out / f"adapted-{name}.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
