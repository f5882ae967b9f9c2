"""The pages of one run and of two: their numbers are the records', whatever is missing, infinite or damaged."""

import json
import math

import numpy as np
import pytest

import study_records
from fibration import report
from fibration.study import Store
from study_pages import Reader, swept, table

__all__ = ["swept"]  # a fixture


@pytest.fixture
def one(tmp_path):
    """Put one run into a store of its own."""

    def put(point, summary, curves, name="store"):
        store = Store(tmp_path / name, create=True)
        with store.claim(point) as run:
            run.finish(summary, curves)
        return store.records()[-1]

    return put


# A run


def test_flows_stand_against_descents(swept):
    record = swept[0][1]
    page = report.run_page(record)
    cost = next(plot for plot in page.plots if plot.title == "Cost: gradient flow and gradient descent")
    assert [series.name for series in cost.series] == [
        "flow (gradient flow)",
        "slow (gradient descent, step size 0.01)",
    ]
    for series, name in zip(cost.series, ("flow.cost", "slow.cost"), strict=True):
        np.testing.assert_array_equal(series.x, record.curves[name]["x"])
        np.testing.assert_array_equal(series.y, record.curves[name]["y"])
    steps = next(plot for plot in page.plots if plot.title == "Cost: optimisers")
    assert (steps.x_label, [series.name for series in steps.series]) == ("steps", ["adam (adam)"])
    distance = next(plot for plot in page.plots if plot.title == "Distance from the flow")
    assert [(series.name, series.dash) for series in distance.series] == [
        ("slow: distance", "solid"),
        ("slow: certified bound", "dashed"),
    ]
    np.testing.assert_array_equal(distance.series[1].y, record.curves["slow.bound"]["y"])
    spectra = next(plot for plot in page.plots if plot.title == "Singular values of the differential")
    assert [series.name for series in spectra.series] == ["start", "end of flow"]


def test_levels_are_two_over_the_step_size(one):
    times = [0.0, 1.0, 2.0]

    def curve(*values):
        return {"x": times, "y": list(values)}

    point = study_records.point()
    summary = {"flow.cost": 1.0, "slow.cost": 1.0, "slow.step_size": 0.4}
    curves = {"flow.sharpness": curve(2.0, 4.0, 4.5), "slow.sharpness": curve(2.0, 4.0, 5.5)}
    sharpness = next(plot for plot in report.run_page(one(point, summary, curves)).plots if "Sharpness" in plot.title)
    assert [level.value for level in sharpness.levels] == [2 / 0.4]
    far = one(point, {**summary, "slow.step_size": 1e-3}, curves, "far")
    sharpness = next(plot for plot in report.run_page(far).plots if "Sharpness" in plot.title)
    assert sharpness.levels == ()
    assert "slow: 2/0.001 = 2,000" in sharpness.caption


def test_numbers_and_words_of_a_run(swept):
    record = next(r for r in swept[0] if r.status == "done" and r.summary["slow.ended"] == "nonfinite")
    page = report.run_page(record)
    assert "Diverged: slow." in page.lead
    runs = table(page, "Flows and descents")
    assert [row[0] for row in runs.rows] == ["flow", "slow", "adam"]
    slow = dict(zip(runs.columns, runs.rows[1], strict=True))
    assert slow["ended"].startswith("diverged")
    assert slow["final cost"] == "∞"
    assert slow["step size"] == "0.2"
    certificate = table(page, "Certificates").rows[0]
    assert certificate[0] == "slow"
    assert certificate[-1] == record.summary["slow.certificate"]
    ranks = {row[0]: row[1:3] for row in table(page, "Rank of the differential").rows}
    assert ranks["start"] == ("12", "12")
    everything = dict(table(page, "All numbers").rows)
    assert set(everything) == set(record.summary)
    assert everything["slow.distance_relative"] == "not a number"
    assert any("separable, certified, costs 1 × 10⁻²⁹" in sentence for sentence in page.lead)
    assert dict(table(page, "What was run").rows)["network.hidden"] == "64"


def test_a_diverging_descent_does_not_set_the_scale(swept):
    record = next(r for r in swept[0] if r.status == "done" and r.summary["slow.ended"] == "nonfinite")
    cost, distance = report.run_page(record).plots[0], report.run_page(record).plots[2]
    assert distance.title == "Distance from the flow"
    assert cost.y_range[1] == 100.0  # a hundred times the cost at the start
    assert "cut off" in cost.caption


