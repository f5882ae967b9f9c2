"""The token of a server of a store's pages: where it is needed, how it is shown, what is no good as one."""

import pytest

from fibration.errors import ParameterError
from fibration.report._serve import serve
from fibration.report._server import Server
from serving import ask, draw, store

__all__ = ["store"]  # a fixture

TOKEN = "a-token-that-is-long-enough"


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
