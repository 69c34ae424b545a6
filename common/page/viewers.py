"""Those who look at the page: one thread that writes the same state to all of them, twice a second.

Without a viewer nothing is made. One that does not read misses states, then it is let go; more than
``VIEWERS`` are refused. So what they cost is bounded, however many there are, and however slow.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

log = logging.getLogger("offramp")

VIEWERS = 16
"""At once."""
PERIOD_SECONDS = 0.5
"""Between two states."""
STUCK_SECONDS = 10.0
"""How long a viewer may take for one state."""


class _Viewer:
    def __init__(self, connection: socket.socket, head: bytes) -> None:
        self.connection = connection
        self.pending = head
        self.since = time.monotonic()

    def push(self, state: bytes, now: float) -> bool:
        """Send what the connection takes at once; whether the viewer is still there."""
        try:
            with suppress(BlockingIOError):
                if not self.connection.recv(256):
                    return False
            if not self._flush():
                return now - self.since < STUCK_SECONDS
            self.pending, self.since = state, now
            self._flush()
        except OSError:
            return False
        return True

    def _flush(self) -> bool:
        """Whether nothing is left to send."""
        with suppress(BlockingIOError):
            while self.pending:
                self.pending = self.pending[self.connection.send(self.pending) :]
        return not self.pending

    def close(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


class Viewers:
    """The open connections. state: makes what they are all sent, one line of JSON; on this thread alone."""

    def __init__(self, state: Callable[[], bytes]) -> None:
        self._state = state
        self._viewers: list[_Viewer] = []
        self._closed = False
        self._failed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="offramp-page", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._viewers)

    def add(self, connection: socket.socket, head: bytes) -> bool:
        """Take a connection over, and send it ``head`` first; False where there are enough."""
        with self._changed:
            if self._closed or len(self._viewers) >= VIEWERS:
                return False
            connection.setblocking(False)
            self._viewers.append(_Viewer(connection, head))
            self._changed.notify()
        return True

    def close(self) -> None:
        """Let all go, and take no more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for viewer in self._viewers:
            viewer.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._viewers or self._closed)
                if self._closed:
                    return
                viewers = list(self._viewers)
            event = self._event()
            now = time.monotonic()
            gone = [viewer for viewer in viewers if not viewer.push(event, now)]
            for viewer in gone:
                viewer.close()
            with self._changed:
                self._viewers = [viewer for viewer in self._viewers if viewer not in gone]
                if self._changed.wait_for(lambda: self._closed, PERIOD_SECONDS):
                    return

    def _event(self) -> bytes:
        """The state as a server-sent event; a comment where it could not be made."""
        try:
            event = b"data: " + self._state() + b"\n\n"
        except Exception:  # of any collector; viewers see that it is old
            if not self._failed:
                log.exception("the page's state could not be made")
            self._failed = True
            return b":\n\n"
        self._failed = False
        return event
