"""`fibration balance`: weights on disk."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from .. import report, weights
from .._validation import writable_directory
from ..errors import ParameterError
from ._common import check_extra, console


class Gauge(StrEnum):
    """The choice among balanced pairs, as `--gauge` takes it."""

    NEAREST = "nearest"
    SVD = "svd"


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
    page_wide = console(180)
    for table in report.weights_tables(result, every=every):
        drawn = Table(*table.columns, title=Text(table.title), title_justify="left")
        for row in table.rows:
            drawn.add_row(*map(Text, row))
        page_wide.print(drawn)
    for sentence in (*report.weights_sentences(result), *(f"Note: {note}." for note in result.notes)):
        print(sentence)
    print(f"\nThe weights: {result.out}")
    if page is not None:
        print(f"The page: {report.write_page(report.weights_page(result), page).resolve()}")


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
    check_extra()
    if not place.is_relative_to(target):
        writable_directory(page.parent)
