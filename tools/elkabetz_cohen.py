"""Elkabetz and Cohen's experiments for the documentation: run them, then draw their figures and print their tables.

    python tools/elkabetz_cohen.py run linear [--samples 1000] [--ratios 2 5 10 20] [--checkpoint DIR]
    python tools/elkabetz_cohen.py kinks
    python tools/elkabetz_cohen.py draw

`run` and `kinks` write numbers to `benchmarks/results/elkabetz_cohen_*.json`; `draw` turns them into
`docs/images/elkabetz-cohen-*.png`, and prints the tables of `docs/elkabetz-cohen.md`.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import xarray

import fibration as fb

ROOT = Path(__file__).resolve().parents[1]
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
MODELS = ("linear", "relu", "conv", "conv-pool")
DIGITS = 6


def rounded(value):
    """Write arrays as lists of a few digits: a file is for plots and tables, not for bits."""
    if isinstance(value, np.ndarray):
        return rounded(value.tolist())
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def save(name, numbers):
    path = RESULTS / f"elkabetz_cohen_{name}.json"
    path.write_text(json.dumps(numbers, ensure_ascii=False), "utf-8")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


def run(arguments):
    with fb.study.ProgressBar() as bar:
        study = fb.study.elkabetz_cohen(
            arguments.model,
            samples=arguments.samples,
            steps=arguments.steps,
            ratios=tuple(arguments.ratios),
            checkpoint=arguments.checkpoint,
            progress=bar.task,
        )
    fields = {field.name: rounded(getattr(study, field.name)) for field in dataclasses.fields(study)}
    save(arguments.model, fields | {"machine": {k: str(v) for k, v in fb.study.machine_facts().items()}})
    print(*fb.report.elkabetz_cohen_sentences(study), sep="\n")


def load(model):
    stored = json.loads((RESULTS / f"elkabetz_cohen_{model}.json").read_text("utf-8"))
    del stored["machine"]
    arrays = {name: np.asarray(value) for name, value in stored.items() if isinstance(value, list)}
    return fb.study.ElkabetzCohenStudy(**stored | arrays | {"ratios": tuple(stored["ratios"])})


def kinks(_arguments):
    with fb.study.ProgressBar() as bar:
        measured = fb.study.relu_order(progress=bar.task)
    numbers = measured.to_dict()
    for group in ("coords", "data_vars"):
        for variable in numbers[group].values():
            variable["data"] = rounded(variable["data"])
    save("kinks", numbers)


def draw(_arguments):
    studies = [load(model) for model in MODELS if (RESULTS / f"elkabetz_cohen_{model}.json").exists()]
    for study in studies:
        figure = fb.report.elkabetz_cohen_figure(study)
        figure.savefig(IMAGES / f"elkabetz-cohen-{study.model}.png", dpi=120, metadata={"Software": None})
        print(study.model, *fb.report.elkabetz_cohen_sentences(study), sep="\n  ")
        print(*(" | ".join(row) for row in fb.report.elkabetz_cohen_page(study).tables[1].rows), sep="\n")
    table = fb.report.elkabetz_cohen_table(studies)
    print(markdown(table.columns, table.rows))
    measured = xarray.Dataset.from_dict(json.loads((RESULTS / "elkabetz_cohen_kinks.json").read_text("utf-8")))
    figure = fb.plots.to_matplotlib(fb.report.relu_order_plots(measured), size=(10.6, 4.0))
    figure.savefig(IMAGES / "elkabetz-cohen-kinks.png", dpi=120, metadata={"Software": None})
    rows = [
        [f"{rtol:.0e}"]
        + [
            f"{measured[name].sel(activation=activation, rtol=rtol).item():{form}}"
            for activation in measured["activation"].values
            for name, form in (("steps_taken", ",d"), ("rejected", ",d"), ("error", ".1e"))
        ]
        for rtol in measured["rtol"].values
    ]
    heads = [f"{name}: {what}" for name in measured["activation"].values for what in ("steps", "rejected", "error")]
    print(markdown(["rtol", *heads], rows))
    print(measured["order"].to_pandas())


def markdown(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.add_argument("model", choices=MODELS)
    one.add_argument("--samples", type=int, default=1000)
    one.add_argument("--steps", type=int, default=10_000)
    one.add_argument("--ratios", type=int, nargs="+", default=[2, 5, 10, 20])
    one.add_argument("--checkpoint")
    one.set_defaults(do=run)
    commands.add_parser("kinks").set_defaults(do=kinks)
    commands.add_parser("draw").set_defaults(do=draw)
    arguments = parser.parse_args()
    arguments.do(arguments)
