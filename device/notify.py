"""What a device says to systemd, which started it with ``Type=notify``; sd_notify(3) has the protocol."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


class Notifier:
    """Says to the service manager, where there is one, that the device is ready, alive and stopping.

    environment: ``NOTIFY_SOCKET`` names its socket, ``WATCHDOG_USEC`` how long it waits for a sign of life.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self.interval: float | None = None
        """Seconds between two signs of life, half of what the watchdog waits; None: it is not waiting."""
        timeout = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if self._address and ours and timeout.isascii() and timeout.isdigit() and int(timeout):
            self.interval = int(timeout) / 2e6
        self._due = 0.0

    def ready(self) -> None:
        """The bundle is loaded; images may come."""
        self._send("READY=1")

    def beat(self) -> None:
        """The main thread gets on; sent when it is due, however often this is called."""
        if self.interval is not None and (now := time.monotonic()) >= self._due:
            self._due = now + self.interval / 2
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """What is under way is being finished."""
        self._send("STOPPING=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        # Answers go on without a manager.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as handle:
            handle.setblocking(False)
            handle.sendto(state.encode(), self._address)
