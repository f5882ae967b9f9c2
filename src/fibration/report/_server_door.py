"""Who may see what a server shows: the machine's own user on loopback, and whoever has the token."""

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ..errors import ParameterError

SHORTEST, LONGEST = 16, 256
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def check_token(token: Any) -> str | None:
    """Check a token that a user gave.

    **Raises:** `ParameterError` if it is no text, too short to be safe from guessing, or too long for an address.
    """
    if token is None:
        return None
    sound = isinstance(token, str) and token.isprintable() and not any(map(str.isspace, token))
    if not sound or not SHORTEST <= len(token) <= LONGEST:
        given = (
            f"a token of {len(token)} characters" if isinstance(token, str) else f"a {type(token).__name__} as token"
        )
        raise ParameterError(
            given
            if sound or not isinstance(token, str)
            else "a token with spaces or characters that cannot be printed",
            f"a text of {SHORTEST} to {LONGEST} printable characters without spaces",
            "leave it out, and one is made where it is needed; or make one: "
            '`python -c "import secrets; print(secrets.token_urlsafe())"`',
        )
    return token


def is_loopback(addresses: Collection[str]) -> bool:
    """Tell whether only this machine reaches these addresses."""
    return bool(addresses) and all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)


@dataclass(frozen=True)
class Door:
    """What a request must show.

    `token`: what visitors must know, if anything; `names`: the hosts that an address may name, or None for all;
    `port`: the server's, which tells its cookie from those of other servers on the machine.
    """

    token: str | None
    names: frozenset[str] | None
    port: int

    @staticmethod
    def make(token: str | None, host: str, addresses: Collection[str], port: int) -> "Door":
        """Make the door of a server: on loopback the names of loopback, elsewhere a token, made if none was given.

        A foreign page can have its own name resolve to 127.0.0.1 and then read what a server there says (DNS
        rebinding); the browser still sends that name as the host, so only the names of loopback are answered.
        Their port is not compared, since a tunnel may have another one at its near end.
        """
        if is_loopback(addresses):
            return Door(token, LOOPBACK_NAMES | {host.lower()}, port)
        return Door(token or secrets.token_urlsafe(32), None, port)

    @property
    def query(self) -> str:
        """What the address has to end with that lets a visitor in."""
        return "" if self.token is None else f"?token={quote(self.token, safe='')}"

    @property
    def cookie(self) -> str:
        """The name of the cookie."""
        return f"fibration-{self.port}"

    def pass_cookie(self) -> str:
        """Give the header that sets the cookie; scripts cannot read it, and no other site's requests carry it."""
        return f"{self.cookie}={self._pass()}; Path=/; HttpOnly; SameSite=Strict"

    def admits_host(self, host: str) -> bool:
        """Tell whether an address may name this host, which may stand in brackets."""
        return self.names is None or host.lower().removeprefix("[").removesuffix("]") in self.names

    def admits_token(self, given: str) -> bool:
        """Tell whether this is the token."""
        return self.token is not None and _equal(given, self.token)

    def admits(self, cookies: Mapping[str, str], authorization: str | None) -> bool:
        """Tell whether a request without a token in its address may pass."""
        if self.token is None:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() == "bearer" and _equal(given.strip().encode("latin-1", "replace"), self.token):
            return True
        return _equal(cookies.get(self.cookie, ""), self._pass())

    def _pass(self) -> str:
        """Make the value of the cookie: not the token itself, which then stays out of the browser's files."""
        return hmac.digest((self.token or "").encode(), b"cookie", hashlib.sha256).hex()


def _equal(given: str | bytes, expected: str) -> bool:
    """Compare in a time that does not tell where two texts differ."""
    given = given.encode("utf-8", "replace") if isinstance(given, str) else given
    return hmac.compare_digest(given, expected.encode())
