"""Figures and pages show the study's own numbers, and a page is one file that needs nothing else."""

import base64
import html.parser
import json
import re
import sys
import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

import fibration as fb
from fibration import plots, report
from fibration.errors import EmptyDataError, MissingExtraError, OutputDirectoryError, ShapeError, UnknownNameError

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def make_study(fractions):
    problem = fb.Problem(lambda w, x: w[0] * w[1] * x, jnp.array([1.0, 2.0]), jnp.array([1.0, 1.5]))
    return fb.study.fidelity_study(
        problem,
        jnp.array([1.5, 0.2]),
        t1=8.0,
        fractions=fractions,
        n_times=9,
        rtol=1e-8,
        facts={"data": "<script>alert('data')</script>", "dtype": "float64", "seed": 17},
    )


@pytest.fixture(scope="module")
def study(x64):
    # The last one is unstable: it ends at an infinite cost.
    return make_study((0.1, 0.5, 1.2, 8.0))


@pytest.fixture(scope="module")
def stable_study(x64):
    return make_study((0.1, 0.5, 1.2))


@pytest.fixture(scope="module")
def page_file(study, tmp_path_factory):
    return report.write_page(report.fidelity_page(study), tmp_path_factory.mktemp("page") / "new" / "page.html")


class Reader(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.scripts, self.addresses, self.text, self.metas = [], [], [], [], []
        self.elements, self.attributes, self._inside = [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        self.addresses += [attrs[name] for name in ("src", "href", "action", "data", "srcset") if name in attrs]
        self._inside = tag
        if tag == "script":
            self.scripts.append([attrs, ""])
        elif tag == "meta":
            self.metas.append(attrs)
        elif tag == "a":
            self.links.append(attrs)

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1][1] += data
        elif self._inside != "style":
            self.text.append(data)


@pytest.fixture(scope="module")
def page(page_file):
    return Reader(page_file.read_text("utf-8"))


def a_plot(**changes):
    curve = plots.Series("curve", np.arange(4.0), np.array([0.0, 1.0, -1.0, 10.0]))
    fields = {"title": "T", "caption": "C.", "x_label": "x", "y_label": "y", "series": (curve,), **changes}
    return plots.Plot(**fields)


def interactive(series):
    return np.array([np.nan if v is None else v for v in series], float)


# The page


def test_every_plot_has_downloads_that_are_a_png_and_an_svg(page, study):
    count = len(report.fidelity_plots(study))
    assert count >= 5
    assert sum(tag == "figure" for tag, _ in page.elements) == count
    assert sum(attrs.get("class") == "plot" for _, attrs in page.elements) == count
    downloads = [link for link in page.links if "download" in link]
    kinds = [link["download"].rsplit(".")[-1] for link in downloads]
    assert kinds == ["png", "svg"] * count
    assert len({link["download"] for link in downloads}) == 2 * count
    for kind, link in zip(kinds, downloads, strict=True):
        head, body = link["href"].split(",", 1)
        contents = base64.b64decode(body, validate=True)
        assert head == {"png": "data:image/png;base64", "svg": "data:image/svg+xml;base64"}[kind]
        if kind == "png":
            assert contents.startswith(PNG)
            assert contents.endswith(b"IEND\xaeB`\x82")
        else:
            root = ET.fromstring(contents)
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert len(root.findall(".//{http://www.w3.org/2000/svg}path")) > 10
        namespaces = {b"http://www.w3.org/2000/svg", b"http://www.w3.org/1999/xlink"}
        assert set(re.findall(rb"https?://[^\s\"'<>)]*", contents)) <= namespaces


def test_no_address_of_another_machine(page_file, page):
    text = page_file.read_text("utf-8")
    found = set(re.findall(r"(?:https?|wss?|ftp):\\?/\\?/[^\s\"'`<>)\\]*", text))
    assert all(re.fullmatch(r"http://www\.w3\.org/[\w/]+", address) for address in found), found
    assert all(address.startswith("data:") for address in page.addresses)
    assert not re.search(
        r"url\(\s*[\"']?(?!#|data:|about:blank)[\w/.]+[/.]", re.sub(r"<script.*?</script>", "", text, flags=re.S)
    )
    # Protocol-relative: a quote or a parenthesis, two slashes, a host.
    assert not re.search(r"[\"'`(=]//[\w-]+\.[\w-]", text)
    assert not re.search(r"@import|<link|<iframe|<base", text.split("<script", 1)[0])


def test_content_security_policy_names_exactly_the_scripts_on_the_page(page):
    import hashlib

    (policy,) = [m["content"] for m in page.metas if m.get("http-equiv") == "Content-Security-Policy"]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    assert rules["default-src"] == ["'none'"]
    assert rules["img-src"] == ["data:", "blob:"]
    assert not {"connect-src", "font-src", "frame-src"} & set(rules)
    run = [text for attrs, text in page.scripts if attrs.get("type") != "application/json"]
    hashes = ["'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'" for text in run]
    assert len(run) == 2
    assert rules["script-src"] == hashes
    # The policy comes before whatever it is to hold back.
    tags = [(tag, attrs.get("http-equiv")) for tag, attrs in page.elements]
    assert tags.index(("meta", "Content-Security-Policy")) < next(
        i for i, (tag, _) in enumerate(tags) if tag == "script"
    )


def test_interactive_plots_hold_the_study_and_send_nothing(page, study):
    figures = [json.loads(text) for attrs, text in page.scripts if attrs.get("type") == "application/json"]
    assert len(figures) == len(report.fidelity_plots(study))
    for figure in figures:
        assert figure["config"]["showSendToCloud"] is False
        assert figure["config"]["displaylogo"] is False
    costs = figures[0]["data"]
    assert costs[1]["y"] == study.descents[0].costs.tolist()
    assert costs[-1]["y"][-1] is None  # infinite


def test_facts_are_on_the_page(page, study):
    text = " ".join(page.text)
    for name, value in fb.study.machine_facts().items():
        assert name in text
        assert str(value) in text
    assert "float64" in text
    assert "17" in text
    for run in (study.flow, *study.descents):
        assert f"{run.stats['gradient_evaluations']:,}" in text
        assert run.stats["method"] in text
    assert study.descents[-1].result.message in text


def test_text_is_escaped(page, page_file, tmp_path):
    assert "<script>alert" not in page_file.read_text("utf-8")
    assert "<script>alert('data')</script>" in "".join(page.text)
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    curve = plots.Series(evil, np.arange(2.0), np.arange(2.0))
    plot = plots.Plot(evil, evil, evil, evil, (curve,), (plots.Line(evil, 1.0),))
    table = report.Table(evil, (evil, evil), ((evil, evil),))
    reader = Reader(
        report.write_page(report.Page(evil, (evil,), (plot,), (table,)), tmp_path / "p.html").read_text("utf-8")
    )
    assert not [1 for tag, _ in reader.elements if tag == "img"]
    assert sum(tag == "script" for tag, _ in reader.elements) == 3  # data, plotly, ours
    assert not any(name.startswith("on") for _, attrs in reader.elements for name in attrs)
    assert sum(evil in part for part in reader.text) >= 6


def test_page_is_replaced_whole_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    assert report.write_page(report.Page("New", ()), path) == path
    assert "<h1>New</h1>" in path.read_text("utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputDirectoryError, match="cannot be written"):
        report.write_page(report.Page("Title", ()), tmp_path / "file" / "page.html")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputDirectoryError, match="taken"):
        report.write_page(report.Page("Title", ()), tmp_path / "taken")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken"]
    with pytest.raises(OutputDirectoryError):
        plots.save_figures([a_plot()], tmp_path / "file")


@pytest.mark.parametrize("name", ["matplotlib", "plotly", "jinja2"])
def test_missing_extra_names_the_command(monkeypatch, tmp_path, name):
    for module in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fibration\[report\]'") as caught:
        report.write_page(report.Page("Title", (), (a_plot(),)), tmp_path / "page.html")
    assert name in caught.value.given


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
