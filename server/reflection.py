"""Server reflection, versions 1 and 1alpha, for ``grpcurl`` and the like: the same messages, two names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_reflection.v1alpha import reflection, reflection_pb2

from offramp.server.calls import Context, Method, methods, request, write

VERSIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
LIMIT = 16
"""Reflection calls that may be open."""
CALL_SECONDS = 600.0
"""How long one may be."""


class Reflection:
    """Describes these services, and itself."""

    def __init__(self, services: tuple[str, ...], request_seconds: float, write_seconds: float) -> None:
        self._servicer: Any = reflection.aio.ReflectionServicer((*services, reflection.SERVICE_NAME))
        self._request_seconds = request_seconds
        self._write_seconds = write_seconds

    def methods(self) -> list[Method]:
        """One under each name."""
        return [
            each
            for name in VERSIONS
            for each in methods(name, {"ServerReflectionInfo": self.info}, limit=LIMIT)
        ]

    async def info(self, context: Context) -> None:
        """See the protocol."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                async for answer in self._servicer.ServerReflectionInfo(self._requests(context), context):
                    await write(context, answer, self._write_seconds)
        except TimeoutError:
            return

    async def _requests(self, context: Context) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        kind = reflection_pb2.ServerReflectionRequest
        seconds = self._request_seconds
        while (asked := await request(context, kind, seconds)) is not None:
            yield asked
            seconds = 2 * CALL_SECONDS
