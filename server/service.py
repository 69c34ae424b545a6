"""The server's whole flow: message → frames → decode → batch → tail → replies → message.

Each stream has one reader and one writer. The reader starts a task for each message; what those tasks
have answered by the time the writer is free goes out in one message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import grpc
import grpc.aio

from offramp.common import frame, transport
from offramp.common.bundle import Bundle
from offramp.common.engine import Engine
from offramp.common.errors import MessageError, OfframpError, OverloadError
from offramp.common.telemetry import package_version, timed
from offramp.server.batch import Batcher
from offramp.server.metrics import ServerMetrics
from offramp.v1 import inference_pb2 as pb

log = logging.getLogger("offramp.cloud-server")

REPLIES_WAITING = 1024
"""Replies of one stream that may wait to be written before it is read further."""

Context = grpc.aio.ServicerContext[bytes, bytes]


class InferenceService:
    """``offramp.v1.Inference`` for one bundle, on one event loop."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        metrics: ServerMetrics,
        *,
        max_batch: int,
        queue: int,
        frames_in_flight: int,
        max_streams: int,
        hello_timeout: float,
    ) -> None:
        self.bundle = bundle
        self.codec = bundle.codec
        self.metrics = metrics
        self.batcher = Batcher(engine, metrics, max_batch, queue)
        self.decoders = ThreadPoolExecutor(1, "offramp-decode")
        self.limits = pb.Limits(
            frames_in_flight=frames_in_flight,
            message_bytes=transport.message_bytes(self.codec.raw_bytes),
            frames_per_message=transport.FRAMES_PER_MESSAGE,
        )
        self.hello_timeout = hello_timeout
        self.draining = asyncio.Event()
        self._max_streams = max_streams
        self._open_streams = 0

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service's methods. Messages stay bytes here: a malformed one is ours to answer."""
        return grpc.method_handlers_generic_handler(
            transport.SERVICE,
            {
                "Offload": grpc.stream_stream_rpc_method_handler(cast(Any, self._offload)),
                "Describe": grpc.unary_unary_rpc_method_handler(cast(Any, self._describe)),
            },
        )

    def close(self) -> None:
        """Stop the worker threads; call it when no stream is open."""
        self.batcher.close()
        self.decoders.shutdown()

    async def _describe(self, request: bytes, context: Context) -> bytes:
        try:
            frame.parse(pb.DescribeRequest, request)
        except MessageError as error:
            await self._abort(context, error)
        manifest = self.bundle.manifest
        description = pb.BundleDescription(
            digest=self.bundle.digest,
            name=manifest.name,
            segments=[frame.TAIL_SEGMENT],
            activation_shape=manifest.activation.shape,
            classes=len(manifest.classes),
        )
        return pb.DescribeResponse(
            bundles=[description], protocol_version=frame.PROTOCOL_VERSION, version=package_version()
        ).SerializeToString()

    async def _offload(self, _requests: object, context: Context) -> None:
        if self._open_streams >= self._max_streams:
            limit = OverloadError(f"{self._max_streams} streams are open already, the most that may")
            await self._abort(context, limit)
        self._open_streams += 1
        self.metrics.open_streams.inc()
        try:
            await _Stream(self, context).serve()
        except OfframpError as error:
            await self._abort(context, error)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:
            log.exception("stream from %s", context.peer())
            await self._abort(context, OfframpError(f"internal error ({type(error).__name__})"))
        finally:
            self._open_streams -= 1
            self.metrics.open_streams.dec()

    async def _abort(self, context: Context, error: OfframpError) -> None:
        """The one place that turns an error into a gRPC status."""
        self.metrics.streams_aborted.labels(error.grpc_status).inc()
        log.warning("%s from %s: %s", error.grpc_status, context.peer(), error)
        try:
            await context.abort(grpc.StatusCode[error.grpc_status], str(error))
        except grpc.aio.AbortError:
            raise
        except Exception as gone:  # as in _Stream._write
            raise asyncio.CancelledError from gone


