"""A store to serve, a server of its pages that are drawn in an instant, and visitors that ask it over real sockets."""

import contextlib
import http.client
import socket
import time

import numpy as np
import pytest
import xarray as xr

from fibration.report import Page, Table, page_html
from fibration.report import _served_pages as served_pages
from fibration.report._server import Server
from fibration.study import Store

POINTS = [{"width": width, "seed": 0, "axes": {"width": width}} for width in (4, 8, 16, 32)]


def finish(store, point, study=None):
    """Run a point to its end, in an instant."""
    with store.claim(point, study=study) as run:
        run.write("descent", xr.Dataset({"cost": ("time", np.array([1.0, 0.5]))}))
        run.finish({"cost": 0.5}, {"cost": {"x": [0, 1], "y": [1.0, 0.5]}})
    return run.id


@pytest.fixture
def store(tmp_path):
    """A store with a study of four points, of which two are done, and a run that belongs to no study."""
    with Store(tmp_path / "store", create=True) as held:
        study = held.add_study('name = "widths"', {"name": "widths", "axes": {"width": [4, 8, 16, 32]}}, POINTS)
        for point in POINTS[:2]:
            finish(held, point, study.id)
        finish(held, {"width": 99, "seed": 7, "axes": {"depth": "<script>"}})
        yield held


def draw(store, route, seen):
    """Draw a page in an instant: a table of the runs that it is about."""
    kind, *ids = route
    if kind == "index":
        return served_pages.draw_page(store, route, seen)
    records = store.records(study=ids[0]) if kind == "study" else [store.record(name) for name in ids]
    rows = tuple((record.id, record.status) for record in records)
    return page_html(Page(f"A {kind}", (), (), (Table("Runs", ("run", "status"), rows),)))


@pytest.fixture
def served(store):
    with Server(store, port=0, draw=draw) as server:
        yield server


def ask(server, path, method="GET", body=None, **headers):
    """Ask for a path as it is; give the status, the headers and the body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def raw(server, sent, seconds=30.0):
    """Send bytes, and give what comes back until the server closes the connection or so much time has passed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as one:
        received = b""
        with contextlib.suppress(ConnectionError, TimeoutError):  # a server may refuse to read on
            one.sendall(sent)
            while piece := one.recv(65536):
                received += piece
        return received


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
