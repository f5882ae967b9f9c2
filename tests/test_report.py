"""The page of a fidelity study is one file that needs nothing else, with figures to download and text as written."""

import base64
import html.parser
import json
import re
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import fibration as fb
from fibration import plots, report
from fibration.errors import MissingExtraError, OutputDirectoryError
from fidelity_studies import PNG, a_plot, study, x64

__all__ = ["study", "x64"]  # fixtures


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
