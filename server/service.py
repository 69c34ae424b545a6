"""The server's whole flow: message → frames → decode → batch → tail → replies → message.

A frame may be a picture instead, where a bundle here answers such: ``wire/picture.py`` decodes it and it is
batched for that bundle's head and tail, on the same stream, with the same limits.

``stream.py`` is one stream. Limits (docs/reference/cloud-server.md) bound what it may hold here, in
``account.py``, and how long it may last, in ``stream_age.py``.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import grpc
import grpc.aio

from offramp.common.errors import (
    MessageError,
    OfframpError,
    OverloadError,
)
from offramp.common.release import package_version
from offramp.common.tracing import Tracing
from offramp.common.wire import frame, transport
from offramp.server.batch import Batcher
from offramp.server.calls import (
    Context,
    Method,
    QuietLog,
    end,
    internal,
    methods,
    only_request,
    write,
)
from offramp.server.catalog import Catalog, Served
from offramp.server.limits import StreamLimits
from offramp.server.metrics import ServerMetrics
from offramp.server.stream import Shared, Stream, StreamSummary
from offramp.server.stream_age import watch_period
from offramp.v1 import inference_pb2 as pb

log = logging.getLogger("offramp.cloud-server")

STREAM_RETRY_MS = 1_000
"""How long a stream that is one too many is asked to wait."""
RETIRE_SECONDS = 0.1
"""How often a retired bundle is looked at for streams that have not gone."""


def handlers(offload: object, describe: object) -> grpc.GenericRpcHandler:
    """The methods of ``offramp.v1.Inference``. Messages stay bytes: a malformed one is ours to answer."""
    return grpc.method_handlers_generic_handler(
        transport.SERVICE,
        {
            "Offload": grpc.stream_stream_rpc_method_handler(cast(Any, offload)),
            "Describe": grpc.unary_unary_rpc_method_handler(cast(Any, describe)),
        },
    )


class InferenceService:
    """``offramp.v1.Inference`` for the bundles of a catalog, on one event loop."""

    def __init__(
        self,
        catalog: Catalog,
        batcher: Batcher,
        metrics: ServerMetrics,
        limits: StreamLimits,
        tracing: Tracing | None = None,
    ) -> None:
        self.catalog = catalog
        self.metrics = metrics
        self.limits = limits
        self.quiet = QuietLog()
        self._decoders = ThreadPoolExecutor(1, "offramp-decode")
        self._shared = Shared(catalog, batcher, metrics, limits, tracing, self._decoders, self.quiet)
        self._draining = False
        self._streams: set[Stream] = set()

    def streams(self) -> list[StreamSummary]:
        """What each open stream has done so far; from any thread."""
        # One step of the interpreter, while the loop's thread may change the set.
        return [stream.summary() for stream in list(self._streams)]

    def drain(self) -> None:
        """Ask every stream to end, those to come as well."""
        self._draining = True
        for stream in self._streams:
            stream.drain()

    async def retire(self, served: Served) -> None:
        """Ask the streams of a bundle to end, and those whose pictures it answers; wait until they have.

        After the grace they are ended.
        """
        here = served.entries.values()
        while left := [each for each in self._streams if each.served in here or each.pictures in here]:
            for stream in left:
                stream.drain(end_in=self.limits.grace)
            await asyncio.sleep(RETIRE_SECONDS)

    async def watch(self) -> None:
        """Look for streams that are silent, stuck or overdue, until cancelled."""
        period = watch_period(self.limits)
        while True:
            await asyncio.sleep(period)
            now = time.monotonic()
            for stream in list(self._streams):
                stream.check(now)

    def close(self) -> None:
        """Stop the decoding thread; call it when no stream is open."""
        self._decoders.shutdown()

    def methods(self) -> list[Method]:
        """For ``Calls``; streams have a limit of their own."""
        return [
            *methods(transport.SERVICE, {"Describe": self._describe}),
            *methods(transport.SERVICE, {"Offload": self.serve}, own_limit=True, limit=sys.maxsize),
        ]

    async def _describe(self, context: Context) -> None:
        await only_request(context, pb.DescribeRequest, self.limits.hello_timeout)
        await write(context, self._description(), self.limits.write_timeout)

    async def describe(self, request: bytes, context: Context) -> bytes:
        """Answer ``Describe``; for a server without ``Calls``."""
        try:
            frame.parse(pb.DescribeRequest, request)
        except MessageError as error:
            await end(context, error, self.metrics, self.quiet)
        return self._description().SerializeToString()

    def _description(self) -> pb.DescribeResponse:
        descriptions = [
            pb.BundleDescription(
                digest=served.bundle.digest,
                name=served.bundle.manifest.name,
                segments=list(served.entries),
                activation_shape=served.codec.shape,
                classes=len(served.bundle.manifest.classes),
            )
            for served in self.catalog.all()
        ]
        return pb.DescribeResponse(
            bundles=descriptions, protocol_version=frame.PROTOCOL_VERSION, version=package_version()
        )

    async def offload(self, _requests: object, context: Context) -> None:
        """Serve one stream and end it; for a server without ``Calls``."""
        try:
            await self.serve(context)
        except OfframpError as error:
            await end(context, error, self.metrics, self.quiet)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:
            log.exception("stream from %s", context.peer())
            await end(context, internal(error), self.metrics, self.quiet)

    async def serve(self, context: Context) -> None:
        """Serve one stream; of the context only peer, read and write are used.

        Raises the error that its device gets.
        """
        self.metrics.streams.inc()
        most = self.limits.max_streams
        if len(self._streams) >= most:
            raise OverloadError(f"{most} streams are open already, the most that may", STREAM_RETRY_MS)
        stream = Stream(self._shared, context)
        if self._draining:
            stream.drain()
        self._streams.add(stream)
        self.metrics.open_streams.inc()
        try:
            await stream.serve()
        finally:
            stream.end_spans()
            self._streams.discard(stream)
            self.metrics.open_streams.dec()
