"""A live page in a real browser: it changes while runs go on, and what its reader did to it stays."""

import asyncio
import contextlib
import json
import subprocess
import time
import urllib.request
from collections import Counter

import numpy as np
import pytest
from tornado.websocket import websocket_connect

from fibration.plots import Plot, Series
from fibration.report import Page, Table, page_html
from fibration.report import _served_pages as served_pages
from fibration.report._server import Server
from fibration.study import Store
from serving import finish
from test_page_in_browser import FLAGS, browser  # noqa: F401  (a fixture)

POINTS = [{"width": width, "seed": 0, "axes": {"width": width}} for width in range(40)]
FILTER = "document.querySelector('.tools input')"


class Visit:
    """A page in a browser, driven over Chromium's own protocol: what it evaluates, its console, its requests."""

    def __init__(self, socket):
        self.socket, self.number = socket, 0
        self.console, self.addresses = [], set()

    async def call(self, method, **parameters):
        self.number += 1
        await self.socket.write_message(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            said = json.loads(await asyncio.wait_for(self.socket.read_message(), 60))
            if said.get("id") == self.number:
                assert "error" not in said, said
                return said["result"]
            self.hear(said.get("method"), said.get("params", {}))

    def hear(self, method, told):
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.console.append(told)
        if method == "Network.requestWillBeSent":
            self.addresses.add(told["request"]["url"])

    async def value(self, expression):
        told = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, expression, seconds=30.0):
        end = time.monotonic() + seconds
        while not await self.value(expression):
            assert time.monotonic() < end, expression
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def visiting(program, address, folder):
    """Open an address in a browser of its own."""
    flags = [flag for flag in FLAGS if "virtual-time" not in flag and "window-size" not in flag]
    flags += ["--window-size=1200,800", "--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}"]
    with subprocess.Popen([program, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as it:
        try:
            port_file = folder / "profile" / "DevToolsActivePort"
            end = time.monotonic() + 60
            while not (port_file.exists() and port_file.read_text().strip()):
                assert time.monotonic() < end
                await asyncio.sleep(0.1)
            port = port_file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
                page = next(one for one in json.load(answer) if one["type"] == "page")
            visit = Visit(await websocket_connect(page["webSocketDebuggerUrl"], max_message_size=2**26))
            for domain in ("Runtime", "Log", "Network", "Page"):
                await visit.call(f"{domain}.enable")
            await visit.call("Page.navigate", url=address)
            await visit.until("document.readyState === 'complete' && location.href !== 'about:blank'")
            yield visit
            visit.socket.close()
            while await visit.socket.read_message() is not None:
                pass
        finally:
            it.kill()


def draw(store, route, seen):
    """Draw a study with a curve through its runs, and a table of them."""
    if route[0] != "study":
        return served_pages.draw_page(store, route, seen)
    records = store.records(study=route[1])
    widths = np.array([float(record.axes["width"]) for record in records])
    plot = Plot("Widths", "All of them.", "run", "width", (Series("width", np.arange(len(records)) * 1.0, widths),))
    rows = tuple((record.id, str(record.axes["width"])) for record in records)
    return page_html(Page("Widths", (), (plot,), (Table("Runs", ("run", "width"), rows),)))


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True) as held:
        study = held.add_study('name = "widths"', {"name": "widths", "axes": {"width": list(range(40))}}, POINTS)
        for point in POINTS[:30]:
            finish(held, point, study.id)
        yield held


async def listeners(visit):
    """Count what listens to the window, by event."""
    window = await visit.call("Runtime.evaluate", expression="window")
    told = await visit.call("DOMDebugger.getEventListeners", objectId=window["result"]["objectId"])
    return Counter(one["type"] for one in told["listeners"])


async def watch(program, server, store, folder):
    """Do to a page what readers do, let a run finish, and see what is as it was."""
    study = store.study("widths").id
    rows = "document.querySelectorAll('table tbody tr').length"
    shown = "[...document.querySelectorAll('table tbody tr:not([hidden]) td')].map((one) => one.textContent)"
    kept = f"""({{
      sort: document.querySelectorAll('th')[1].getAttribute('aria-sort'), words: {FILTER}.value,
      typing: document.activeElement === {FILTER}, place: scrollY, open: document.querySelector('#live details').open,
      inner: document.querySelector('.wide').scrollTop, zoom: document.querySelector('.plot').layout.xaxis.range,
    }})"""
    async with visiting(program, f"{server.address}study/{study}", folder) as visit:
        await visit.until("document.querySelector('.plot .main-svg') !== null")
        assert await visit.value(rows) == 30
        whole = await visit.value("document.querySelector('.plot')._fullLayout.xaxis.range")
        await visit.value("document.querySelector('[data-title=\"Zoom in\"]').click()")
        await visit.until(f"document.querySelector('.plot')._fullLayout.xaxis.range[1] < {whole[1]} - 1")
        await visit.value("document.querySelector('#live summary').click()")
        await visit.value("document.querySelectorAll('th button')[1].click()")
        await visit.value("document.querySelectorAll('th button')[1].click()")
        await visit.value(f"{FILTER}.focus()")
        await visit.call("Input.insertText", text="3")
        await visit.value("document.querySelector('.wide').scrollTo(0, 40)")
        await visit.value("scrollTo(0, 300)")
        before, listed = await visit.value(kept), await visit.value(shown)
        heard = await listeners(visit)
        assert before["zoom"][1] < whole[1] - 1
        assert before["typing"]
        assert before["open"]
        assert before["inner"] == 40
        assert before["words"] == "3"
        assert before["sort"] == "descending"
        assert before["place"] == 300
        for count in (31, 32):  # twice, since a script that is run again may leave something behind
            finish(store, POINTS[count - 1], study)
            await visit.until(f"{rows} === {count}")
            await visit.until(f"document.getElementById('live-told').textContent.startsWith('{count} done')")
            assert await visit.value(kept) == before
            now = await visit.value(shown)
            # The table holds ids, which the filter finds too; what was listed still is, and in descending order.
            assert set(listed) < set(now)
            assert now == sorted(now, key=int, reverse=True)
            assert await listeners(visit) == heard
        assert await visit.value("document.querySelector('.plot').calcdata[0].length") == 32
        # The new plot still follows the window.
        await visit.call("Emulation.setDeviceMetricsOverride", width=700, height=800, deviceScaleFactor=1, mobile=False)
        await visit.until("document.querySelector('.plot')._fullLayout.width < 700")
        run = store.records()[0].id
        await visit.value(f"document.querySelector('a[href=\"/run/{run}\"]').click()")
        await visit.until(f"location.pathname === '/run/{run}' && document.readyState === 'complete'")
        assert await visit.value("document.getElementById('live-told').textContent") == "done"
        return visit


def test_a_live_page_takes_over_what_changed_and_keeps_what_its_reader_did(browser, store, tmp_path):  # noqa: F811
    with Server(store, port=0, draw=draw) as server:
        visit = asyncio.run(watch(browser, server, store, tmp_path))
        ours = server.address
    assert visit.console == []
    assert {address for address in visit.addresses if not address.startswith((ours, "data:", "blob:"))} == set()
    assert any(address.endswith("?part=main") for address in visit.addresses)


async def enter(program, address, folder):
    async with visiting(program, address, folder) as visit:
        await visit.until("document.getElementById('live') !== null")
        assert await visit.value("location.search") == ""
        assert await visit.value("document.cookie") == ""  # scripts do not see it
        await visit.until("/:/.test(document.getElementById('live-time').textContent)")  # it may ask, too
        return visit


def test_a_browser_that_shows_the_token_once_is_let_in(browser, store, tmp_path):  # noqa: F811
    with Server(store, host="127.0.0.1", port=0, token="a-token-that-is-long-enough", draw=draw) as server:
        visit = asyncio.run(enter(browser, server.address, tmp_path))
    assert visit.console == []
