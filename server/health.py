"""``grpc.health.v1``, which load balancers ask. No call here can hold up another one, or the server's end.

A ``Watch`` belongs to its own task, which writes the newest status and then waits for a change. A peer that
takes nothing loses its call after ``--write-timeout``; watches are limited in number and age.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from grpc_health.v1 import health_pb2

from offramp.server.calls import Context, Method, NotFoundError, methods, only_request, write

SERVICE: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
WATCHES = 64
"""Watches that may be open."""
WATCH_SECONDS = 600.0
"""Age at which a watch is ended, less up to a tenth; its client asks again."""

Status = health_pb2.HealthCheckResponse


class Health:
    """The health of some services: unknown until ``set``, and for good after ``leave``."""

    def __init__(self, request_seconds: float, write_seconds: float) -> None:
        self._request_seconds = request_seconds
        self._write_seconds = write_seconds
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._leaving = False

    def methods(self) -> list[Method]:
        """They need no token."""
        return [
            *methods(SERVICE, {"Check": self.check, "List": self.list}, public=True),
            *methods(SERVICE, {"Watch": self.watch}, public=True, limit=WATCHES),
        ]

    def serve(self, services: Iterable[str]) -> None:
        """From now on these are served."""
        self._set(dict.fromkeys(services, Status.SERVING))

    def leave(self) -> None:
        """From now on none of them is served; each watch says so, and ends."""
        self._leaving = True
        self._set(dict.fromkeys(self._statuses, Status.NOT_SERVING))

    def _set(self, statuses: dict[str, int]) -> None:
        self._statuses = statuses
        self._changed.set()
        self._changed = asyncio.Event()

    async def check(self, context: Context) -> None:
        """See the protocol. Raises NotFoundError for a service that is not here."""
        asked = await only_request(context, health_pb2.HealthCheckRequest, self._request_seconds)
        if asked.service not in self._statuses:
            raise NotFoundError("no such service here")
        await write(context, Status(status=self._statuses[asked.service]), self._write_seconds)

    async def list(self, context: Context) -> None:
        """See the protocol."""
        await only_request(context, health_pb2.HealthListRequest, self._request_seconds)
        found = {name: Status(status=status) for name, status in self._statuses.items()}
        await write(context, health_pb2.HealthListResponse(statuses=found), self._write_seconds)

    async def watch(self, context: Context) -> None:
        """See the protocol."""
        asked = await only_request(context, health_pb2.HealthCheckRequest, self._request_seconds)
        end = asyncio.get_running_loop().time() + WATCH_SECONDS * random.uniform(0.9, 1)
        last = None
        while True:
            changed, leaving = self._changed, self._leaving
            status = self._statuses.get(asked.service, Status.SERVICE_UNKNOWN)
            if status != last:
                await write(context, Status(status=status), self._write_seconds)
                last = status
            if leaving:
                return
            try:
                async with asyncio.timeout_at(end):
                    await changed.wait()
            except TimeoutError:
                return
