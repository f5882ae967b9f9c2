"""The figures and the sentences of a fidelity study show its own numbers."""

import re
import sys
import xml.etree.ElementTree as ET

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

import fibration as fb
from fibration import plots, report
from fibration.errors import EmptyDataError, ShapeError, UnknownNameError
from fidelity_studies import PNG, a_plot, make_study, study, x64

__all__ = ["study", "x64"]  # fixtures


@pytest.fixture(scope="module")
def stable_study(x64):
    return make_study((0.1, 0.5, 1.2))


def interactive(series):
    return np.array([np.nan if v is None else v for v in series], float)


# The plots


def test_figures_show_the_arrays_of_the_study(study):
    cost, relative, travelled, sharpness, order = report.fidelity_plots(study)
    runs = (study.flow, *study.descents)
    for plot, values in ((cost, [r.costs for r in runs]), (sharpness, [r.observed["sharpness"] for r in runs])):
        lines, traces = plots.to_matplotlib(plot).axes[0].lines, plots.to_plotly(plot).data
        assert len(traces) == len(runs)
        for run, y, line, trace in zip(runs, values, lines, traces, strict=False):
            expected = np.where(np.isfinite(y), y, np.nan)
            np.testing.assert_array_equal(line.get_xdata(), run.times)
            np.testing.assert_array_equal(line.get_ydata(), expected)
            np.testing.assert_array_equal(interactive(trace.x), run.times)
            np.testing.assert_array_equal(interactive(trace.y), expected)
            assert mpl.colors.to_hex(line.get_color()) == trace.line.color
    start, flow = study.flow.params[0], study.flow.params
    own = np.sqrt(((flow - start) ** 2).sum(1))
    np.testing.assert_allclose(travelled.series[0].y, own, rtol=1e-14)
    for index, descent in enumerate(study.descents[:-1]):
        apart = np.sqrt(((descent.params - flow) ** 2).sum(1))
        np.testing.assert_allclose(travelled.series[index + 1].y, np.sqrt(((descent.params - start) ** 2).sum(1)))
        assert np.isnan(relative.series[index].y[0])
        np.testing.assert_allclose(relative.series[index].y[1:], apart[1:] / own[1:], rtol=1e-12)
        np.testing.assert_allclose(order.series[1].y[index], apart[-1], rtol=1e-12)
    np.testing.assert_array_equal(order.series[1].x, study.step_sizes[:-1])
    line = order.series[0]
    np.testing.assert_allclose(np.diff(np.log(line.y)) / np.diff(np.log(line.x)), 1.0)
    np.testing.assert_allclose(line.y[0], order.series[1].y[0], rtol=1e-14)


def test_levels_are_two_over_the_step_size_and_the_far_ones_are_named(study):
    plot = report.fidelity_plots(study)[3]
    limits = {2 / step for step in study.step_sizes}
    shown = {level.value for level in plot.levels}
    assert shown <= limits
    assert 2 / study.step_sizes[2] in shown  # about 1.2 of the largest stable one: within the flow's range
    assert 2 / study.step_sizes[0] not in shown
    assert "2/0.0286 = 70" in plot.caption
    axes = plots.to_matplotlib(plot).axes[0]
    dashed = {line.get_ydata()[0] for line in axes.lines[len(plot.series) :] if len(set(line.get_ydata())) == 1}
    assert shown <= dashed
    assert axes.get_ylim()[1] < 60
    shapes = plots.to_plotly(plot).layout.shapes
    assert shown <= {shape.y0 for shape in shapes if shape.y0 == shape.y1}


def test_a_diverging_descent_does_not_set_the_scale(study):
    assert study.descents[-1].result.code == "nonfinite"
    assert len(study.descents[-1].times) < len(study.flow.times)
    for plot in report.fidelity_plots(study)[:4]:
        low, high = plots.to_matplotlib(plot).axes[0].get_ylim()
        assert np.isfinite([low, high]).all()
        assert high < 1e3
        assert "cut off" in plot.caption
    order = report.fidelity_plots(study)[4]
    assert order.caption.endswith("left out, since the descent ended early: step size 1.")


