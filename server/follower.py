"""Reads again what the server has read from disk: tokens, bundles. An error does not stop it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from offramp.common.errors import OfframpError, printable
from offramp.server.metrics import ServerMetrics

log = logging.getLogger("offramp.cloud-server")

Step = Callable[[bool], Awaitable[object]]
"""Reads one kind of thing again; true: also try what is unchanged and failed before."""


class Follower:
    """Runs steps by turns, every ``interval`` seconds and whenever ``again`` is set.

    steps: by what they read, as ``offramp_server_reloads_total`` calls it. One that fails is logged, once for
    each message in a row, and counted each time; the others run all the same.
    """

    def __init__(
        self, interval: float, again: asyncio.Event, steps: Mapping[str, Step], metrics: ServerMetrics
    ) -> None:
        self._interval = interval
        self._again = again
        self._steps = steps
        self._metrics = metrics
        self._failed: dict[str, str] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            again = False
            with suppress(TimeoutError):
                await asyncio.wait_for(self._again.wait(), self._interval)
                again = True
            self._again.clear()
            for what, step in self._steps.items():
                await self._try(what, step, again)

    async def _try(self, what: str, step: Step, again: bool) -> None:
        try:
            await step(again)
        except Exception as error:
            self._metrics.reloads.labels(what, "failed").inc()
            text = printable(str(error))
            reason = text if isinstance(error, OfframpError) else f"{type(error).__name__}: {text}"
            if self._failed.get(what) != reason:
                log.error("%s not read again, what serves goes on: %s", what, reason)
            self._failed[what] = reason
        else:
            self._failed.pop(what, None)
