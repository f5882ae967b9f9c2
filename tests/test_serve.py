"""The server of a store's pages, asked over real sockets: what it shows and refuses, and that it writes nothing."""

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import xarray as xr

from fibration.errors import MissingExtraError, ParameterError, StoreError
from fibration.report import Page, Table, page_html
from fibration.report import _served_pages as served_pages
from fibration.report import _server as server_module
from fibration.report._serve import serve
from fibration.report._served_store import OutsideError, ServedStore
from fibration.report._server import Server
from fibration.study import Store

TOKEN = "a-token-that-is-long-enough"
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


def listing(path):
    """List all that a store holds, with its contents."""
    # Not the time at which the owner last changed: run by root, SQLite sets that of its journal to what it is.
    facts = {}
    for one in [path, *path.rglob("*")]:
        found = os.lstat(one)
        digest = hashlib.sha256(one.read_bytes()).hexdigest() if one.is_file() else ""
        facts[one.relative_to(path).as_posix()] = (found.st_ino, found.st_mode, found.st_mtime_ns, digest)
    return facts


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# What is shown


def test_the_first_page_lists_studies_with_counts_and_runs_without_a_study(served, store):
    status, headers, body = ask(served, "/")
    study = store.study("widths")
    alone = next(record.id for record in store.records() if not record.studies)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    row = re.search(rf'<tr><th scope="row"><a href="/study/{study.id}">{study.id}</a></th>(.*?)</tr>', body)[1]
    # name, points, done, running, interrupted, failed, damaged, not begun
    assert re.findall("<td>(.*?)</td>", row) == ["widths", "4", "2", "0", "0", "0", "0", "2"]
    row = re.search(rf'<a href="/run/{alone}">{alone}</a></th>(.*?)</tr>', body)[1]
    assert re.findall("<td>(.*?)</td>", row) == ["done", "depth = &lt;script&gt;, seed = 7"]
    for record in store.records(study=study.id):
        assert record.id not in body


def test_an_empty_store_says_what_to_do(tmp_path):
    with Server(Store(tmp_path / "store", create=True), port=0) as server:
        assert "fibration run STUDY.toml" in ask(server, "/")[2]


def test_pages_of_studies_runs_and_comparisons_lead_to_one_another(served, store):
    study = store.study("widths")
    first, second = (record.id for record in store.records(study=study.id))
    status, _, body = ask(served, f"/study/{study.id}")
    assert status == 200
    assert f'<th scope="row"><a href="/run/{first}">' in body
    assert f'<li><a href="/run/{second}">{second}</a> done, width = 8</li>' in body
    assert "2 done, 2 not begun, of 4" in body
    body = ask(served, f"/run/{first}")[2]
    assert f'<a href="/study/{study.id}">widths</a>' in body
    assert f'<a href="/compare/{first}/{second}">{second}</a>' in body
    assert f'<a href="/run/{first}">' not in body  # the page itself
    status, _, body = ask(served, f"/compare/{first}/{second}")
    assert status == 200
    assert {f"/run/{first}", f"/run/{second}", "/"} <= set(re.findall('href="(.*?)"', body))


def test_the_pages_are_the_offline_ones_and_a_banner(served, store):
    study = store.study("widths").id
    offline = draw(ServedStore(store.path), ("study", study), None)
    live = ask(served, f"/study/{study}")[2]
    live = re.sub(r'<nav id="live".*?</nav>\n', "", live, count=1, flags=re.DOTALL)
    live = re.sub(r'<a href="/run/\w+">(\w+)</a>', r"\1", live)
    live = re.sub(r'\n<script>"use strict";\n// Asks.*?</script>', "", live, count=1, flags=re.DOTALL)
    offline = re.sub(r"<meta http-equiv.*?>", '<link rel="icon" href="data:,">', offline, count=1)
    assert live == offline


def test_the_status_is_told_as_json(served, store):
    study = store.study("widths")
    status, headers, body = ask(served, "/api/status")
    said = json.loads(body)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert said["runs"] == {"done": 3, "running": 0, "interrupted": 0, "failed": 0, "damaged": 0}
    assert said["studies"][0]["id"] == study.id
    assert said["studies"][0]["runs"]["not begun"] == 2
    newest = max(record.directory.joinpath("manifest.json").stat().st_mtime for record in store.records())
    assert said["changed"] == pytest.approx(newest, abs=1e-3)
    assert json.loads(ask(served, f"/api/status/study/{study.id}")[2])["text"] == "2 done, 2 not begun, of 4"
    assert ask(served, "/api/status/study/absent")[0] == 404


