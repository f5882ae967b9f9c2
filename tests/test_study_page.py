"""The page of a study: its numbers are the records', whatever is missing or damaged, and its text is only text."""

import dataclasses
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
from study_pages import DAMAGED, Reader, swept, table

__all__ = ["swept"]  # a fixture

EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"


@pytest.fixture(scope="module")
def page(swept):
    records, axes = swept
    return report.study_page("Name", axes, records, "What it is about.")


def figures(page, kind):
    return [figure for figure in page.plots if isinstance(figure, kind)]


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
