"""The live page of a program, beside its ``/metrics``: what is sent for a request. No socket here.

    /            the page: index.html, page.css, page.js, icon.svg, as they are in this folder
    /events      its state twice a second, as server-sent events (``viewers.py``)
    /threshold   POST {"threshold": 0.9}: T_c from now on, where the program has one to set

``guard.py`` says whose requests are answered. The state has the figures of ``/metrics`` under their names
there, and what the program adds; names of images and the like are text in JSON, and text on the page.
"""

from __future__ import annotations

import json
import logging
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from functools import lru_cache
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from prometheus_client import CollectorRegistry

from offramp.common.errors import ConfigError, printable
from offramp.common.page import guard
from offramp.common.page.guard import Refused
from offramp.common.release import package_version
from offramp.common.wire.address import is_loopback

log = logging.getLogger("offramp")

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}
EVENTS, THRESHOLD = "/events", "/threshold"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every answer."""
RETRY_SECONDS = 10
"""When a viewer who is one too many may ask again."""


@dataclass(frozen=True)
class Page:
    """What a program shows beside its metrics.

    state: what is added to each state, fit for JSON; called twice a second while someone looks, on a thread
    of its own. set_threshold: sets T_c and returns the one before; None: there is none to set. Its
    ConfigError is the reader's answer. token: that a change must show; None: it is set on loopback only.
    """

    program: str
    state: Callable[[], dict[str, Any]]
    set_threshold: Callable[[float], float] | None = None
    token: str | None = None


@dataclass(frozen=True)
class Reply:
    """An answer to one request."""

    status: int
    kind: str = "text/plain"
    body: bytes = b""
    extra: dict[str, str] = field(default_factory=dict)

    def head(self, **extra: object) -> bytes:
        """The status line and all headers; without a length it goes on until the connection's end."""
        headers = {"Content-Type": f"{self.kind}; charset=utf-8", **HEADERS, **self.extra, **extra}
        lines = (f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.0 {self.status} {HTTPStatus(self.status).phrase}\r\n{''.join(lines)}\r\n".encode()

    def message(self) -> bytes:
        """All of it."""
        return self.head(**{"Content-Length": len(self.body)}) + self.body


FULL = Reply(
    503, body=b"as many viewers as may be, try again later\n", extra={"Retry-After": str(RETRY_SECONDS)}
)
STREAM = Reply(200, "text/event-stream")
"""The head of ``/events``."""


class Site:
    """The page of one program, served on this host (as its flag gives it)."""

    def __init__(self, page: Page, registry: CollectorRegistry, host: str) -> None:
        self._page = page
        self._registry = registry
        self._names = guard.own_names(host, socket.gethostname())
        self._local = is_loopback(host)
        self._version = package_version()
        folder = files("offramp.common.page")
        self._files = {path: folder.joinpath(name).read_bytes() for path, name in FILES.items()}

    def has(self, path: str) -> bool:
        """Whether this path is the page's; all others are the metrics'."""
        return path in FILES or path in (EVENTS, THRESHOLD)

    def get(self, path: str, headers: Message) -> Reply:
        """The answer to a GET; for ``/events`` its head, or why there are none."""
        try:
            guard.check(headers, self._names, opens_page=path == "/")
            if path == THRESHOLD:
                raise Refused(405, "expected POST")
        except Refused as refused:
            return _refusal(refused)
        if path == EVENTS:
            return STREAM
        return Reply(200, KINDS[FILES[path][FILES[path].rindex(".") :]], self._files[path])

    def post(self, path: str, headers: Message, read: Callable[[int], bytes], client: str) -> Reply:
        """The answer to a POST. read: so many bytes of its body. client: whose it is, for the log."""
        try:
            guard.check(headers, self._names)
            if path != THRESHOLD:
                raise Refused(405, "expected GET")
            length = guard.body_bytes(headers)
            change = self._changer(headers)
            value = _threshold(read(length))
        except Refused as refused:
            return _refusal(refused)
        try:
            before = change(value)
        except ConfigError as error:
            return _refusal(Refused(409, str(error)))
        log.info("T_c set from %g to %g on the page, by %s", before, value, printable(client))
        return Reply(200, "application/json", json.dumps({"threshold": value}).encode())

    def state(self) -> bytes:
        """What viewers are sent: one line of JSON."""
        control = {
            "settable": self._page.set_threshold is not None
            and (self._local or self._page.token is not None),
            "token": self._page.token is not None,
        }
        state = {
            "program": self._page.program,
            "version": self._version,
            "time": time.monotonic(),
            "metrics": figures(self._registry),
            "control": control,
            **self._page.state(),
        }
        return json.dumps(state, allow_nan=False, separators=(",", ":")).encode()

    def _changer(self, headers: Message) -> Callable[[float], float]:
        """What sets T_c. Raises Refused where there is none, or this request may not."""
        if self._page.set_threshold is None:
            raise Refused(404, "there is no T_c to set here, expected an edge-device")
        if self._page.token is not None:
            guard.check_token(headers, self._page.token)
        elif not self._local:
            raise Refused(403, "T_c is set on loopback, or with a token: --page-token-file")
        return self._page.set_threshold


def figures(registry: CollectorRegistry) -> dict[str, float | None]:
    """Each sample by name and labels as ``/metrics`` writes them; None where it is not finite."""
    # Not from the text of ``/metrics``: to write and to read that takes three times as long.
    return {
        _key(sample.name, tuple(sample.labels.items())): sample.value if math.isfinite(sample.value) else None
        for family in registry.collect()
        for sample in family.samples
    }


@lru_cache(16_384)
def _key(name: str, labels: tuple[tuple[str, str], ...]) -> str:
    """A sample's name and labels as ``/metrics`` writes them."""
    if not labels:
        return name
    escaped = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
    shown = ",".join(f'{key}="{value.translate(escaped)}"' for key, value in sorted(labels))
    return f"{name}{{{shown}}}"


def _threshold(body: bytes) -> float:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    value = said.get("threshold") if isinstance(said, dict) and len(said) == 1 else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise Refused(400, 'expected {"threshold": a number, 0 … 1}')
    return float(value)


def _refusal(refused: Refused) -> Reply:
    extra = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else {}
    return Reply(refused.status, body=f"{refused}\n".encode(), extra=extra)
