"""Back to a server that is preferred: asked in the background whether it takes streams again.

While a link uses another server than its first, those before it are asked now and then, in their order: each
by a stream of its own that ends once it is accepted. No frame waits for that. The one that accepts is the one
for frames from then on, until it fails.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from offramp.common.errors import MessageError
from offramp.link.backoff import Doubling
from offramp.link.outbox import Limits
from offramp.link.servers import Server
from offramp.link.session import Kit, Owner, Session
from offramp.link.wire_bytes import WireCounter

log = logging.getLogger("offramp.link")

RETURN_FIRST, RETURN_MOST = 1.0, 30.0
"""Seconds between two looks at those that are preferred, doubled up to the second as long as they fail; half
to all of it is waited."""


class Pauses:
    """How long to wait until the next look."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._pause = Doubling(RETURN_FIRST, RETURN_MOST, draw)

    def after(self, asked: bool, settled: bool) -> float:
        """Seconds. asked: whether one was asked; settled: whether the first one is in use, and answers."""
        return self._pause.take(short=settled, longer=asked)


class Ask:
    """One stream that is opened to see whether a server accepts it."""

    def __init__(self, server: Server, kit: Kit) -> None:
        self.wire = WireCounter()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        owner = Owner(
            begins=self._begins,
            next_message=self._next_message,
            accepted=self._accepted,
            draining=lambda _: None,
            excess=lambda replies: replies,
            replied=_never_sent,
            refuse=_never_sent,
        )
        self._session = Session(server, replace(kit, owner=owner, wire=self.wire), time.monotonic())
        self._timeout = kit.timeout

    def run(self) -> bool:
        """Whether it was accepted, and ended in good order; no longer than the link's timeout."""
        try:
            error = self._session.run()
        finally:
            self._ended.set()
        log.debug("%s, which is preferred: %s", self._session.server.target, error or "takes streams")
        return error is None and self._session.is_accepted

    def cancel(self) -> None:
        """End it; from another thread."""
        with self._lock:
            self._ended.set()
            self._session.cancel("closed")

    def _begins(self, session: Session, call: Callable[..., Any]) -> bool:
        with self._lock:
            if self._ended.is_set():
                return False
            session.call = call(timeout=self._timeout)
            return True

    def _next_message(self, _: Session) -> None:
        self._ended.wait()

    def _accepted(self, session: Session, _: Limits) -> None:
        session.accepted_at = time.monotonic()
        session.half_close = True
        self._ended.set()


def _never_sent(*_: object) -> NoReturn:
    raise MessageError("answered a frame, where none was sent")


class Preference:
    """Looks after the servers before the one in use.

    preferred: those that may be asked now, and whether the first one is in use and answers. use: called with
    the one that accepts. wire: counts what asking costs as well.
    """

    def __init__(
        self,
        kit: Kit,
        preferred: Callable[[], tuple[Sequence[Server], bool]],
        use: Callable[[Server], None],
        pauses: Pauses | None = None,
    ) -> None:
        self._kit = kit
        self._preferred = preferred
        self._use = use
        self._pauses = pauses or Pauses()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._ask: Ask | None = None

    def look_back(self) -> None:
        """Look, ask and wait, until ``close``; a thread's work."""
        servers: Sequence[Server] = ()
        settled = True
        while not self._closed.wait(self._pauses.after(bool(servers), settled)):
            servers, settled = self._preferred()
            for server in servers:
                if self._accepts(server):
                    self._use(server)
                    break

    def close(self) -> None:
        """Have ``look_back`` end soon."""
        with self._lock:
            self._closed.set()
            if self._ask is not None:
                self._ask.cancel()

    def _accepts(self, server: Server) -> bool:
        ask = Ask(server, self._kit)
        with self._lock:
            if self._closed.is_set():
                return False
            self._ask = ask
        accepted = ask.run()
        self._kit.wire.add(ask.wire)
        return accepted and not self._closed.is_set()
