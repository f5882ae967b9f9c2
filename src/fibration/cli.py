"""The command line: parse, call, print."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import jax
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from . import plots, report, study, weights
from ._validation import writable_directory
from ._version import __version__
from .errors import FibrationError, MissingExtraError, ParameterError

app: typer.Typer = typer.Typer(
    name="fibration",
    help="The geometry of neural-network training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
reproduce: typer.Typer = typer.Typer(help="Repeat a paper's experiments.", no_args_is_help=True)
app.add_typer(reproduce, name="reproduce")


class Gauge(StrEnum):
    """The choice among balanced pairs, as `--gauge` takes it."""

    NEAREST = "nearest"
    SVD = "svd"


class Model(StrEnum):
    """The networks of Elkabetz and Cohen's experiments, as `--model` takes them."""

    LINEAR = "linear"
    RELU = "relu"
    CONV = "conv"
    CONV_POOL = "conv-pool"


def _version(asked: bool) -> None:
    if asked:
        print(f"fibration {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    # Every computation of the command line is in double precision; a script chooses for itself.
    jax.config.update("jax_enable_x64", True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The directory that the page and the figures are written to.")] = Path(
        "demo"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="A smaller network and a shorter time.")] = False,
) -> None:
    """Is gradient descent following gradient flow? Run both on handwritten digits, and draw a page."""
    _check_before_work(out)
    with study.ProgressBar() as bar:
        result = study.digits_fidelity(quick=quick, progress=bar.task)
    page = report.write_page(report.fidelity_page(result), out / "index.html")
    plots.save_figures(report.fidelity_plots(result), out / "figures")
    for sentence in report.three_sentences(result):
        print(sentence)
    print(f"\nThe page: {page.resolve()}")


@reproduce.command("elkabetz-cohen")
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
    _check_before_work(out)
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


@app.command()
def balance(
    path: Annotated[Path, typer.Argument(help="A LoRA adapter's directory, a checkpoint's, or a safetensors file.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the balanced copy is to appear; nothing may be there.")
    ] = None,
    strength: Annotated[float, typer.Option(help="From 0, nothing, to 1, full balance.")] = 1.0,
    gauge: Annotated[Gauge, typer.Option(help="Which balanced pair: the nearest, or that of the SVD.")] = Gauge.NEAREST,
    page: Annotated[Path | None, typer.Option("--report", help="An HTML page with plots and all numbers.")] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace the input's files; then without --out.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Print a row for each pair, however many there are.")] = False,
) -> None:
    """Balance weights on disk: a copy that computes the same, with factors of equal size. Never unpickles."""
    if page is not None:
        _check_page(page, path, out)
    terminal = Console(stderr=True)
    with Progress(console=terminal, transient=True, disable=not terminal.is_terminal) as bars:
        line = bars.add_task("balancing", total=None)
        result = weights.balance_weights(
            path,
            out,
            strength=strength,
            gauge=gauge.value,
            in_place=in_place,
            progress=lambda done, total, _: bars.update(line, completed=done, total=total),
        )
    console = _console(180)
    for table in report.weights_tables(result, every=every):
        drawn = Table(*table.columns, title=Text(table.title), title_justify="left")
        for row in table.rows:
            drawn.add_row(*map(Text, row))
        console.print(drawn)
    for sentence in (*report.weights_sentences(result), *(f"Note: {note}." for note in result.notes)):
        print(sentence)
    print(f"\nThe weights: {result.out}")
    if page is not None:
        print(f"The page: {report.write_page(report.weights_page(result), page).resolve()}")


@app.command()
def doctor() -> None:
    """Print versions, devices, precision, and which extras are missing."""
    table = Table(show_header=False, box=None)
    for name, value in study.machine_facts().items():
        scripts = '; in scripts by jax.config.update("jax_enable_x64", True)' if name == "float64" else ""
        table.add_row(name, Text(f"{value}{scripts}"))
    for extra, missing in study.extras().items():
        state = "complete" if not missing else f"missing {', '.join(missing)}: pip install 'fibration[{extra}]'"
        table.add_row(f"extra {extra}", Text(state))  # not markup: an extra stands in brackets
    _console(120).print(table)


def _console(width: int) -> Console:
    """Print so wide that no line is folded in a file or a bug report; on a terminal, as wide as it is."""
    return Console(width=None if Console().is_terminal else width)


def _check_before_work(out: Path) -> None:
    """Say before minutes of work, not after them, what would keep the page from being written."""
    writable_directory(out)
    _check_extra()


def _check_page(page: Path, path: Path, out: Path | None) -> None:
    """Keep a page away from weights: it may be a new file beside those of the output, but never in the input."""
    place, source = page.resolve(), path.resolve()
    target = source if out is None else out.resolve()
    hidden = place.is_relative_to(target) and (source / place.relative_to(target)).exists()
    within = out is not None and place.is_relative_to(source)
    if page.suffix not in (".html", ".htm") or page.is_dir() or hidden or within:
        raise ParameterError(
            f"the page {str(page)!r}",
            "the name of a file that ends in .html, not in the input, and not one of the files that are balanced",
            "pass --report page.html",
        )
    _check_extra()
    if not place.is_relative_to(target):
        writable_directory(page.parent)


def _check_extra() -> None:
    if missing := study.extras()["report"]:
        raise MissingExtraError(
            f"{', '.join(missing)} cannot be imported", "the extra `report`", "pip install 'fibration[report]'"
        )


def main() -> None:
    """Run the command line; an error of Fibration's own is printed without a traceback."""
    try:
        app()
    except FibrationError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}[/]: ", end="")
        Console(stderr=True, highlight=False, markup=False).print(str(error))
        raise SystemExit(1) from None
