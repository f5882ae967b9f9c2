"""`fibration demo` and `fibration reproduce`: what the library shows of itself, and papers' experiments."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .. import plots, report, study
from ._common import check_before_work


class Model(StrEnum):
    """The networks of Elkabetz and Cohen's experiments, as `--model` takes them."""

    LINEAR = "linear"
    RELU = "relu"
    CONV = "conv"
    CONV_POOL = "conv-pool"


def demo(
    out: Annotated[Path, typer.Option(help="The directory for the page, the figures and the runs.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A smaller network and a shorter time.")] = False,
) -> None:
    """Is gradient descent following gradient flow? Run both on handwritten digits, and draw a page."""
    check_before_work(out)
    file = study.template("demo-quick" if quick else "demo")
    with study.ProgressBar() as bar:
        outcome = study.run_study(file, out / "store", retry=True, progress=bar.task)
    result = study.fidelity_of(study.Store(out / "store").record(next(iter(outcome.outcomes))))
    page = report.write_page(report.fidelity_page(result), out / "index.html")
    plots.save_figures(report.fidelity_plots(result), out / "figures")
    for sentence in report.three_sentences(result):
        print(sentence)
    print(f"\nThe page: {page.resolve()}")


def elkabetz_cohen(
    model: Annotated[Model, typer.Option(help="The network.")] = Model.LINEAR,
    mnist: Annotated[
        Path | None, typer.Option(help="The directory of MNIST's training files; by default the bundled digits.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The directory to write to; by default elkabetz-cohen-MODEL.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="200 images, 1,000 steps, ratios 2 and 5.")] = False,
    samples: Annotated[int | None, typer.Option(help="The number of images, 1000 in the paper.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the largest step size, 10,000 in the paper.")] = None,
    step_size: Annotated[float, typer.Option(help="The largest step size.")] = 1e-3,
    ratio: Annotated[
        list[int] | None,
        typer.Option(help="How many times smaller the other step sizes are; repeatable. 2, 5, 10, 20 in the paper."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of the initial parameters.")] = 1,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A directory for checkpoints: the same command goes on where one was killed.")
    ] = None,
) -> None:
    """How far is gradient descent from gradient flow? Elkabetz and Cohen's experiments (arXiv 2107.06608)."""
    out = Path(f"elkabetz-cohen-{model.value}") if out is None else out
    check_before_work(out)
    with study.ProgressBar() as bar:
        result = study.elkabetz_cohen(
            model.value,
            mnist=mnist,
            samples=samples,
            step_size=step_size,
            steps=steps,
            ratios=ratio,
            seed=seed,
            quick=quick,
            checkpoint=checkpoint,
            progress=bar.task,
        )
    numbers = json.dumps(result.to_xarray().to_dict(), ensure_ascii=False)
    (out / "numbers.json").write_text(numbers, "utf-8")  # `xarray.Dataset.from_dict` reads it
    page = report.write_page(report.elkabetz_cohen_page(result), out / "index.html")
    plots.save_figures(report.elkabetz_cohen_plots(result), out / "figures")
    for sentence in report.elkabetz_cohen_sentences(result):
        print(sentence)
    print(f"\nThe page: {page.resolve()}")
