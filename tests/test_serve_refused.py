"""What the server of a store's pages refuses: strange requests, links out of the store, and to write anything."""

import hashlib
import os
import re
import shutil
import socket
import time

import pytest

from fibration.errors import StoreError
from fibration.report import _server as server_module
from fibration.report._served_store import OutsideError, ServedStore
from fibration.report._server import Server
from serving import ask, draw, raw, served, store, wait_for

__all__ = ["served", "store"]  # fixtures


def listing(path):
    """List all that a store holds, with its contents."""
    # Not the time at which the owner last changed: run by root, SQLite sets that of its journal to what it is.
    facts = {}
    for one in [path, *path.rglob("*")]:
        found = os.lstat(one)
        digest = hashlib.sha256(one.read_bytes()).hexdigest() if one.is_file() else ""
        facts[one.relative_to(path).as_posix()] = (found.st_ino, found.st_mode, found.st_mtime_ns, digest)
    return facts


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
