"""Reports: a study's figures, and an HTML page that works offline.

Drawing needs the extra `report` (matplotlib, plotly, jinja2), imported when first used: `pip install
'fibration[report]'`. The figures themselves are `fibration.plots`.
"""

from ._fidelity_page import fidelity_page, three_sentences
from ._fidelity_plots import fidelity_plots, summary_figure
from ._page import Page, Table, write_page

__all__ = [
    "Page",
    "Table",
    "fidelity_page",
    "fidelity_plots",
    "summary_figure",
    "three_sentences",
    "write_page",
]
