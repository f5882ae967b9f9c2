"""The addresses that a server listens to."""

import errno
import socket
from typing import Any

from ..errors import ParameterError


def as_host(host: Any) -> str:
    """Check a host.

    **Raises:** `ParameterError` if it is no text that could be one.
    """
    if not isinstance(host, str) or not host.isprintable() or len(host) > 253:
        raise ParameterError(
            f"host is {str(host)[:60]!r}",
            "the name or number of an address of this machine",
            "leave it out for 127.0.0.1",
        )
    return host.strip().removeprefix("[").removesuffix("]")


def as_port(port: Any) -> int:
    """Check a port.

    **Raises:** `ParameterError`.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise ParameterError(f"port is {str(port)[:60]!r}", "a whole number from 0 to 65535", "pass 0 for a free one")
    return port


def listen(host: str, port: int) -> list[socket.socket]:
    """Bind to all addresses that a host has.

    **Raises:** `ParameterError`.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            known = [one.getsockname()[1] for one in sockets]  # of several addresses, all have the same port
            one = _bind(family, (address[0], known[0] if known else port, *address[2:]))
            sockets += [] if one is None else [one]
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, "no such address on this machine")
    except (OSError, UnicodeError) as error:
        for one in sockets:
            one.close()
        raise _cannot_listen(host, port, error) from error
    return sockets


def _bind(family: int, address: tuple[Any, ...]) -> socket.socket | None:
    """Listen to one address; None if it is of a kind that this machine has not switched on."""
    try:
        one = socket.create_server(address, family=family, backlog=128)
    except OSError as error:
        if family == socket.AF_INET6 and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return None
        raise
    one.setblocking(False)
    return one


def _cannot_listen(host: str, port: int, error: OSError | UnicodeError) -> ParameterError:
    where = f"port {port} of {host or 'this machine'}"
    if isinstance(error, socket.gaierror | UnicodeError):
        return ParameterError(
            f"the host {host!r} is not known",
            "an address of this machine",
            "leave it out for 127.0.0.1",
        )
    if error.errno == errno.EADDRINUSE:
        return ParameterError(f"{where} is taken", "a free port", "pass `--port 0`, which takes a free one")
    return ParameterError(
        f"{where} cannot be listened to: {error.strerror or error}",
        "an address of this machine, and a port from 1024 on",
        "leave both out, or pass `--port 0`",
    )
