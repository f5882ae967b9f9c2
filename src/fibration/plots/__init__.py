"""Plots as data, and how they are drawn: for papers by matplotlib, for the screen by plotly.

Drawing needs the extra `report`, imported when first used: `pip install 'fibration[report]'`.
"""

from ._matplotlib import save_figures, to_matplotlib
from ._plot import Line, Plot, Series
from ._plotly import to_plotly

__all__ = [
    "Line",
    "Plot",
    "Series",
    "save_figures",
    "to_matplotlib",
    "to_plotly",
]
