"""All targets, whose pages are read again for every view."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from offramp.cli.fleet.drift import fleet_drift
from offramp.cli.fleet.figures import Watched, device_row, server_row
from offramp.cli.fleet.pages import PageError, fetch, is_device, read_page
from offramp.cli.fleet.targets import Target, read_sources
from offramp.common.errors import ConfigError, printable

AT_ONCE = 64
"""Pages read at once."""


@dataclass(frozen=True)
class View:
    """A fleet at one moment."""

    devices: list[dict[str, Any]]
    servers: list[dict[str, Any]]
    failed: list[dict[str, str]]
    """Targets that did not answer as ours do, and why."""
    note: str | None
    drift: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of all devices' images together."""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(
            {
                "time": time.time(),
                "devices": self.devices,
                "servers": self.servers,
                "failed": self.failed,
                "note": self.note,
                "drift": self.drift,
            }
        )


class Fleet:
    """Targets, and what is known of them."""

    def __init__(self, sources: Sequence[str], window: float, timeout: float) -> None:
        self._sources = sources
        self._window = window
        self._timeout = timeout
        self._watched: dict[Target, Watched] = {}
        self._note: str | None = None
        self._follow(read_sources(sources))

    def _follow(self, targets: Iterable[Target]) -> None:
        self._watched = {target: self._watched.get(target) or Watched(target) for target in targets}

    async def read(self, client: httpx.AsyncClient) -> None:
        """Read the files of targets again, and each page once."""
        try:
            self._follow(await asyncio.to_thread(read_sources, self._sources))
            self._note = None
        except ConfigError as error:
            self._note = f"{error}; the targets of before are kept"
        gate = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(self._read_one(client, gate, each) for each in self._watched.values()))

    async def _read_one(self, client: httpx.AsyncClient, gate: asyncio.Semaphore, watched: Watched) -> None:
        try:
            async with gate, asyncio.timeout(self._timeout):
                text = await fetch(client, watched.target.url)
                page = await asyncio.to_thread(read_page, text, time.monotonic())
            watched.add(page, self._window)
        except TimeoutError:
            watched.error = f"no page within {self._timeout:g} s"
        except PageError as error:
            watched.error = str(error)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            watched.error = printable(str(error) or type(error).__name__, 80)

    def view(self) -> View:
        """What there is to show."""
        devices, servers, failed, pages = [], [], [], []
        for watched in self._watched.values():
            if watched.error is not None:
                failed.append({"target": watched.target.name, "error": watched.error})
            elif is_device(watched.pages[-1]):
                devices.append(device_row(watched))
                pages.append(watched.pages[-1])
            else:
                servers.append(server_row(watched))
        return View(devices, servers, failed, self._note, fleet_drift(pages))