class _Stream:
    """One device's stream, from hello to its end."""

    def __init__(self, service: InferenceService, context: Context) -> None:
        self._service = service
        self._metrics = service.metrics
        self._context = context
        self._unanswered = 0
        self._replies: list[pb.Reply] = []
        self._draining_told = False
        self._wake = asyncio.Event()
        self._ended = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Raises MessageError or MismatchError where the device breaks the protocol."""
        try:
            first = await asyncio.wait_for(self._read(), self._service.hello_timeout)
        except TimeoutError:
            raise MessageError(f"no hello within {self._service.hello_timeout:g} s of opening") from None
        if first is None:
            raise MessageError("the stream ended before its hello")
        frame.check_hello(first, self._service.bundle.digest)
        await self._write(pb.ServerMessage(accepted=pb.Accepted(limits=self._service.limits)))
        writer = asyncio.create_task(self._writer())
        drain = asyncio.create_task(self._watch_drain())
        try:
            await self._reader()
        finally:
            drain.cancel()
            try:
                # Frames that were read are answered, whatever ended the reading.
                if self._tasks:
                    await asyncio.wait(self._tasks)
                self._ended = True
                self._wake.set()
                await writer
            finally:
                writer.cancel()

    async def _reader(self) -> None:
        reader = frame.FrameReader(transport.FRAMES_PER_MESSAGE)
        while (message := await self._read()) is not None:
            received = time.perf_counter()
            self._start(self._answer(reader.read(message), received))
            # A device that does not take its replies is not read further: they would pile up here.
            while len(self._replies) > REPLIES_WAITING:
                await asyncio.sleep(0.01)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, frames: list[frame.Frame | frame.BadFrame], received: float) -> None:
        await asyncio.gather(*(self._answer_one(each, received) for each in frames))

    async def _answer_one(self, each: frame.Frame | frame.BadFrame, received: float) -> None:
        try:
            if isinstance(each, frame.BadFrame):
                raise each.error
            self._metrics.payload_bytes.inc(len(each.payload))
            limit = self._service.limits.frames_in_flight
            if self._unanswered >= limit:
                raise OverloadError(f"{limit} frames of this stream are unanswered, the most that may")
            self._unanswered += 1
            try:
                symbols = await self._on_decoder(lambda: self._decode(each))
                probabilities = await self._service.batcher.run(symbols)
            finally:
                self._unanswered -= 1
            best = int(probabilities.argmax())
            reply = pb.Reply(
                sequence=each.sequence,
                class_index=best,
                probability=float(probabilities[best]),
                server_time_us=int((time.perf_counter() - received) * 1e6),
            )
            self._metrics.frames.labels("answered").inc()
        except Exception as error:
            if not isinstance(error, OfframpError):
                log.exception("frame %d from %s", each.sequence, self._context.peer())
            reply = frame.refusal(each.sequence, error)
            self._metrics.frames.labels("refused").inc()
            self._metrics.rejected.labels(frame.reason_name(reply.error.reason)).inc()
        self._replies.append(reply)
        self._wake.set()

    async def _on_decoder(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._service.decoders, work)

    def _decode(self, each: frame.Frame) -> Any:
        with timed(self._metrics.decode_seconds):
            return self._service.codec.decode(each.codec, each.payload)

    async def _watch_drain(self) -> None:
        await self._service.draining.wait()
        self._wake.set()

    async def _writer(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            tell = self._service.draining.is_set() and not self._draining_told
            while self._replies or tell:
                count = transport.FRAMES_PER_MESSAGE
                replies, self._replies = self._replies[:count], self._replies[count:]
                message = pb.ServerMessage(replies=replies, draining=pb.Draining() if tell else None)
                self._draining_told, tell = self._draining_told or tell, False
                await self._write(message)
            if self._ended:
                return

    async def _read(self) -> pb.DeviceMessage | None:
        """The next message; None when the device has half-closed the stream."""
        data: Any = await self._context.read()
        if data is grpc.aio.EOF:
            return None
        self._metrics.message_bytes.labels("received").inc(len(data))
        return frame.parse(pb.DeviceMessage, data)

    async def _write(self, message: pb.ServerMessage) -> None:
        data = message.SerializeToString()
        self._metrics.message_bytes.labels("sent").inc(len(data))
        try:
            await self._context.write(data)
        except Exception as error:
            # The device is gone. gRPC has no public class for that; it cancels the stream's reader itself.
            raise asyncio.CancelledError from error
