"""The command line: parse, call, print."""

from pathlib import Path
from typing import Annotated

import jax
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import plots, report, study
from ._validation import writable_directory
from ._version import __version__
from .errors import FibrationError, MissingExtraError

app: typer.Typer = typer.Typer(
    name="fibration",
    help="The geometry of neural-network training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
    # Said before a minute's work, not after it.
    writable_directory(out)
    if missing := study.extras()["report"]:
        raise MissingExtraError(
            f"{', '.join(missing)} cannot be imported", "the extra `report`", "pip install 'fibration[report]'"
        )
    with study.ProgressBar() as bar:
        result = study.digits_fidelity(quick=quick, progress=bar.task)
    page = report.write_page(report.fidelity_page(result), out / "index.html")
    plots.save_figures(report.fidelity_plots(result), out / "figures")
    for sentence in report.three_sentences(result):
        print(sentence)
    print(f"\nThe page: {page.resolve()}")


@app.command()
def doctor() -> None:
    """Print versions, devices, precision, and which extras are missing."""
    table = Table(show_header=False, box=None)
    for name, value in study.machine_facts().items():
        table.add_row(name, Text(str(value)))
    for extra, missing in study.extras().items():
        state = "complete" if not missing else f"missing {', '.join(missing)}: pip install 'fibration[{extra}]'"
        table.add_row(f"extra {extra}", Text(state))  # not markup: an extra stands in brackets
    # Wide enough that no line is folded in a file or a bug report.
    Console(width=None if Console().is_terminal else 120).print(table)


def main() -> None:
    """Run the command line; an error of Fibration's own is printed without a traceback."""
    try:
        app()
    except FibrationError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}[/]: ", end="")
        Console(stderr=True, highlight=False, markup=False).print(str(error))
        raise SystemExit(1) from None