@pytest.mark.parametrize("status", ["failed", "interrupted", "damaged"])
def test_runs_without_results(swept, status):
    record = next(record for record in swept[0] if record.status == status)
    page = report.run_page(record)
    text = report.page_html(page)
    assert record.id in text
    if status == "interrupted":
        assert page.errors == ()
        assert "was interrupted" in page.lead[0]
        return
    assert page.errors[0].text == record.error.rstrip()
    if status == "failed":
        assert "no parameters can fit both of rows 4 and 9" in page.lead[0]
        assert "File " in page.errors[0].text


def test_missing_and_strange_numbers(one):
    strange = {
        "flow.cost": math.nan,
        "slow.cost": None,
        "adam.cost": "none",
        "slow.bound": -math.inf,
        "slow.distance": 0.0,
        "slow.step_size": 0.0,
        "start.rank": math.inf,
        "minimizer.cost": math.nan,
        "minimizer": None,
        "parameters": math.nan,
        "": 1,
        "no run.cost": True,
    }
    curves = {
        "flow.cost": {"x": [], "y": []},
        "slow.cost": {"x": [0.0, 1.0, math.inf], "y": [math.nan, 0.0, -1.0]},
        "slow.distance": {"x": [0.0], "y": [0.0]},
        "slow.sharpness": {"x": [0.0, 1.0], "y": [math.inf, math.nan]},
        "start.singular_values": {"x": [1.0, 2.0], "y": [0.0, 0.0]},
    }
    record = one(study_records.point(), strange, curves)
    for page in (
        report.run_page(record),
        report.compare_page(record, record),
        report.study_page("S", {"seed": (0, 1)}, [record]),
        report.study_page("S", {"network.hidden": ([4], [8]), "loss": ("a", "squared_error"), "seed": (0,)}, [record]),
    ):
        for data in Reader(report.page_html(page)).data:
            assert "NaN" not in data
            json.loads(data, parse_constant=pytest.fail)


def test_a_run_of_something_else(one):
    record = one({"width": 3}, {"error": 0.5, "walk.cost": 2.0}, {"walk.cost": {"x": [0, 1], "y": [4.0, 2.0]}})
    page = report.run_page(record)
    assert page.plots[0].series[0].y.tolist() == [4.0, 2.0]
    assert dict(table(page, "All numbers").rows) == {"error": "0.5", "walk.cost": "2"}
    assert dict(table(page, "What was run").rows) == {"width": "3"}


# Two runs


def test_two_runs_differ_in_what_differs(swept):
    first, second = (swept[0][i] for i in (0, 8))
    page = report.compare_page(first, second)
    assert table(page, "What differs").rows == (("network.hidden", "4", "8"),)
    assert "They differ in network.hidden (4 and 8)." in page.lead
    rows = {row[0]: row[1:] for row in table(page, "Numbers").rows}
    back = {row[0]: row[1:] for row in table(report.compare_page(second, first), "Numbers").rows}
    assert set(rows) == set(first.summary) | set(second.summary)
    assert rows["parameters"] == ("20", "40", "20", "100 %")
    assert back["parameters"] == ("40", "20", "−20", "−50 %")
    assert rows["slow.step_size"] == ("0.01", "0.01", "0", "0 %")
    assert rows["flow.ended"] == ("completed", "completed", "–", "–")
    cost = page.plots[0]
    assert [(series.name.partition(" (")[0], series.dash) for series in cost.series] == [
        ("first, flow", "solid"),
        ("first, slow", "solid"),
        ("second, flow", "dashed"),
        ("second, slow", "dashed"),
    ]
    assert cost.series[0].colour == cost.series[2].colour != cost.series[1].colour
    np.testing.assert_array_equal(cost.series[2].y, second.curves["flow.cost"]["y"])


def test_a_run_does_not_differ_from_itself(swept):
    page = report.compare_page(swept[0][0], swept[0][0])
    assert "They were asked for the same." in page.lead
    assert {row[3] for row in table(page, "Numbers").rows} <= {"0", "–"}


def test_a_run_beside_one_without_results(swept):
    failed = next(record for record in swept[0] if record.status == "failed")
    damaged = next(record for record in swept[0] if record.status == "damaged")
    page = report.compare_page(failed, damaged)
    assert [error.text for error in page.errors] == [failed.error.rstrip(), damaged.error.rstrip()]
    assert report.page_html(page)
