"""One HTML file that works offline: interactive plots, downloads, and facts."""

import base64
import hashlib
import importlib.resources
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import ShapeError
from ..plots import Plot, to_matplotlib
from ..plots._extra import report_extra
from ..plots._matplotlib import render
from ..plots._write import write_atomically
from ._figures import HeatMap, Panels, screen

# Every address in plotly.js (map tiles, fonts, licences, its own service) except the names of XML dialects.
ADDRESS = re.compile(r"(?:https?|wss?|ftp)://(?!www\.w3\.org/)[^\s\"'`<>()\\]*")
# plotly.js has a button that uploads a chart to its maker's service, on by default since plotly 7: never here.
CONFIG: dict[str, Any] = {
    "displaylogo": False,
    "displayModeBar": True,
    "responsive": True,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["lasso2d", "select2d"],
}
_FEW_BUTTONS = ["zoomIn2d", "zoomOut2d", "autoScale2d", "toImage"]


@dataclass(frozen=True)
class Table:
    """A table of facts: a title, the names of its columns (none for names and values), and rows of text.

    On the page a table with columns can be sorted by each of them and, if it is long, filtered. `note`: a sentence
    under the title; `links`: for a text in the first column, the `anchor` of what it leads to on this page.

    **Raises:** `ShapeError` if a row has more or fewer cells than there are columns.

    ```python
    >>> import fibration as fb
    >>> fb.report.Table("Sizes", (), (("parameters", "2,410"),)).rows[0]
    ('parameters', '2,410')

    ```
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    links: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        width = len(self.columns) or 2
        for row in self.rows:
            if len(row) != width:
                raise ShapeError(
                    f"table {self.title!r} has a row of {len(row)} cells", f"{width} cells in each", "fill the row"
                )


@dataclass(frozen=True)
class Traceback:
    """What went wrong, folded under a title; `anchor`: the name that links of the page use."""

    title: str
    text: str
    anchor: str


@dataclass(frozen=True)
class Page:
    """A page: a title, a few sentences that say what was found, plots, and tables of facts.

    `errors`: folded texts at its end; `dashboard`: plots stand beside one another where there is room, a list of
    contents comes first, and downloads of plots are made when they are asked for, by the browser.

    ```python
    >>> import fibration as fb
    >>> fb.report.Page("Title", ("What was found.",)).plots
    ()

    ```
    """

    title: str
    lead: tuple[str, ...]
    plots: tuple[Plot | HeatMap | Panels, ...] = ()
    tables: tuple[Table, ...] = ()
    errors: tuple[Traceback, ...] = ()
    dashboard: bool = False


def write_page(page: Page, path: str | PathLike[str]) -> Path:
    """Write a page as one HTML file that opens by double-click and never touches the network.

    Every plot can be zoomed and downloaded as PNG and SVG. The file (about 5 MB, most of it plotly.js) contains no
    address of another machine, and its content security policy forbids every request. `path`: its directory is made if
    it is absent; an existing file is replaced in one step.

    **Returns:** the file's path.

    **Raises:** `OutputDirectoryError` if the file cannot be written; `MissingExtraError` without the extra `report`.

    ```python
    >>> import tempfile
    >>> import fibration as fb
    >>> fb.report.write_page(fb.report.Page("Title", ("Found.",)), tempfile.mkdtemp() + "/page.html").name
    'page.html'

    ```
    """
    return write_atomically(Path(path), page_html(page).encode("utf-8"))


def page_html(page: Page) -> str:
    """Make the text of the HTML file that `write_page` writes.

    **Raises:** `MissingExtraError` without the extra `report`.

    ```python
    >>> import fibration as fb
    >>> "<h1>Title</h1>" in fb.report.page_html(fb.report.Page("Title", ("Found.",)))
    True

    ```
    """
    with report_extra():
        import jinja2
        from markupsafe import Markup
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["tight"] = _tight
    # Every page scripts its tables, and those with plots have plotly too.
    scripts = [_plotly() if page.plots else "", _part("page.js")]
    return environment.from_string(_part("page.html.j2")).render(
        page=page,
        figures=[_figure(plot, place, page.dashboard) for place, plot in enumerate(page.plots, 1)],
        style=Markup(_part("page.css")),  # noqa: S704  (no text of the user's)
        scripts=[Markup(script) for script in scripts],  # noqa: S704
        hashes=[_hash(script) for script in scripts],
    )


@cache
def _plotly() -> str:
    with report_extra():
        from plotly.offline import get_plotlyjs
    return _inline(get_plotlyjs())


def _part(name: str) -> str:
    """Read a file of this package."""
    return importlib.resources.files(__package__ or __name__).joinpath(name).read_text("utf-8")


def _figure(figure: Plot | HeatMap | Panels, place: int, dashboard: bool) -> dict[str, Any]:
    """Collect what the template shows of one figure."""
    stem = f"{place}-{_stem(figure.title)}"
    config: dict[str, Any] = {**CONFIG, "toImageButtonOptions": {"filename": stem, "scale": 2}}
    if dashboard:
        config["modeBarButtonsToRemove"] = [*CONFIG["modeBarButtonsToRemove"], *_FEW_BUTTONS]
    return {
        "title": figure.title,
        "caption": figure.caption,
        "id": f"plot-{place}",
        "span": not isinstance(figure, Plot) and figure.span,
        "data": {**screen(figure), "config": config},
        "downloads": _downloads(figure, stem) if isinstance(figure, Plot) and not dashboard else [],
    }


def _downloads(plot: Plot, stem: str) -> list[dict[str, str]]:
    """Render the files that stand in the page."""
    for_paper = to_matplotlib(plot)
    kinds = {"png": "image/png", "svg": "image/svg+xml"}
    return [
        {
            "name": f"{stem}.{kind}",
            "label": kind.upper(),
            "address": f"data:{mime};base64,{base64.b64encode(render(for_paper, kind)).decode()}",
        }
        for kind, mime in kinds.items()
    ]


def _stem(title: str) -> str:
    """Make a file's name out of a title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "plot"


def _tight(text: str) -> str:
    """Keep formulas and numbers with their signs on one line."""
    text = re.sub(r" ([=−]) ", "\u00a0\\1\u00a0", text).replace(" %", "\u00a0%")
    return text.replace("|θ", "|\u2060θ")  # a word joiner


def _inline(script: str) -> str:
    """Make a script fit to stand inside a page: without addresses, and without what would end the element."""
    script = ADDRESS.sub("about:blank", script.replace("\r\n", "\n").replace("\r", "\n"))
    return script.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _hash(script: str) -> str:
    """Name a script in a content security policy."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"
