"""The pages of studies and of runs: their numbers are the records', whatever is missing, infinite or damaged."""

import dataclasses
import html.parser
import json
import math
import statistics
from collections import Counter

import numpy as np
import pytest

import study_records
from fibration import plots, report
from fibration.errors import ShapeError
from fibration.report import HeatMap, Panels
from fibration.report._figures import screen
from fibration.report._sweep import sweep
from fibration.study import Store

AXES = {"network.hidden": ([4], [8], [64]), "runs.slow.step_size": (0.01, 0.2), "data.spread": (0.1,)}
EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"

DAMAGED = 18


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of 24 points, of which some failed, one was interrupted and one is damaged, and of 24 more not begun."""
    folder = tmp_path_factory.mktemp("swept")
    store, axes = study_records.sweep(folder / "store", AXES, seeds=4)
    order = [record.id for record in store.records()]
    study_records.damage(store, store.records()[DAMAGED])
    axes["data.spread"] = (0.1, 0.5)
    return sorted(store.records(), key=lambda record: order.index(record.id)), axes


@pytest.fixture(scope="module")
def page(swept):
    records, axes = swept
    return report.study_page("Name", axes, records, "What it is about.")


@pytest.fixture
def one(tmp_path):
    """Put one run into a store of its own."""

    def put(point, summary, curves, name="store"):
        store = Store(tmp_path / name, create=True)
        with store.claim(point) as run:
            run.finish(summary, curves)
        return store.records()[-1]

    return put


def figures(page, kind):
    return [figure for figure in page.plots if isinstance(figure, kind)]


def table(page, title):
    (found,) = [table for table in page.tables if table.title == title]
    return found


class Reader(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.data, self._inside = [], [], [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self._inside = "json" if ("type", "application/json") in attrs else tag

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "json":
            self.data.append(data)
        elif self._inside not in ("script", "style"):
            self.text.append(data)


# A study


def test_the_page_says_how_many_points_are_done(page, swept):
    counts = Counter(record.status for record in swept[0])
    assert counts == {"done": 19, "failed": 3, "interrupted": 1, "damaged": 1}
    assert page.lead[0] == "What it is about."
    assert page.lead[1] == (
        "Of 48 points 19 are done, 1 was interrupted, 3 failed, 1 is damaged and 24 have not begun."
    )


def test_heat_maps_are_medians_of_the_records(page, swept):
    records, axes = swept
    for title, name in (("Final cost of flow", "flow.cost"), ("Sharpness at the end of slow", "slow.sharpness_end")):
        (figure,) = [one for one in page.plots if one.title == title]
        assert (figure.x_label, figure.y_label) == ("network.hidden", "runs.slow.step_size")
        for column, hidden in enumerate(axes["network.hidden"]):
            for row, step in enumerate(axes["runs.slow.step_size"]):
                members = [
                    record
                    for record in records
                    if record.point
                    and record.point["network"]["hidden"] == hidden
                    and record.point["runs"]["slow"]["step_size"] == step
                ]
                values = [record.summary[name] for record in members if name in record.summary]
                assert figure.values[row, column] == pytest.approx(statistics.median(values), rel=1e-14)
                assert figure.failed[row, column] == sum(record.status == "failed" for record in members)
        assert figure.failed.sum() == 3


def test_diverged_runs_have_a_mark_and_no_colour(page):
    (figure,) = [one for one in page.plots if one.title == "Final cost of slow"]
    # At 0.2 a descent is unstable where the sharpness is above 10: at width 64.
    assert np.isinf(figure.values).tolist() == [[False, False, False], [False, False, True]]
    shades, *marks = screen(figure)["data"]
    assert shades["z"][1][2] is None
    assert {mark["name"]: (len(mark["x"]), mark["x"][0], mark["y"][0]) for mark in marks}["not finite"] == (1, 2.0, 1.0)
    assert any("Diverged: slow in 4 of the points." in sentence for sentence in page.lead)


def test_heat_maps_are_logarithmic_where_values_spread():
    def shades(values):
        values = np.array(values, float)
        names = tuple("abcdefgh"[: values.shape[1]])
        figure = HeatMap("T", "C.", "x", "y", names, ("r",) * len(values), values, np.zeros(values.shape))
        drawn = screen(figure)
        json.dumps(drawn, allow_nan=False)
        return figure.log, drawn["data"][0]["z"]

    assert shades([[1e-6, 1e-3, 1.0]]) == (True, [[-6.0, -3.0, 0.0]])
    assert shades([[1.0, 2.0, 3.0]]) == (False, [[1.0, 2.0, 3.0]])
    assert shades([[-1.0, 1e-6, 1.0]]) == (False, [[-1.0, 1e-6, 1.0]])
    assert shades([[0.0, 1e-6, 1.0]]) == (True, [[-6.0, -6.0, 0.0]])  # zero as the smallest
    assert shades([[math.nan, math.inf, 5.0]]) == (False, [[None, None, 5.0]])
    assert shades([[math.nan, math.nan]]) == (False, [[None, None]])
    with pytest.raises(ShapeError, match="heat map 'T'"):
        HeatMap("T", "C.", "x", "y", ("a",), ("r",), np.zeros((2, 1)), np.zeros((1, 1)))


def test_small_multiples_hold_the_curves_of_the_records(page, swept):
    records, axes = swept
    (figure,) = [one for one in figures(page, Panels) if one.title == "Cost of flow over time"]
    assert [name for name, _ in figure.panels] == [f"network.hidden = {h[0]}" for h in axes["network.hidden"]]
    done = [record for record in records if record.status == "done"]
    for hidden, (_, curves) in zip(axes["network.hidden"], figure.panels, strict=True):
        of = [record for record in done if record.point["network"]["hidden"] == hidden]
        assert sorted(curve.y[-1] for curve in curves) == sorted(record.summary["flow.cost"] for record in of)
        assert {curve.name for curve in curves} == {f"runs.slow.step_size = {step}" for step in (0.01, 0.2)}
    # What a reader is told of a curve is of this curve's run.
    drawn = screen(figure)["data"]
    assert len(drawn) == len(done) == len(figure.words)
    by_id = {record.id: record for record in done}
    for trace in drawn:
        record = by_id[trace["hovertemplate"].partition("run ")[2].partition("<br>")[0]]
        assert trace["y"][-1] == pytest.approx(record.summary["flow.cost"], rel=1e-4)


def test_every_point_has_a_row_and_failures_lead_to_their_traceback(page, swept):
    records, _ = swept
    points = table(page, "Points")
    assert [row[0] for row in points.rows] == [record.id for record in records]
    column = {name: i for i, name in enumerate(points.columns)}
    for row, record in zip(points.rows, records, strict=True):
        assert row[column["status"]] == record.status
        if record.status == "damaged":
            assert row[column["network.hidden"]] == row[column["seed"]] == "–"
            continue
        assert row[column["seed"]] == str(record.seed)
        assert row[column["runs.slow.step_size"]] == str(record.point["runs"]["slow"]["step_size"])
        cost = row[column["flow: cost"]]
        assert (cost == "–") == (record.status != "done")
    failed = [record for record in records if record.status == "failed"]
    assert {row[column["error"]] for row in points.rows if row[column["status"]] == "failed"} == {
        "ValueError: no parameters can fit both of rows 4 and 9"
    }
    anchors = {error.anchor: error for error in page.errors}
    for record in failed:
        error = anchors[points.links[record.id]]
        assert error.text == record.error.rstrip()
        assert "Traceback" in error.text


def test_what_the_axes_say_is_found_in_points(tmp_path):
    store = Store(tmp_path / "store", create=True)
    networks = [{"kind": "mlp", "hidden": [4], "bias": True}, {"kind": "mlp", "hidden": [8], "bias": True}]
    for network in networks:
        point = study_records.point(data={"source": "csv", "path": "/data/a.csv", "samples": 5.0, "spread": 1})
        study_records.fill(store, {**point, "network": network, "flag": True})
    axes = {
        "network": ({"kind": "mlp"}, {"kind": "mlp", "hidden": [8]}),
        "data.path": ("b.csv", "./a.csv"),
        "data.samples": (4, 5),
        "flag": (1, True),
        "seed": (0,),
    }
    found = sweep(axes, store.records())
    places = {axis.key: axis.places.tolist() for axis in found.axes}
    # The second says more of its network; a path was made absolute; 5 is 5.0; and 1 is not True.
    assert places == {"network": [0, 1], "data.path": [1, 1], "data.samples": [1, 1], "flag": [1, 1]}
    assert found.total == 16


def test_several_runs_are_told_apart_by_what_differs(swept):
    records = [swept[0][i] for i in (0, 1, 8, DAMAGED)]  # the last is damaged and says nothing
    page = report.study_page("Several", {"seed": (0,)}, records)
    assert [row[0] for row in table(page, "What varies").rows] == ["network.hidden", "seed"]
    assert page.lead[0] == "Of 4 points 3 are done and 1 is damaged."


def test_one_axis_has_dots_and_medians(swept):
    records = [r for r in swept[0] if r.status == "done" and r.point["runs"]["slow"]["step_size"] == 0.01]
    axes = {"network.hidden": ([4], [8], [64]), "seed": (0, 1, 2, 3)}
    page = report.study_page("One axis", axes, records)
    assert not figures(page, HeatMap)
    (figure,) = [one for one in page.plots if one.title == "Final cost of each run"]
    middle, dots = [one for one in figure.series if one.name.startswith("flow")]
    assert figure.x_names == ("4", "8", "64")
    for place, hidden in enumerate(([4], [8], [64])):
        of = [r.summary["flow.cost"] for r in records if r.point["network"]["hidden"] == hidden]
        assert sorted(dots.y[dots.x == place]) == sorted(of)
        assert middle.y[place] == pytest.approx(statistics.median(of))


def test_only_seeds(swept):
    records = [r for r in swept[0] if r.status == "done"][:3]
    page = report.study_page("Seeds", {"seed": (0, 1, 2, 3)}, records)
    (figure,) = [one for one in figures(page, Panels) if one.title == "Cost of flow over time"]
    assert [len(curves) for _, curves in figure.panels] == [3]
    (figure,) = [one for one in page.plots if one.title == "Final cost of each run"]
    assert figure.x_names == ("0", "1", "2", "3")


def test_a_study_of_one_point_has_the_page_of_its_run(swept):
    record = swept[0][0]
    study = report.study_page("One", {"network.hidden": ([4],), "seed": (0,)}, [record], "About.")
    run = report.run_page(record)
    assert study.title == "One"
    assert study.lead == ("About.", *run.lead)
    assert [plot.title for plot in study.plots] == [plot.title for plot in run.plots]
    assert study.tables == run.tables


def test_nothing_has_begun(swept):
    page = report.study_page("Nothing", swept[1], [])
    assert page.lead == ("All 48 points: not begun.",)
    assert page.plots == ()
    assert "<h1>Nothing</h1>" in report.page_html(page)


def test_a_thousand_points_stay_small(swept, tmp_path):
    records = [record for record in swept[0] if record.status != "damaged"] * 44
    assert len(records) > 1000
    path = report.write_page(report.study_page("Many", swept[1], records), tmp_path / "page.html")
    assert path.stat().st_size < 10e6
    page = report.study_page("Many", swept[1], records)
    assert 4 < len(page.plots) <= 14
    for figure in figures(page, Panels):
        assert sum(len(curves) for _, curves in figure.panels) <= 200
        assert "left out" in figure.caption
    assert len(table(page, "Points").rows) == len(records)
    assert len(page.errors) == 50
    more = report.study_page("More", swept[1], records * 2)
    assert len(table(more, "Points").rows) == 2000
    assert table(more, "Points").note.startswith("The first 2,000 of 2,024 points")


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


# The file


def test_text_of_a_study_is_escaped(tmp_path):
    store = Store(tmp_path / "store", create=True)
    for seed in (0, 1):
        study_records.fill(store, study_records.point(seed=seed, note={EVIL: EVIL}))
    study_records.fill(store, study_records.point(seed=2, note={EVIL: "x"}), end="failed", error=ValueError(EVIL))
    records = store.records()
    axes = {f"note.{EVIL}": (EVIL, "x"), "network.hidden": ([4], [5]), "seed": (0, 1, 2)}
    pages = [
        report.study_page(EVIL, axes, records, EVIL),
        report.run_page(records[2], EVIL, EVIL),
        report.compare_page(records[0], records[2]),
    ]
    for page in pages:
        reader = Reader(report.page_html(page))
        assert "img" not in reader.tags
        assert reader.tags.count("script") == 2 + len(page.plots)
        assert not [name for name in reader.attributes if name.startswith("on")]
        assert any(EVIL in part for part in reader.text)
        # Plotly reads markup in text, so what it gets is escaped as well.
        for data in reader.data:
            figure = {key: value for key, value in json.loads(data).items() if key not in ("heading", "config")}
            assert "<script>" not in json.dumps(figure)
            assert "<img" not in json.dumps(figure)


def test_write_page_writes_page_html(page, tmp_path):
    path = report.write_page(page, tmp_path / "page.html")
    assert path.read_text("utf-8") == report.page_html(page)


def test_plots_of_studies_are_downloaded_by_the_browser_and_others_stand_in_the_page(page):
    curve = plots.Series("curve", np.arange(3.0), np.arange(3.0))
    plot = plots.Plot("T", "C.", "x", "y", (curve,))
    assert Reader(report.page_html(report.Page("P", (), (plot,)))).attributes.count("download") == 2
    assert "download" not in Reader(report.page_html(page)).attributes


def test_tables_are_there_without_scripts(page, swept):
    reader = Reader(report.page_html(dataclasses.replace(page, plots=())))
    assert all(any(record.id in part for part in reader.text) for record in swept[0])
    assert "input" not in reader.tags
    assert "button" not in reader.tags