def test_stable_descents_are_shown_whole(stable_study):
    for plot in report.fidelity_plots(stable_study):
        assert plot.y_range is None
        assert "cut off" not in plot.caption
        assert "ended early" not in plot.caption


def test_values_that_a_logarithmic_axis_cannot_show_leave_gaps():
    plot = a_plot(y_log=True, x_log=True, levels=(plots.Line("zero", 0.0), plots.Line("two", 2.0)))
    axes = plots.to_matplotlib(plot).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [np.nan, 1.0, np.nan, 10.0])
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [np.nan, 1.0, 2.0, 3.0])
    assert axes.get_yscale() == axes.get_xscale() == "log"
    assert len(axes.lines) == 2
    figure = plots.to_plotly(plot)
    assert figure.data[0].y == (None, 1.0, None, 10.0)
    assert figure.layout.yaxis.type == "log"
    assert [note.text for note in figure.layout.annotations] == ["two"]
    assert figure.layout.annotations[0].y == pytest.approx(np.log10(2.0))
    linear = plots.to_plotly(a_plot(levels=(plots.Line("zero", 0.0),)))
    assert linear.data[0].y == (0.0, 1.0, -1.0, 10.0)
    assert linear.layout.shapes[0].y0 == 0.0


def test_a_plot_with_nothing_to_show_is_still_drawn():
    nothing = plots.Series("nothing", np.zeros(0), np.zeros(0))
    zeros = plots.Series("zeros", np.arange(3.0), np.zeros(3))
    for series in ((), (nothing,), (zeros,)):
        plot = a_plot(series=series, y_log=True, levels=(plots.Line("one", 1.0),), moments=(plots.Line("m", 1.0),))
        assert len(plots.to_plotly(plot).data) == len(series)
        assert len(plots.to_matplotlib(plot).axes[0].lines) == len(series) + 2


def test_matplotlib_state_is_left_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 31.0, "lines.linewidth": 9.0}):
        before = mpl.rcParams.copy()
        figure = plots.to_matplotlib(a_plot())
        assert mpl.rcParams.copy() == before
    assert mpl.colors.to_hex(figure.axes[0].get_facecolor()) == "#ffffff"
    assert "matplotlib.pyplot" not in sys.modules


def test_everything_written_stays_inside_the_figure(study):
    for figure in [*map(plots.to_matplotlib, report.fidelity_plots(study)), report.summary_figure(study)]:
        renderer = figure.canvas.get_renderer()
        frame = figure.bbox.padded(1)
        texts = [text for text in figure.findobj(mpl.text.Text) if text.get_visible() and text.get_text()]
        assert len(texts) > 10
        for text in [*(a.title for a in figure.axes), *(a.xaxis.label for a in figure.axes)]:
            box = text.get_window_extent(renderer)
            assert box.x0 >= 0
            assert box.x1 <= frame.x1
            assert box.y1 <= frame.y1
        (legend,) = figure.legends
        box = legend.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.x1 <= frame.x1
        assert not any(box.overlaps(a.get_tightbbox(renderer)) for a in figure.axes)


def test_mathematics_and_markup_in_names_are_shown_as_written():
    curve = plots.Series("$a_ <b>&", np.arange(2.0), np.arange(2.0))
    figure = plots.to_matplotlib(a_plot(series=(curve,), title="50 $ and $ {"))
    assert r"\$" in figure.axes[0].get_title(loc="left")
    assert plots.to_plotly(a_plot(series=(curve,))).data[0].name == "$a_ &lt;b&gt;&amp;"


def test_saved_figures(tmp_path):
    drawn = [a_plot(title="Cost / time: θ"), a_plot(title="θ")]
    paths = plots.save_figures(drawn, tmp_path / "a" / "b", ("png", "svg", "pdf"))
    assert [p.name for p in paths] == [
        f"{stem}.{kind}" for stem in ("1-cost-time", "2-plot") for kind in ("png", "svg", "pdf")
    ]
    assert paths[0].read_bytes().startswith(PNG)
    assert ET.fromstring(paths[1].read_bytes()).tag.endswith("svg")
    assert paths[2].read_bytes().startswith(b"%PDF")
    again = plots.save_figures(drawn, tmp_path / "c", ("png", "svg", "pdf"))
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in again]
    with pytest.raises(UnknownNameError, match="gif"):
        plots.save_figures(drawn, tmp_path, ("gif",))


