"""A web server for a store, on a thread of its own. Imports tornado, so it is itself imported when it is used."""

import asyncio
import html
import json
import re
import socket
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlencode

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError

from ..study import Store
from ._served_live import banner
from ._served_look import Route, count
from ._served_pages import BusyError, Draw, Pages, Rendered, failure
from ._served_store import OutsideError, ServedStore
from ._server_door import Door, check_token
from ._server_sockets import as_host, as_port, listen

LONGEST_ADDRESS, LONGEST_HEADERS, LONGEST_BODY = 2000, 256 * 1024, 64 * 1024
MOST_CONNECTIONS, MOST_PARAMETERS = 256, 20
IDLE_SECONDS, BODY_SECONDS, WRITE_SECONDS = 120.0, 10.0, 120.0
_ROUTE = re.compile(r"/(study)/([a-z0-9-]{1,64})|/(run)/([0-9a-f]{16})|/(compare)/([0-9a-f]{16})/([0-9a-f]{16})")
_API = "/api/status"
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_REASONS = {200: "OK", 303: "See Other", 400: "Bad Request", 403: "Forbidden", 404: "Not Found",
            405: "Method Not Allowed", 414: "URI Too Long", 500: "Internal Server Error",
            503: "Service Unavailable"}  # fmt: skip


@dataclass
class Reply:
    """An answer: its status, the pieces of its body, its headers."""

    status: int
    body: tuple[bytes, ...]
    headers: dict[str, str] = field(default_factory=dict)


