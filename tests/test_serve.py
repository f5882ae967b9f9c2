"""The server of a store's pages, asked over real sockets: what it shows while runs go on, how it begins and ends."""

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from fibration.errors import MissingExtraError, ParameterError, StoreError
from fibration.report import _served_pages as served_pages
from fibration.report._serve import serve
from fibration.report._served_store import ServedStore
from fibration.report._server import Server
from fibration.study import Store
from serving import POINTS, ask, draw, finish, raw, served, store, wait_for

__all__ = ["served", "store"]  # fixtures


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
