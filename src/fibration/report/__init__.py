"""Reports: a study's figures, and an HTML page that works offline.

Drawing needs the extra `report` (matplotlib, plotly, jinja2), imported when first used: `pip install
'fibration[report]'`. The figures themselves are `fibration.plots`.
"""

from ._elkabetz_cohen import elkabetz_cohen_page, elkabetz_cohen_sentences, elkabetz_cohen_table
from ._elkabetz_cohen_plots import elkabetz_cohen_figure, elkabetz_cohen_plots, relu_order_plots
from ._fidelity_page import fidelity_page, three_sentences
from ._fidelity_plots import fidelity_plots, summary_figure
from ._page import Page, Table, write_page
from ._weights_page import weights_page, weights_sentences, weights_tables

__all__ = [
    "Page",
    "Table",
    "elkabetz_cohen_figure",
    "elkabetz_cohen_page",
    "elkabetz_cohen_plots",
    "elkabetz_cohen_sentences",
    "elkabetz_cohen_table",
    "fidelity_page",
    "fidelity_plots",
    "relu_order_plots",
    "summary_figure",
    "three_sentences",
    "weights_page",
    "weights_sentences",
    "weights_tables",
    "write_page",
]
