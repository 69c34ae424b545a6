"""``/metrics`` over HTTP: a bounded number of connections, each with a deadline, whoever connects.

A connection has a thread. Where all are taken, the oldest connection is closed for the new one: a scrape is
done in milliseconds, so what is old is a client that does not read or does not ask. Those who look at the
live page (``page/``), where there is one, are handed over to a thread of its own.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from prometheus_client import CollectorRegistry, MetricsHandler, disable_created_metrics

from offramp.common.errors import AddressError
from offramp.common.page.site import FULL, STREAM, Page, Site
from offramp.common.page.viewers import Viewers
from offramp.common.pause import pause
from offramp.common.wire.address import join_address

log = logging.getLogger("offramp")

CONNECTIONS = 8
"""At once; more than one Prometheus and someone who looks are rare."""
CONNECTION_SECONDS = 10.0
"""Prometheus' own timeout for a scrape, by default."""
EVICTION_SECONDS = 1.0
"""How long the thread of a connection that was closed may take to end, before the new one is closed."""
PAUSE_SECONDS = 0.1
"""Before accepting is tried again where there was no descriptor or no memory for it."""


class _Page(socketserver.TCPServer):
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, registry: CollectorRegistry, host: str, port: int, page: Page | None = None) -> None:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self.address_family = family
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        self._lock = threading.Lock()
        self._since: dict[socket.socket, float] = {}
        self._ending = False
        self.viewers: Viewers | None = None
        handler = type("Handler", (_Handler,), {"registry": registry})
        if page is not None:
            site = Site(page, registry, host)
            handler = type("Handler", (_SiteHandler,), {"registry": registry, "site": site})
        super().__init__(address, handler)  # type: ignore[arg-type]
        if page is not None:
            self.viewers = Viewers(site.state)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; without a pause a full process would spin here."""
        try:
            return super().get_request()
        except OSError:
            if not self._ending:
                pause(PAUSE_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a thread of its own, for which an older connection may have to go."""
        if not self._room.acquire(blocking=False):
            self._close_oldest()
            if not self._room.acquire(timeout=EVICTION_SECONDS):
                self.shutdown_request(request)
                return
        with self._lock:
            self._since[request] = time.monotonic()
        try:
            threading.Thread(target=self._answer, args=(request, client_address), daemon=True).start()
        except RuntimeError:  # no thread to be had
            self._done(request)

    def _answer(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self._done(request)

    def _done(self, request: socket.socket) -> None:
        with self._lock:
            kept = self._since.pop(request, None) is None
        if not kept:
            self.shutdown_request(request)
        self._room.release()

    def hand_over(self, request: socket.socket, head: bytes) -> bool:
        """Make this connection a viewer's, from now on without a deadline; False where there are enough."""
        with self._lock:
            # One that is no longer here is no longer hung up from here, nor closed with its thread.
            since = self._since.pop(request)
            taken = self.viewers is not None and self.viewers.add(request, head)
            if not taken:
                self._since[request] = since
        return taken

    def _close_oldest(self) -> None:
        with self._lock:
            if self._since:
                _hang_up(next(iter(self._since)))

    def service_actions(self) -> None:
        """Twice a second: close what is overdue. A timeout of each read would let one byte at a time pass."""
        with self._lock:
            for request, since in self._since.items():
                if time.monotonic() - since < CONNECTION_SECONDS:
                    break
                _hang_up(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is not an event; what else goes wrong is one line, not a traceback."""
        error = sys.exception() if hasattr(sys, "exception") else sys.exc_info()[1]
        level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR
        log.log(level, "metrics page: %s", type(error).__name__)

    def end(self) -> None:
        """Stop accepting, and end what is still open."""
        self._ending = True
        # Wakes the thread that accepts, which would see only at its next look that it has to end. Not every
        # system does.
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.shutdown()
        self.server_close()
        with self._lock:
            for request in self._since:
                _hang_up(request)
        if self.viewers is not None:
            self.viewers.close()


class _Handler(MetricsHandler):
    timeout = CONNECTION_SECONDS

    def log_message(self, *_: object) -> None:
        """Nothing: whoever connects would write the log."""


class _SiteHandler(_Handler):
    """With the live page: its paths are the site's, all others the metrics'."""

    site: Site

    def do_GET(self) -> None:
        """Answer a GET."""
        path = self.path.partition("?")[0]
        if not self.site.has(path):
            super().do_GET()
            return
        reply = self.site.get(path, self.headers)
        if reply is not STREAM:
            self.wfile.write(reply.message())
        elif not self._page.hand_over(self.connection, reply.head()):
            self.wfile.write(FULL.message())

    def do_POST(self) -> None:
        """Answer a POST."""
        path = self.path.partition("?")[0]
        reply = self.site.post(path, self.headers, self.rfile.read, self.client_address[0])
        self.wfile.write(reply.message())

    @property
    def _page(self) -> _Page:
        assert isinstance(self.server, _Page)
        return self.server


def _hang_up(request: socket.socket) -> None:
    """Its thread sees the end, and closes it."""
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


@contextmanager
def serve_page(registry: CollectorRegistry, host: str, port: int, page: Page | None = None) -> Iterator[int]:
    """Serve the metrics while the block runs, and this page at ``/``; yields the port.

    Raises AddressError if it cannot be bound.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        server = _Page(registry, host, port, page)
    except OSError as error:
        raise AddressError(
            f"metrics on {join_address(host, port)}: {error.strerror}, expected a free port"
        ) from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.end()
        thread.join()
