"""The pages of a store in a browser while runs go on."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..plots._extra import report_extra

if TYPE_CHECKING:
    from ._server import Server


def serve(
    store: Any,
    *,
    host: Any = "127.0.0.1",
    port: Any = 8765,
    token: Any = None,
    announce: Callable[[str], Any] | None = None,
    started: "Callable[[Server], Any] | None" = None,
) -> None:
    """Show the pages of a store in a browser, and keep them up to date, until interrupted from the keyboard.

    The pages are those of `page_of` and `compare_page`: `/` lists studies and runs, `/study/ID`, `/run/ID` and
    `/compare/ID/ID` show them, and `/api/status` tells as JSON how far they are. The store is only read. What is no
    page is not found, and a link in the store that leads out of it is refused.

    On loopback whoever uses this machine may look. Bound to anything else, a visitor needs the token: once in the
    address, `?token=…`, after which the browser keeps a cookie, or in a header, `Authorization: Bearer …`. Nothing is
    encrypted, so use a network that you trust, or a tunnel: `ssh -L 8765:localhost:8765 HOST`.

    **Arguments:** `store`: a store or its path; `host`: the address to listen at; `port`: 0 takes a free one; `token`:
    at least 16 characters, and needed on loopback too if given; one is made where it is needed; `announce`: is called
    with the address, and with errors; `started`: is called with the server when it listens, which has `address`,
    `port` and `stop()`.

    **Raises:** `ParameterError` for a port that is taken, an address that is not this machine's, a short token;
    `StoreError` if there is no store; `MissingExtraError` without the extra `report`.

    ```python
    >>> import tempfile
    >>> import fibration as fb
    >>> store = fb.study.Store(tempfile.mkdtemp(), create=True)
    >>> fb.report.serve(store, port=0, announce=print, started=lambda server: server.stop())
    The store: http://127.0.0.1:.../

    ```
    """
    with report_extra():
        from ._server import Server
    server = Server(store, host=host, port=port, token=token, announce=announce)
    try:
        server.start()
        if announce is not None:
            announce(f"The store: {server.address}")
        if started is not None:
            started(server)
        server.wait()
    except KeyboardInterrupt:
        pass  # the way to end it
    finally:
        server.stop()
