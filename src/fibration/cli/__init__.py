"""The command line: parse, call, print."""

import warnings
from typing import Annotated

import jax
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import study
from .._version import __version__
from ..errors import FibrationError
from . import _balance, _reproduce, _studies
from ._common import console

app: typer.Typer = typer.Typer(
    name="fibration",
    help="The geometry of neural-network training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
reproduce: typer.Typer = typer.Typer(help="Repeat a paper's experiments.", no_args_is_help=True)
app.command()(_reproduce.demo)
for _command in (
    _studies.new,
    _studies.run,
    _studies.status,
    _studies.resume,
    _studies.report_runs,
    _studies.compare,
    _studies.list_runs,
    _studies.export,
    _studies.serve,
):
    app.command(_command.__name__.removesuffix("_runs"))(_command)
app.add_typer(reproduce, name="reproduce")
reproduce.command("elkabetz-cohen")(_reproduce.elkabetz_cohen)
app.command()(_balance.balance)


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
def doctor() -> None:
    """Print versions, devices, precision, and which extras are missing."""
    table = Table(show_header=False, box=None)
    for name, value in study.machine_facts().items():
        scripts = '; in scripts by jax.config.update("jax_enable_x64", True)' if name == "float64" else ""
        table.add_row(name, Text(f"{value}{scripts}"))
    for extra, missing in study.extras().items():
        state = "complete" if not missing else f"missing {', '.join(missing)}: pip install 'fibration[{extra}]'"
        table.add_row(f"extra {extra}", Text(state))  # not markup: an extra stands in brackets
    console(120).print(table)


def main() -> None:
    """Run the command line; an error of Fibration's own is printed without a traceback."""
    with warnings.catch_warnings():
        warnings.showwarning = _show
        try:
            app()
        except FibrationError as error:
            _say("red", type(error).__name__, error)
            raise SystemExit(1) from None


def _show(message: Warning | str, category: type[Warning], *_: object) -> None:
    """Print a warning as an error is printed: a user of the command has no use for a line of the library."""
    _say("yellow", category.__name__, message)


def _say(colour: str, name: str, message: object) -> None:
    Console(stderr=True).print(f"[bold {colour}]{name}[/]: ", end="")
    Console(stderr=True, highlight=False, markup=False).print(str(message))