def test_a_damaged_manifest_is_counted_and_its_page_is_there(served, store):
    record = store.records()[0]
    (record.directory / "manifest.json").write_text("{")
    assert json.loads(ask(served, "/api/status")[2])["runs"]["damaged"] == 1
    assert "damaged" in ask(served, f"/run/{record.id}")[2]


def test_head_is_get_without_the_body(served):
    for path in ("/", "/nothing"):
        full, (status, headers, body) = ask(served, path), ask(served, path, "HEAD")
        assert (status, headers["Content-Length"], body) == (full[0], str(len(full[2].encode())), "")


# What goes on while it is shown


@pytest.fixture
def remote(store):
    """A server in a process of its own, as `fibration serve` starts it, with its real pages."""
    script = """
import sys
import fibration.report
from fibration.report._serve import serve
assert "tornado" not in sys.modules
serve(sys.argv[1], port=0, announce=lambda text: print(text, flush=True))
"""
    command = [sys.executable, "-W", "error", "-c", script, str(store.path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process, contextlib.ExitStack() as callbacks:
        callbacks.callback(process.kill)
        line = process.stdout.readline()
        address = re.fullmatch(r"The store: http://127\.0\.0\.1:(\d+)/\n", line)
        assert address, (line, process.stderr.read())
        process.port = int(address[1])
        yield process


def test_a_process_shows_what_another_finishes_prints_its_address_only_and_ends_by_an_interrupt(remote, store):
    study = store.study("widths").id

    def said():
        return json.loads(ask(remote, f"/api/status/study/{study}")[2])

    before = said()
    page = ask(remote, f"/study/{study}")[2]
    assert f'data-state="{before["state"]}"' in page
    assert "Of 4 points 2 are done and 2 have not begun." in page
    with store.claim(POINTS[2], study=study) as run:
        wait_for(lambda: said()["text"] == "2 done, 1 running, 1 not begun, of 4")
        running = said()["state"]
        # A page that was drawn an instant ago is given once more.
        wait_for(lambda: "2 are done, 1 is running" in ask(remote, f"/study/{study}?part=main")[2])
        run.finish()
    wait_for(lambda: said()["text"] == "3 done, 1 not begun, of 4")
    after = said()["state"]
    assert len({before["state"], running, after}) == 3
    wait_for(lambda: f'data-state="{after}"' in ask(remote, f"/study/{study}?part=main")[2])
    part = ask(remote, f"/study/{study}?part=main")[2]
    assert re.match('<nav id="live".*</nav>\n<main.*</main>$', part, re.DOTALL)
    assert len(re.findall("<td>done</td>", part)) == 3
    first, second = (record.id for record in store.records(study=study)[:2])
    for path in ("/", f"/run/{first}", f"/compare/{first}/{second}"):
        assert ask(remote, path)[0] == 200
    # What is refused is not told in the terminal either.
    for path in ("/nothing", "/" + "x" * 3000):
        ask(remote, path)
    ask(remote, "/", "POST", b"x" * 1_000)
    raw(remote, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
    raw(remote, b"\x00\xff\r\n\r\n", seconds=1.0)
    with socket.create_connection(("127.0.0.1", remote.port)) as one:  # a visitor who leaves at once
        one.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    remote.send_signal(signal.SIGINT)
    out, errors = remote.communicate(timeout=60)
    assert (out, errors, remote.returncode) == ("", "", 0)


def test_ten_browsers_draw_one_page_and_a_change_draws_it_once_more(store):
    study, drawn = store.study("widths").id, []

    def slowly(served_store, route, seen):
        drawn.append(route)
        time.sleep(0.5)
        return draw(served_store, route, seen)

    def crowd(server):
        visits = [threading.Thread(target=lambda: got.append(ask(server, f"/study/{study}")[2])) for _ in range(10)]
        for visit in visits:
            visit.start()
        for visit in visits:
            visit.join()

    with Server(store, port=0, draw=slowly) as server:
        got: list[str] = []
        crowd(server)
        assert drawn == [("study", study)]
        assert len(set(got)) == 1
        finish(store, POINTS[2], study)
        time.sleep(0.5)  # a page is not drawn again sooner than it took to draw
        wait_for(lambda: "3 done" in ask(server, f"/api/status/study/{study}")[2])
        crowd(server)
        assert drawn == [("study", study)] * 2


def test_lists_do_not_wait_for_a_drawing(store):
    study, go_on = store.study("widths").id, threading.Event()

    def never(served_store, route, seen):
        if route != ("index",):
            go_on.wait(30)
        return draw(served_store, route, seen)

    with Server(store, port=0, draw=never) as server:
        visit = threading.Thread(target=lambda: ask(server, f"/study/{study}"))
        visit.start()
        assert ask(server, "/")[0] == 200
        assert ask(server, f"/api/status/study/{study}")[0] == 200
        assert visit.is_alive()
        go_on.set()
        visit.join()


def test_few_pages_are_kept_and_few_wait(store, monkeypatch):
    monkeypatch.setattr(served_pages, "MOST_PAGES", 2)
    runs = [record.id for record in store.records()]
    with Server(store, port=0, draw=draw) as server:
        for first in runs:
            for second in runs:
                assert ask(server, f"/compare/{first}/{second}")[0] == 200
                assert len(server._pages._kept) <= 2
    monkeypatch.setattr(served_pages, "MOST_BYTES", 1)
    with Server(store, port=0, draw=draw) as server:
        for name in runs:
            assert ask(server, f"/run/{name}")[0] == 200
        assert len(server._pages._kept) == 1
    monkeypatch.setattr(served_pages, "MOST_WAITING", 1)
    go_on = threading.Event()

    def waiting(served_store, route, seen):
        go_on.wait(30)
        return draw(served_store, route, seen)

    with Server(store, port=0, draw=waiting) as server:
        visit = threading.Thread(target=lambda: ask(server, f"/run/{runs[0]}"))
        visit.start()
        wait_for(lambda: len(server._pages._drawing) == 1)
        status, headers, _ = ask(server, f"/run/{runs[1]}")
        assert (status, headers["Retry-After"]) == (503, "10")
        go_on.set()
        visit.join()


def test_a_store_that_vanishes_is_503_and_comes_back(served, store, tmp_path):
    study = store.study("widths").id
    paths = ("/", f"/study/{study}", "/api/status", f"/run/{store.records()[0].id}")
    assert [ask(served, path)[0] for path in paths] == [200] * 4
    store.path.rename(tmp_path / "elsewhere")
    for path in paths:
        status, headers, body = ask(served, path)
        assert (status, headers["Retry-After"]) == (503, "10")
        assert "is gone" in body
    (tmp_path / "elsewhere").rename(store.path)
    assert [ask(served, path)[0] for path in paths] == [200] * 4
    shutil.rmtree(store.path / "runs")
    time.sleep(1.1)  # what was seen a second ago is not shown any more
    assert ask(served, "/")[0] == 503


def test_an_error_of_a_page_is_told_in_the_terminal_and_not_in_the_page(store):
    told = []

    def broken(served_store, route, seen):
        raise KeyError("a secret")

    with Server(store, port=0, draw=broken, announce=told.append) as server:
        status, _, body = ask(server, f"/run/{store.records()[0].id}")
        ask(server, f"/run/{store.records()[0].id}")
    assert status == 500
    assert "Traceback" not in body
    assert "secret" not in body
    assert len(told) == 1  # the second visitor gets the page that was kept
    assert "KeyError: 'a secret'" in told[0]


# What is refused


def test_only_get_and_head_are_answered(served):
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "NONSENSE"):
        for path in ("/", "/nothing"):
            status, headers, _ = ask(served, path, method)
            assert (status, headers["Allow"]) == (405, "GET, HEAD"), method
    assert ask(served, "/", "POST", b"x" * 1000)[0] == 405
    large = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    assert raw(served, large).startswith(b"HTTP/1.1 400")


def test_every_answer_has_the_headers_that_keep_it_to_itself(served, store):
    run = store.records()[0].id
    for path in ("/", f"/run/{run}", "/nothing", "/api/status", "/" + "x" * 3000):
        _, headers, _ = ask(served, path, Origin="http://evil.example")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "Server" not in headers
        assert not [name for name in headers if name.lower().startswith("access-control")]
    policy = dict(rule.split(" ", 1) for rule in ask(served, f"/run/{run}")[1]["Content-Security-Policy"].split("; "))
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
    assert all(re.fullmatch("'sha256-[A-Za-z0-9+/=]+'", source) for source in policy["script-src"].split())


def test_on_loopback_only_the_names_of_loopback_are_answered(served):
    for host in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST", "localhost:1"):
        name = host if host.endswith(":1") else f"{host}:{served.port}"
        assert ask(served, "/", Host=name)[0] == 200, name
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "0.0.0.0", "192.168.0.1", "[::2]"):
        for name in (host, f"{host}:{served.port}"):
            status, _, body = ask(served, "/", Host=name)
            assert status == 403, name
            assert "widths" not in body
    assert raw(served, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400")
    two = b"GET / HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert raw(served, two).startswith(b"HTTP/1.1 400")


def test_other_sites_may_link_here_and_nothing_else(served):
    assert ask(served, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    assert ask(served, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200
    assert ask(served, "/", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="cors")[0] == 200


STRANGE = [
    "/../../etc/passwd",
    "/..%2f..%2fetc/passwd",
    "/%2e%2e/store.json",
    "/run/../../../etc/passwd",
    "/run/%2e%2e%2f%2e%2e%2fstore.json",
    "/run/..",
    "/run/%00",
    "/run/0123456789abcdef%00",
    "/run/0123456789abcdef/",
    "/run/0123456789abcdef/manifest.json",
    "/run/0123456789ABCDEF",
    "/run/0123",
    "/runs/",
    "/store.json",
    "/index.sqlite",
    "/study/",
    "/study/..%5c..%5c",
    "/study/WIDTHS",
    "/study/widths",
    "/study/%ff%fe",
    "/study/ü",
    "/compare/0123456789abcdef",
    "/compare/0123456789abcdef/../0123456789abcdef",
    "/api/status/",
    "/api/status/..",
    "/api/status/run/%2e%2e",
    "/api/statuses",
    "//",
    "//evil.example/",
    "http://evil.example/",
    "*",
    "/?" + "&".join(f"p{i}=1" for i in range(25)),
    "/?" + "&".join(f"p{i}=1" for i in range(5000)),
    "/?" + "token=" * 1000,
    "/" + "%" * 500,
    "/" + "a" * 100_000,
    "/run/" + "../" * 50_000,
]


def test_whatever_is_no_page_is_4xx_and_never_a_traceback(store):
    told = []
    with Server(store, port=0, draw=draw, announce=told.append) as server:
        for path in STRANGE:
            request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("latin-1")
            answer = raw(server, request)
            assert re.match(rb"HTTP/1\.1 4\d\d ", answer), (path[:100], answer[:100])
            assert b"Traceback" not in answer
        assert ask(server, "/")[0] == 200
    assert told == []


def test_what_is_no_http_and_what_never_ends_does_no_harm(served):
    for sent in (
        b"\x00\xff\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 2_000_000,
        b"\r\n" * 1000,
    ):
        assert b"Traceback" not in raw(served, sent, seconds=0.3)
    open_ones = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(20)]
    for one in open_ones:
        one.sendall(b"GET / HTTP/1.1\r\nHost: loc")
    assert ask(served, "/")[0] == 200
    for one in open_ones:
        one.close()
    assert ask(served, "/")[0] == 200


def test_only_so_many_visitors_at_a_time(served, monkeypatch):
    monkeypatch.setattr(server_module, "MOST_CONNECTIONS", 3)
    held = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(3)]
    wait_for(lambda: raw(served, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") == b"")
    for one in held:
        one.close()
    time.sleep(0.2)
    assert ask(served, "/")[0] == 200


# What lies outside of the store


def test_a_run_that_is_a_link_out_of_the_store_is_refused(served, store, tmp_path):
    runs = [record.id for record in store.records()]
    shutil.move(store.path / "runs" / runs[0], tmp_path / runs[0])
    (store.path / "runs" / runs[0]).symlink_to(tmp_path / runs[0])
    (store.path / "runs" / ("0" * 16)).symlink_to("/etc")
    for name in (runs[0], "0" * 16):
        for path in (f"/run/{name}", f"/compare/{name}/{runs[1]}", f"/api/status/run/{name}"):
            status, _, body = ask(served, path)
            assert status == 403
            assert "leads out of the store" in body
    assert runs[0] not in ask(served, f"/study/{store.study('widths').id}")[2]
    assert "Not shown: 2 runs behind" in ask(served, "/")[2]
    assert ask(served, f"/run/{runs[1]}")[0] == 200


def test_files_of_a_run_and_of_a_study_that_are_links_out_of_the_store_are_refused(served, store, tmp_path):
    first, second, third = store.records()
    manifest = first.directory / "manifest.json"
    manifest.rename(tmp_path / "manifest.json")
    manifest.symlink_to(tmp_path / "manifest.json")
    assert ask(served, f"/run/{first.id}")[0] == 403
    # A result is looked through when it is opened, for which a page asks.
    served_store = ServedStore(store.path)
    assert served_store.record(second.id).open("descent")["cost"].values.tolist() == [1.0, 0.5]
    chunk = second.directory / "results" / "descent.zarr" / "cost" / "0"
    (tmp_path / "secret").write_bytes(chunk.read_bytes())
    chunk.unlink()
    chunk.symlink_to(tmp_path / "secret")
    with pytest.raises(OutsideError, match="leads out of the store"):
        served_store.record(second.id).open("descent")
    results = third.directory / "results"
    results.rename(tmp_path / "results")
    results.symlink_to(tmp_path / "results")
    with pytest.raises(OutsideError):
        served_store.record(third.id)
    study = store.study("widths")
    assert ask(served, f"/study/{study.id}")[0] == 200
    (study.path / "points.json").unlink()
    (study.path / "points.json").symlink_to("/etc/passwd")
    time.sleep(1.1)
    assert ask(served, f"/study/{study.id}")[0] == 404
    assert study.id not in ask(served, "/")[2]


def test_links_inside_the_store_and_to_the_store_are_followed(store, tmp_path):
    run = store.records()[0]
    kept = store.path / "runs" / ".kept"
    run.directory.rename(kept)
    run.directory.symlink_to(kept)
    (tmp_path / "link").symlink_to(store.path)
    with Server(tmp_path / "link", port=0, draw=draw) as server:
        assert ask(server, f"/run/{run.id}")[0] == 200


def test_a_store_whose_own_directories_lie_elsewhere_is_not_served(store, tmp_path):
    (store.path / "runs").rename(tmp_path / "runs")
    (store.path / "runs").symlink_to(tmp_path / "runs")
    with pytest.raises(StoreError, match="leads out of the store"):
        Server(store, port=0)


# That nothing is written


@pytest.mark.parametrize("index", ["whole", "absent", "being written"])
def test_no_file_of_the_store_changes(store, index):
    study, runs = store.study("widths").id, [record.id for record in store.records()]
    if index != "being written":  # the writer's journal is there as long as it is open
        store.close()
        assert not (store.path / "index.sqlite-wal").exists()
    if index == "absent":
        (store.path / "index.sqlite").unlink()
    before = listing(store.path)
    with Server(store.path, port=0, draw=draw) as server:
        for path in ("/", "/api/status", f"/study/{study}", f"/run/{runs[0]}", f"/compare/{runs[0]}/{runs[1]}"):
            assert ask(server, path)[0] == 200
            assert ask(server, path, "POST")[0] == 405
            assert ask(server, path, "DELETE")[0] == 405
        assert server._pages.store.read_only
    assert listing(store.path) == before


# Tokens


@pytest.fixture
def elsewhere(store):
    """A server that is bound to all addresses."""
    with Server(store, host="0.0.0.0", port=0, draw=draw) as server:
        yield server


def test_bound_elsewhere_a_token_is_made_and_needed(elsewhere, store):
    assert len(elsewhere.token) >= 43
    assert elsewhere.address.endswith(f":{elsewhere.port}/?token={elsewhere.token}")
    study = store.study("widths").id
    bodies = set()
    for path in ("/", f"/study/{study}", "/api/status", "/nothing", "/?token=", "/?token=wrong", f"/?token={TOKEN}"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": f"fibration-{elsewhere.port}=wrong"}):
            status, got, body = ask(elsewhere, path, **headers)
            assert status == 403
            assert "Set-Cookie" not in got
            bodies.add(body)
    assert len(bodies) == 1
    assert ask(elsewhere, "/", "POST")[0] == 403


def test_the_token_in_the_address_becomes_a_cookie_and_leaves_the_address(elsewhere, store):
    study = store.study("widths").id
    status, headers, body = ask(elsewhere, f"/study/{study}?token={elsewhere.token}&part=main")
    assert (status, headers["Location"]) == (303, f"/study/{study}?part=main")
    cookie, *rules = headers["Set-Cookie"].split("; ")
    assert set(rules) == {"Path=/", "HttpOnly", "SameSite=Strict"}
    assert elsewhere.token not in cookie + body
    for path in (headers["Location"], "/", "/api/status"):
        status, _, body = ask(elsewhere, path, Cookie=f"other=1; {cookie}")
        assert status == 200
        assert elsewhere.token not in body
    # A browser goes on from a page, so that a link on another site's page works: its redirections carry no such cookie.
    status, headers, body = ask(elsewhere, f"/study/{study}?token={elsewhere.token}", Accept="text/html,*/*")
    assert (status, headers["Set-Cookie"].split("; ")[0]) == (200, cookie)
    assert f'<meta http-equiv="refresh" content="0; url=/study/{study}">' in body
    assert elsewhere.token not in body


def test_the_token_in_a_header_is_enough(elsewhere):
    assert ask(elsewhere, "/", Authorization=f"Bearer {elsewhere.token}")[0] == 200
    assert ask(elsewhere, "/", Authorization=f"bearer {elsewhere.token}")[0] == 200
    for wrong in (
        f"Basic {elsewhere.token}",
        elsewhere.token,
        f"Bearer {elsewhere.token[:-1]}",
        "Bearer",
        "Bearer \xff",
    ):
        assert ask(elsewhere, "/", Authorization=wrong)[0] == 403
    # A wrong token in the address is not made up for, and two are one too many.
    right = f"Bearer {elsewhere.token}"
    assert ask(elsewhere, "/?token=wrong", Authorization=right)[0] == 403
    assert ask(elsewhere, f"/?token={elsewhere.token}&token={elsewhere.token}", Authorization=right)[0] == 403


def test_a_token_leads_to_pages_of_this_server_only(elsewhere):
    for path in ("//evil.example/", "//evil.example", "http://evil.example/", "/run/..", "/\\evil.example"):
        status, headers, _ = ask(elsewhere, f"{path}?token={elsewhere.token}")
        assert status == 404
        assert "Location" not in headers
        assert "Set-Cookie" not in headers


def test_a_token_that_is_given_is_needed_on_loopback_too(store):
    token = "Ärger & more=than?sixteen"
    with Server(store, port=0, token=token.replace(" ", "_"), draw=draw) as server:
        assert ask(server, "/")[0] == 403
        query = server.address.partition("?")[2]
        assert ask(server, f"/?{query}")[0] == 303
        assert ask(server, f"/?{query}", Host="evil.example")[0] == 403


@pytest.mark.parametrize(
    "token", ["", "short", "x" * 15, "x" * 257, "with spaces in the token", "line\n" * 5, 7, b"x" * 20]
)
def test_a_token_that_is_no_good_is_refused(store, token):
    with pytest.raises(ParameterError, match="16 to 256"):
        serve(store, port=0, token=token)


# Beginning and ending


def test_a_port_that_is_taken_says_what_to_do(served, store):
    with pytest.raises(ParameterError, match=rf"port {served.port} of 127.0.0.1 is taken.*--port 0"):
        serve(store, port=served.port)


@pytest.mark.parametrize("port", [-1, 65536, "http", 1.5, None, True])
def test_a_port_that_is_none_is_refused(store, port):
    with pytest.raises(ParameterError, match="from 0 to 65535"):
        serve(store, port=port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "a..b", "a\nb", 7, "x" * 300])
def test_a_host_that_is_none_of_this_machine_is_refused(store, host):
    with pytest.raises(ParameterError, match=r"address of this machine"):
        serve(store, host=host, port=0)


def test_a_directory_without_a_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no store"):
        serve(tmp_path, port=0)


def test_ipv6_is_loopback_too(store):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with Server(store, host="::1", port=0, draw=draw) as server:
        assert server.token is None
        assert server.address == f"http://[::1]:{server.port}/"
        connection = http.client.HTTPConnection("::1", server.port, timeout=30)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        connection.close()


def test_without_tornado_the_extra_is_named(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "tornado", None)
    monkeypatch.delitem(sys.modules, "fibration.report._server")
    for name in [name for name in sys.modules if name.startswith("tornado.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtraError, match="pip install 'fibration\\[report\\]'"):
        serve(store, port=0)


def test_it_stops_with_visitors_and_listens_no_more(store):
    server = Server(store, port=0, draw=draw).start()
    visitor = socket.create_connection(("127.0.0.1", server.port))
    server.stop()
    with pytest.raises(ConnectionError):
        ask(server, "/")
    visitor.close()
    server.stop()  # once more does nothing
    server.wait()
