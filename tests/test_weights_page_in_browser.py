"""The page of balanced weights, opened in a real browser."""

import re

import numpy as np
import pytest

from adapters import BF16, lora_tensors, write_adapter
from fibration import report, weights
from test_page_in_browser import browser, outside, visit

__all__ = ["browser"]  # a fixture


@pytest.fixture(scope="module")
def visited(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    tensors = lora_tensors(np.random.default_rng(0), modules=14, dtype=BF16)
    tensors["base_model.model.model.layers.4.self_attn.q_proj.lora_B.weight"][:] = 0
    result = weights.balance_weights(write_adapter(folder / "adapter", tensors), folder / "out")
    page = report.weights_page(result)
    return page, *visit(browser, report.write_page(page, folder / "page.html"), folder)


def test_every_circle_of_every_plot_is_drawn(visited):
    page, dom = visited[:2]
    assert re.findall(r'<div class="plot js-plotly-plot" id="(plot-\d+)"', dom) == [f"plot-{i}" for i in range(1, 5)]
    figures = dom.split("<figure>")[1:]
    for figure, plot in zip(figures, page.plots, strict=True):
        drawn = len(re.findall(r'<path class="point', figure))
        assert drawn == sum(int(np.sum(series.y > 0)) for series in plot.series)
        for level in plot.levels:
            assert level.name in figure


def test_all_pairs_and_what_was_skipped_are_in_tables(visited):
    _, dom = visited[:2]
    for number in range(14):
        assert f"model.layers.{number}.self_attn" in dom
    assert "B is zero, as in an adapter before training" in dom


def test_nothing_fails_and_nothing_is_asked_for(visited):
    _, _, console, addresses = visited
    assert console == []
    assert outside(addresses) == set()
