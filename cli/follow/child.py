"""The command that runs a bundle: started, watched and ended."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from offramp.common.errors import ConfigError

BUNDLE = "{bundle}"
"""What a command has in place of the bundle's directory."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def filled(command: Sequence[str], bundle: Path) -> list[str]:
    """The command with the bundle's directory in it."""
    return [each.replace(BUNDLE, str(bundle)) for each in command]


class Child:
    """One process, which does not outlive this one."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ended = asyncio.ensure_future(process.wait())
        self.started = time.monotonic()

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
        """Start it, with our own standard streams; and environment, if none is given. Raises ConfigError."""
        parent = os.getpid()

        def end_with_us() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

        try:
            return cls(
                await asyncio.create_subprocess_exec(*command, env=environment, preexec_fn=end_with_us)
            )
        except OSError as error:
            raise ConfigError(f"{command[0]}: {error.strerror}, expected a program") from None

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def ended(self) -> asyncio.Future[int]:
        """Done once it has ended, with its status; below 0 for a signal."""
        return self._ended

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self.started

    async def stop(self, grace: float) -> int:
        """End it: SIGTERM, and SIGKILL after ``grace`` seconds. Its status."""
        if not self._ended.done():
            with suppress(ProcessLookupError):
                self._process.terminate()
            await asyncio.wait({self._ended}, timeout=grace)
        if not self._ended.done():
            with suppress(ProcessLookupError):
                self._process.kill()
        return await self._ended


def said(status: int) -> str:
    """An exit status for people."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
