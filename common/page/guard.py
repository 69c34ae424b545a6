"""Whether a request for the page comes from the page itself, or from its reader: pure, of headers alone.

A browser runs other sites' scripts too, and they can send requests here. Three checks keep them out:

- ``Host`` must be an address, ``localhost``, or this machine's own name. A site that makes its own name
  point here (DNS rebinding) cannot have a browser send one of these.
- ``Sec-Fetch-Site``, where the browser says it, must be the page's own. A link from elsewhere may open it.
- ``Origin``, where it is said, must be the page's own.

What changes something must be JSON as well, which no form of another site can send, and carry the token where
there is one.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Collection
from email.message import Message

BODY_BYTES = 1024
"""The longest body that is read."""
_SCHEME = "bearer "


class Refused(Exception):
    """A request is not answered. status: HTTP's; the message is for a person."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def own_names(bound: str, hostname: str) -> frozenset[str]:
    """Names that ``Host`` may have. bound: as the flag gives it; hostname: this machine's."""
    return frozenset(name.lower() for name in (bound, hostname, "localhost") if name)


def check(headers: Message, names: Collection[str], *, opens_page: bool = False) -> None:
    """Raise Refused for a request that another site may have caused. opens_page: a link may lead to it."""
    host = _only(headers, "Host")
    if host is None or not _is_ours(host, names):
        raise Refused(403, "unknown Host, expected an address, localhost or this machine's name")
    site = _only(headers, "Sec-Fetch-Site")
    if site not in (None, "same-origin", "none"):
        opened = (
            _only(headers, "Sec-Fetch-Mode") == "navigate" and _only(headers, "Sec-Fetch-Dest") == "document"
        )
        if not (opens_page and opened):
            raise Refused(403, "a request of another site, expected the page's own")
    origin = _only(headers, "Origin")
    if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
        raise Refused(403, "a request of another site, expected the page's own")


def body_bytes(headers: Message) -> int:
    """How long the body is, of a request that changes something. Raises Refused."""
    if headers.get_content_type() != "application/json" or _only(headers, "Content-Type") is None:
        raise Refused(415, "expected Content-Type: application/json")
    if headers.get_all("Transfer-Encoding"):
        raise Refused(411, "expected a Content-Length")
    said = _only(headers, "Content-Length") or ""
    if not (said.isascii() and said.isdigit() and len(said) < 10):
        raise Refused(411, "expected a Content-Length")
    if int(said) > BODY_BYTES:
        raise Refused(413, f"expected {BODY_BYTES} bytes at most")
    return int(said)


def check_token(headers: Message, token: str) -> None:
    """Raise Refused unless the request shows this token. It takes as long for any wrong one."""
    said = _only(headers, "Authorization") or ""
    shown = hashlib.sha256(said[len(_SCHEME) :].strip().encode("utf-8", "surrogateescape")).digest()
    known = hmac.compare_digest(shown, hashlib.sha256(token.encode()).digest())
    if not known or said[: len(_SCHEME)].lower() != _SCHEME:
        raise Refused(401, "no token that is known here, expected the one in --page-token-file")


def _only(headers: Message, name: str) -> str | None:
    """A header's value; None where it is absent. Raises Refused where it is there twice."""
    values = headers.get_all(name) or []
    if len(values) > 1:
        raise Refused(400, f"more than one {name}")
    return str(values[0]).strip() if values else None


def _is_ours(host: str, names: Collection[str]) -> bool:
    name = host.lower()
    if name.startswith("["):
        name, closed, port = name[1:].partition("]")
        port = port.removeprefix(":") if closed else "?"
    else:
        name, _, port = name.partition(":")
    if port and not (port.isascii() and port.isdigit()):
        return False
    if name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
