"""Between systemd, which started the follower with ``Type=notify``, and the command, which says how it is.

That the command is ready and alive is handed on. That it is stopping is not: systemd would end the service,
where only its bundle is changed. Until the command is ready the follower itself says that it is alive.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from offramp.device.notify import Notifier

MESSAGE_BYTES = 4096
READY_SECONDS = 120.0
"""How long the follower speaks for a command that has started and is not ready."""


class Relay:
    """Listens to the command while the block runs, in an event loop. Without a manager it does nothing.

    environment: the follower's own.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._manager = Notifier(environment)
        self._inherited = environment
        self._listens = bool(environment.get("NOTIFY_SOCKET"))
        self._speaks_until: float | None = None
        """Until when the follower says that all is well; None: for as long as it runs."""

    async def __aenter__(self) -> Self:
        if self._listens:
            # Nobody else may write there: the directory is this user's alone.
            self._folder = tempfile.TemporaryDirectory(prefix="offramp-follow-")
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._address = str(Path(self._folder.name) / "notify")
            self._socket.bind(self._address)
            asyncio.get_running_loop().add_reader(self._socket, self._hear)
            self._beating = asyncio.ensure_future(self._beat())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Say no more."""
        if self._listens:
            self._beating.cancel()
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._folder.cleanup()

    @property
    def environment(self) -> dict[str, str] | None:
        """Of the command; None: as our own."""
        if not self._listens:
            return None
        # The watchdog's process is the follower; the command is to give signs of life too.
        kept = {name: value for name, value in self._inherited.items() if name != "WATCHDOG_PID"}
        return kept | {"NOTIFY_SOCKET": self._address}

    def started(self) -> None:
        """The command was."""
        self._speaks_until = time.monotonic() + READY_SECONDS

    def ends(self) -> None:
        """The command does, or has: within a time that is the follower's to bound."""
        self._speaks_until = None

    def stopping(self) -> None:
        """The follower is."""
        self._manager.stopping()

    def _hear(self) -> None:
        try:
            said = self._socket.recv(MESSAGE_BYTES).decode(errors="replace").splitlines()
        except OSError:
            return
        if "READY=1" in said:
            self._speaks_until = 0.0
            self._manager.ready()
        if "WATCHDOG=1" in said:
            self._manager.beat()

    async def _beat(self) -> None:
        while (interval := self._manager.interval) is not None:
            if self._speaks_until is None or time.monotonic() < self._speaks_until:
                self._manager.beat()
            await asyncio.sleep(interval / 2)
