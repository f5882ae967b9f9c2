"""Reports: figures for papers, interactive figures, and an HTML page that works offline.

Drawing needs the extra `report` (matplotlib, plotly, jinja2), imported when first used: `pip install
'fibration[report]'`.
"""

from ._fidelity_page import fidelity_page, three_sentences
from ._fidelity_plots import fidelity_plots
from ._matplotlib import save_figures, summary_figure, to_matplotlib
from ._page import Page, Table, write_page
from ._plot import Line, Plot, Series
from ._plotly import to_plotly

__all__ = [
    "Line",
    "Page",
    "Plot",
    "Series",
    "Table",
    "fidelity_page",
    "fidelity_plots",
    "save_figures",
    "summary_figure",
    "three_sentences",
    "to_matplotlib",
    "to_plotly",
    "write_page",
]