def test_series_and_tables_of_wrong_shape():
    with pytest.raises(ShapeError, match=r"\(2,\)"):
        plots.Series("s", np.zeros(2), np.zeros(3))
    with pytest.raises(ShapeError, match="3 cells"):
        report.Table("t", (), (("a", "b", "c"),))


def test_summary_figure(study):
    left, right = report.summary_figure(study).axes
    assert left.get_title(loc="left") == "Sharpness"
    np.testing.assert_array_equal(left.lines[0].get_ydata(), study.flow.observed["sharpness"])
    assert right.get_yscale() == "log"


# The sentences


def numbers(sentence):
    return [float(n.replace(",", "")) for n in re.findall(r"(?<![\w/])\d[\d,]*(?:\.\d+)?", sentence)]


def test_numbers_in_the_sentences_follow_from_the_trajectories(stable_study):
    study = stable_study
    close, part, price = report.three_sentences(study)
    flow, small, large = study.flow.params, study.descents[0].params, study.descents[-1].params
    apart = np.linalg.norm(small[-1] - flow[-1])
    share = 100 * apart / np.linalg.norm(flow[-1] - flow[0])
    np.testing.assert_allclose(numbers(close), [study.step_sizes[0], apart, share, 8.0], rtol=5e-3)
    sharpness, limit = study.flow.observed["sharpness"], 2 / study.step_sizes[-1]
    assert sharpness[0] < limit < sharpness[-1]
    first = int(np.flatnonzero(sharpness > limit)[0])
    then, end = (np.linalg.norm(large[i] - flow[i]) for i in (first, -1))
    expected = [2, limit, study.step_sizes[-1], study.flow.times[first], then, end]
    found = numbers(part.replace("2/step", "2 /step"))
    np.testing.assert_allclose(found, expected, rtol=5e-3)
    costs = [r.stats["gradient_evaluations"] for r in (study.flow, study.descents[0])]
    found = numbers(price.replace(study.flow.stats["method"], ""))
    assert found[:2] == costs
    ratio = costs[1] / costs[0]
    assert found[2] == pytest.approx(ratio if ratio > 1 else 100 * ratio, rel=5e-3)
    assert ("times as many" in price) == (ratio > 1)


def test_sentences_about_a_sharpness_that_never_crosses(x64):
    study = make_study((0.1,))
    sentence = report.three_sentences(study)[1]
    assert f"stays below that, at most {max(study.flow.observed['sharpness']):.3g}" in sentence
    assert "only one" in sentence
    assert "smallest" not in " ".join(report.three_sentences(study))


def test_sentences_about_descents_that_end_early(study, x64):
    sentence = report.three_sentences(study)[1]
    assert "is above that from the start" in sentence
    assert study.descents[-1].result.message in sentence
    alone = make_study((8.0,))
    close, _, price = report.three_sentences(alone)
    assert "diverges" in close
    assert "NaN" in close
    ended = alone.descents[0]
    assert f"took {ended.stats['gradient_evaluations']} until it ended at t = {ended.result.time:.6g}" in price
    assert "nan" not in " ".join(report.three_sentences(alone))
    assert [len(p.series) for p in report.fidelity_plots(alone)] == [2, 1, 2, 2, 0]
    assert all(np.isfinite(plots.to_matplotlib(p).axes[0].get_ylim()).all() for p in report.fidelity_plots(alone))


def test_a_flow_that_does_not_move(x64, tmp_path):
    problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([0.0]))
    still = fb.study.fidelity_study(problem, jnp.array(0.0), t1=1.0, fractions=(0.1, 0.5), n_times=3)
    assert "did not move" in report.three_sentences(still)[0]
    assert report.write_page(report.fidelity_page(still), tmp_path / "page.html").exists()


def test_a_study_without_descents(x64):
    empty = make_study(())
    for function in (report.three_sentences, report.fidelity_plots, report.fidelity_page, report.summary_figure):
        with pytest.raises(EmptyDataError, match="without descents"):
            function(empty)
