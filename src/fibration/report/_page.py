"""One HTML file that works offline: interactive plots, downloads, and facts."""

import base64
import hashlib
import importlib.resources
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import ShapeError
from ..plots import Plot, to_matplotlib, to_plotly
from ..plots._extra import report_extra
from ..plots._matplotlib import file_stem, render
from ..plots._write import write_atomically

# Every address in plotly.js (map tiles, fonts, licences, its own service) except the names of XML dialects.
ADDRESS = re.compile(r"(?:https?|wss?|ftp)://(?!www\.w3\.org/)[^\s\"'`<>()\\]*")
# plotly.js has a button that uploads a chart to its maker's service, on by default since plotly 7: never here.
CONFIG = {
    "displaylogo": False,
    "displayModeBar": True,
    "responsive": True,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["lasso2d", "select2d"],
}
BOOT = """
for (const place of document.querySelectorAll(".plot")) {
  const figure = JSON.parse(document.getElementById(place.id + "-data").textContent);
  Plotly.newPlot(place, figure.data, figure.layout, figure.config);
}
"""


@dataclass(frozen=True)
class Table:
    """A table of facts: a title, the names of its columns (none for names and values), and rows of text.

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

    def __post_init__(self) -> None:
        width = len(self.columns) or 2
        for row in self.rows:
            if len(row) != width:
                raise ShapeError(
                    f"table {self.title!r} has a row of {len(row)} cells", f"{width} cells in each", "fill the row"
                )


@dataclass(frozen=True)
class Page:
    """A page: a title, a few sentences that say what was found, plots, and tables of facts.

    ```python
    >>> import fibration as fb
    >>> fb.report.Page("Title", ("What was found.",)).plots
    ()

    ```
    """

    title: str
    lead: tuple[str, ...]
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()


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
    with report_extra():
        import jinja2
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["tight"] = _tight
    template = importlib.resources.files(__package__ or __name__).joinpath("page.html.j2").read_text("utf-8")
    scripts = [_inline(get_plotlyjs()) if page.plots else "", BOOT]
    html = environment.from_string(template).render(
        page=page,
        figures=[_figure(plot, place) for place, plot in enumerate(page.plots, 1)],
        scripts=[Markup(script) for script in scripts],  # noqa: S704  (no text of the user's)
        hashes=[_hash(script) for script in scripts],
    )
    return write_atomically(Path(path), html.encode("utf-8"))


def _figure(plot: Plot, place: int) -> dict[str, Any]:
    """Collect what the template shows of one plot."""
    interactive: Any = to_plotly(plot)
    interactive.update_layout(title=None, margin_t=44, autosize=True)  # the page has the title as a heading
    stem = f"{place}-{file_stem(plot)}"
    config = {**CONFIG, "toImageButtonOptions": {"filename": stem, "scale": 2}}
    for_paper = to_matplotlib(plot)
    kinds = {"png": "image/png", "svg": "image/svg+xml"}
    return {
        "title": plot.title,
        "caption": plot.caption,
        "id": f"plot-{place}",
        "data": {**interactive.to_plotly_json(), "config": config},
        "downloads": [
            {
                "name": f"{stem}.{kind}",
                "label": kind.upper(),
                "address": f"data:{mime};base64,{base64.b64encode(render(for_paper, kind)).decode()}",
            }
            for kind, mime in kinds.items()
        ],
    }


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