class Server:
    """A server of the pages of a store: read-only, with a token unless it listens to this machine only.

    **Arguments:** those of `serve`; `draw`: the function of store, route and look that gives a page's HTML.

    **Raises:** `ParameterError` for a host, port or token that cannot be used; `StoreError`.
    """

    def __init__(
        self,
        store: Any,
        *,
        host: Any = "127.0.0.1",
        port: Any = 8765,
        token: Any = None,
        announce: Callable[[str], Any] | None = None,
        draw: Draw | None = None,
    ) -> None:
        self._announce: Callable[[str], Any] = announce or (lambda _: None)
        self._pages = Pages(ServedStore(store.path if isinstance(store, Store) else store), self._announce, draw)
        self._token, self.host, self._asked = check_token(token), as_host(host), as_port(port)
        self.port = self._asked
        self._door = Door(self._token, frozenset(), 0)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """The address for a browser, with the token if one is needed."""
        host = socket.gethostname() if self.host in ("", "0.0.0.0", "::") else self.host  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/{self._door.query}"

    @property
    def token(self) -> str | None:
        """What visitors must show."""
        return self._door.token

    def start(self) -> "Server":
        """Listen, on a thread of its own.

        **Raises:** `ParameterError` if the port is taken, or there is no such host.
        """
        sockets = listen(self.host, self._asked)
        self.port = sockets[0].getsockname()[1]
        self._door = Door.make(self._token, self.host, [one.getsockname()[0] for one in sockets], self.port)
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(sockets, ready)), name="fibration-serve", daemon=True
        )
        self._thread.start()
        ready.wait()
        return self

    def wait(self) -> None:
        """Wait until the server is stopped; an interrupt from the keyboard gets through."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(0.5)

    def stop(self) -> None:
        """Stop listening, and end the thread."""
        if self._loop is not None and self._ending is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._ending.set)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(30.0)

    async def _serve(self, sockets: list[socket.socket], ready: threading.Event) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        answering: set[asyncio.Task[None]] = set()

        def answer(request: HTTPServerRequest) -> None:
            task = asyncio.ensure_future(self._answer(request))
            answering.add(task)
            task.add_done_callback(answering.discard)

        server = _LimitedServer(
            answer,
            max_header_size=LONGEST_HEADERS,
            max_body_size=LONGEST_BODY,
            idle_connection_timeout=IDLE_SECONDS,
            body_timeout=BODY_SECONDS,
        )
        try:
            server.add_sockets(sockets)
            ready.set()
            await self._ending.wait()
            server.stop()
            await server.close_all_connections()
        finally:
            ready.set()
            for task in answering:
                task.cancel()
            self._pages.close()

    async def _answer(self, request: HTTPServerRequest) -> None:
        """Answer one request, whatever happens."""
        try:
            reply = await self._reply(request)
        except Exception:
            self._announce(f"A request could not be answered.\n{traceback.format_exc()}")
            reply = _page(failure(500, "An error", "The terminal of the server says which."))
        headers = HTTPHeaders({**_HEADERS, **reply.headers, "Content-Length": str(sum(map(len, reply.body)))})
        connection: Any = request.connection
        connection.write_headers(ResponseStartLine("HTTP/1.1", reply.status, _REASONS[reply.status]), headers)
        try:
            sent: Any = None
            for part in reply.body if request.method != "HEAD" else ():
                sent = connection.write(part)
            connection.finish()
            if sent is not None:
                await asyncio.wait_for(sent, WRITE_SECONDS)
        except (StreamClosedError, TimeoutError):  # a visitor who left, or who does not read
            connection.stream.close()

    async def _reply(self, request: HTTPServerRequest) -> Reply:
        """Decide who may see what, and look for it."""
        if not self._door.admits_host(request.host_name) or _comes_from_another_site(request.headers):
            return _refusal()
        if len(str(request.uri)) > LONGEST_ADDRESS:
            return _page(failure(414, "This address is too long", f"At most {LONGEST_ADDRESS} characters are read."))
        try:
            query = parse_qsl(request.query, keep_blank_values=True, max_num_fields=MOST_PARAMETERS)
        except ValueError:
            return _page(failure(400, "Too many parameters", "Leave what stands after the question mark out."))
        tokens = [value for name, value in query if name == "token"]
        if not self._admits(request, tokens):
            return _refusal()
        if request.method not in ("GET", "HEAD"):
            page = failure(405, "This store is only read", "Pages are asked for with GET or HEAD.")
            return _page(page, {"Allow": "GET, HEAD"})
        path = request.path
        asks_status = path == _API or path.startswith(f"{_API}/")
        route = ("index",) if path in ("/", _API) else _route(path.removeprefix(_API) if asks_status else path)
        if route is None:
            return _page(failure(404, "No such page", "The way to all pages begins at /."))
        if tokens:
            return self._enter(path, [(name, value) for name, value in query if name != "token"], request.headers)
        try:
            return await (self._status(route) if asks_status else self._show(route, ("part", "main") in query))
        except OutsideError as error:
            return _page(failure(403, "Outside of the store", str(error)))
        except BusyError:
            why = "Busy", "Many pages are being drawn. This one is tried again by itself."
        except OSError as error:
            why = "The store cannot be read at the moment", str(error)
        return _page(failure(503, *why), {"Retry-After": "10"})

    def _admits(self, request: HTTPServerRequest, tokens: list[str]) -> bool:
        """Tell whether a request shows the token; if there is one in the address, it is the one that counts."""
        if tokens and self._door.token is not None:
            return len(tokens) == 1 and self._door.admits_token(tokens[0])
        cookies = {name: morsel.value for name, morsel in request.cookies.items()}
        return self._door.admits(cookies, request.headers.get("Authorization"))

    def _enter(self, path: str, query: list[tuple[str, str]], headers: HTTPHeaders) -> Reply:
        """Let a visitor in who brought the token in the address, and take it out of the address.

        A browser that came by a link on another site's page would not send a SameSite=Strict cookie along a
        redirection, so a browser gets a page that goes on by itself.
        """
        there = path + (f"?{urlencode(query)}" if query else "")
        cookie = {"Set-Cookie": self._door.pass_cookie()} if self._door.token is not None else {}
        if "text/html" not in headers.get("Accept", ""):
            return Reply(303, (), {**cookie, "Location": there, "Content-Type": "text/plain"})
        page = failure(200, "Welcome", "")
        onward = f'<meta http-equiv="refresh" content="0; url={html.escape(there)}">\n</head>'
        before = page.before.replace(b"</head>", onward.encode())
        return _page(Rendered(200, before, page.main, page.after, page.policy), cookie)

    async def _show(self, route: Route, only_part: bool) -> Reply:
        found = await self._pages.page(route)
        if found is None:
            return _page(failure(404, "No such page", "The store holds no run or study of this name."))
        page, seen = found
        if page.status != 200:
            return _page(page)
        top = banner(route, seen, page.state).encode("utf-8", "replace")
        body = (top, page.main) if only_part else (page.before, top, page.main, page.after)
        return Reply(200, body, {**_HTML, "Content-Security-Policy": page.policy})

    async def _status(self, route: Route) -> Reply:
        """Tell as JSON what a page asks every few seconds."""
        seen = await self._pages.look()
        state = seen.state(route)
        if state is None:
            return _json(404, {"error": "no such page"})
        facts: dict[str, Any] = {"state": state, "text": seen.told(route), "changed": seen.changed}
        if route == ("index",):
            facts["runs"] = count(tuple(seen.runs.values()))
            facts["studies"] = [
                {"id": study.id, "name": study.name, "points": study.points, "runs": study.counts}
                for study in seen.studies
            ]
        return _json(200, facts)


class _LimitedServer(HTTPServer):
    """A server that does not answer more visitors at a time than it has room for."""

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        if len(self._connections) >= MOST_CONNECTIONS:
            stream.close()
        else:
            super().handle_stream(stream, address)


_HTML = {"Content-Type": "text/html; charset=utf-8"}


def _page(page: Rendered, more: dict[str, str] | None = None) -> Reply:
    headers = {**_HTML, "Content-Security-Policy": page.policy, **(more or {})}
    return Reply(page.status, (page.before, page.main, page.after), headers)


def _json(status: int, facts: dict[str, Any]) -> Reply:
    body = json.dumps(facts).encode()
    return Reply(status, (body,), {"Content-Type": "application/json", "Content-Security-Policy": "default-src 'none'"})


def _refusal() -> Reply:
    return _page(failure(403, "Refused", ""))


def _route(path: str) -> Route | None:
    """Read a path; nothing in it is decoded, so what is not spelled exactly so is no page."""
    found = _ROUTE.fullmatch(path)
    return None if found is None else tuple(part for part in found.groups() if part is not None)


def _comes_from_another_site(headers: HTTPHeaders) -> bool:
    """Tell whether another site's page asked for this, other than by a link; browsers say so."""
    return headers.get("Sec-Fetch-Site") == "cross-site" and headers.get("Sec-Fetch-Mode") != "navigate"
