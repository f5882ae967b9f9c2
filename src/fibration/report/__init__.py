"""Reports: a study's figures, and an HTML page that works offline.

Drawing needs the extra `report` (matplotlib, plotly, jinja2), imported when first used: `pip install
'fibration[report]'`. The figures themselves are `fibration.plots`.
"""

from ._compare_page import compare_page
from ._elkabetz_cohen import elkabetz_cohen_page, elkabetz_cohen_sentences, elkabetz_cohen_table
from ._elkabetz_cohen_plots import elkabetz_cohen_figure, elkabetz_cohen_plots, relu_order_plots
from ._fidelity_page import fidelity_page, three_sentences
from ._fidelity_plots import fidelity_plots, summary_figure
from ._figures import HeatMap, Panels
from ._page import Page, Table, Traceback, page_html, write_page
from ._run_page import run_page
from ._serve import serve
from ._store_pages import page_of
from ._study_page import study_page
from ._weights_page import weights_page, weights_sentences, weights_tables

__all__ = [
    "HeatMap",
    "Page",
    "Panels",
    "Table",
    "Traceback",
    "compare_page",
    "elkabetz_cohen_figure",
    "elkabetz_cohen_page",
    "elkabetz_cohen_plots",
    "elkabetz_cohen_sentences",
    "elkabetz_cohen_table",
    "fidelity_page",
    "fidelity_plots",
    "page_html",
    "page_of",
    "relu_order_plots",
    "run_page",
    "serve",
    "study_page",
    "summary_figure",
    "three_sentences",
    "weights_page",
    "weights_sentences",
    "weights_tables",
    "write_page",
]
