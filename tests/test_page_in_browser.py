"""The page in a real browser: every plot is drawn, nothing is asked of the network, nothing is refused."""

import json
import os
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fibration as fb
from fibration import report

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--window-size=1200,3000",
    "--virtual-time-budget=8000",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # what Chromium asks on its own account stays here too
    "--enable-logging=stderr",
    "--v=0",
)


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        reason = f"no browser: none of {', '.join(NAMES)} is on PATH"
        if os.environ.get("FIBRATION_REQUIRE_OPTIONAL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def plots():
    with jax.enable_x64(True):
        problem = fb.Problem(lambda w, x: w[0] * w[1] * x, jnp.array([1.0, 2.0]), jnp.array([1.0, 1.5]))
        study = fb.study.fidelity_study(
            problem, jnp.array([1.5, 0.2]), t1=8.0, fractions=(0.1, 1.05, 8.0), n_times=9, rtol=1e-8
        )
        return report.fidelity_page(study)


def visit(browser, path, tmp_path):
    """Open a page; return its elements after the scripts ran, its console and the addresses it asked for."""
    log = tmp_path / "net.json"
    command = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", "--dump-dom"]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, timeout=120, check=True)
    console = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if "CONSOLE" in line]
    text = log.read_text("utf-8")
    try:
        events = json.loads(text)["events"]
    except json.JSONDecodeError:  # the log may end without its closing brackets
        events = [json.loads(line.rstrip().rstrip(",")) for line in text.splitlines() if line.startswith('{"params"')]
    started = [event["params"] for event in events if {"url", "initiator"} <= set(event.get("params", {}))]
    # Requests that no page made, such as Chromium's for its own updates, have "not an origin" as their initiator.
    addresses = {params["url"] for params in started if params["initiator"] != "not an origin"}
    return done.stdout.decode("utf-8"), console, addresses


def outside(addresses):
    """What is neither the page itself nor the browser's own pages."""
    return {a for a in addresses if not re.match(r"(file|data|blob|about|chrome|chrome-untrusted|devtools):", a)}


@pytest.fixture(scope="module")
def visited(browser, plots, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    return visit(browser, report.write_page(plots, folder / "page.html"), folder)


def test_every_plot_is_drawn(visited, plots):
    dom = visited[0]
    drawn = re.findall(r'<div class="plot js-plotly-plot" id="(plot-\d+)"', dom)
    assert drawn == [f"plot-{i}" for i in range(1, len(plots.plots) + 1)]
    figures = dom.split("<figure>")[1:]
    assert len(figures) == len(plots.plots)
    for figure, plot in zip(figures, plots.plots, strict=True):
        assert 'class="main-svg"' in figure
        assert len(re.findall(r'class="scatterlayer', figure)) >= 1
        drawn = re.findall(r'<g class="trace scatter trace\w+".*?<path class="js-line" d="M[\d.,-]+', figure)
        assert len(drawn) == sum(bool(np.isfinite(series.y).any()) for series in plot.series)
        assert 'class="modebar' in figure
        assert plot.x_label in figure


def test_no_button_leaves_the_machine(visited):
    buttons = set(re.findall(r'data-title="([^"]*)"', visited[0]))
    assert "Zoom" in buttons
    assert any("Download plot" in button for button in buttons)
    assert not [b for b in buttons if re.search("share|cloud|edit|plotly", b, re.IGNORECASE)]


def test_nothing_is_refused_or_fails(visited):
    assert visited[1] == []


def test_no_network_request(visited):
    assert outside(visited[2]) == set()


def test_the_network_log_would_show_a_request(browser, tmp_path):
    # The check of the check: a page that asks for another machine's picture is seen to ask.
    path = tmp_path / "page.html"
    path.write_text('<!doctype html><img src="http://127.0.0.1:9/picture.png">')
    assert "http://127.0.0.1:9/picture.png" in outside(visit(browser, path, tmp_path)[2])


def test_the_policy_stops_requests_and_foreign_scripts(browser, plots, tmp_path):
    path = report.write_page(plots, tmp_path / "page.html")
    text = path.read_text("utf-8")
    foreign = "<script>document.title = 'foreign'</script><img src='http://127.0.0.1:9/picture.png'>"
    path.write_text(text.replace("</main>", foreign + "</main>", 1), "utf-8")
    dom, console, addresses = visit(browser, path, tmp_path)
    assert "<title>foreign</title>" not in dom
    assert outside(addresses) == set()
    assert any("Content Security Policy" in line for line in console)
