"""``/metrics`` over HTTP: a bounded number of connections, each with a deadline, whoever connects.

A connection has a thread. Where all are taken, the oldest connection is closed for the new one: a scrape is
done in milliseconds, so what is old is a client that does not read or does not ask.
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

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self.address_family = family
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        self._lock = threading.Lock()
        self._since: dict[socket.socket, float] = {}
        handler = type("Handler", (_Handler,), {"registry": registry})
        super().__init__(address, handler)  # type: ignore[arg-type]

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; without a pause a full process would spin here."""
        try:
            return super().get_request()
        except OSError:
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
            del self._since[request]
        self.shutdown_request(request)
        self._room.release()

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

    def close_all(self) -> None:
        """End what is still open."""
        self.server_close()
        with self._lock:
            for request in self._since:
                _hang_up(request)


class _Handler(MetricsHandler):
    timeout = CONNECTION_SECONDS

    def log_message(self, *_: object) -> None:
        """Nothing: whoever connects would write the log."""


def _hang_up(request: socket.socket) -> None:
    """Its thread sees the end, and closes it."""
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


@contextmanager
def serve_page(registry: CollectorRegistry, host: str, port: int) -> Iterator[int]:
    """Serve the page while the block runs; yields the port. Raises AddressError if it cannot be bound."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        page = _Page(registry, host, port)
    except OSError as error:
        raise AddressError(
            f"metrics on {join_address(host, port)}: {error.strerror}, expected a free port"
        ) from None
    thread = threading.Thread(target=page.serve_forever, daemon=True)
    thread.start()
    try:
        yield int(page.server_address[1])
    finally:
        page.shutdown()
        page.close_all()
        thread.join()
