"""One device's stream, from hello to its end: read, decode, hand to the batcher, write what comes back.

Each stream has one reader and one writer. The reader decodes and offers frames to the batcher, which calls
the stream back about each; what has been answered by the time the writer is free goes out in one message.

``stream_age.py`` says when a stream has to end, ``account.py`` what it may hold here.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from offramp.common.codec.activation import CodecId
from offramp.common.errors import MessageError, OfframpError, OverloadError, UnavailableError
from offramp.common.tracing import Attribute, Tracing
from offramp.common.wire import frame, transport
from offramp.common.wire.frame import BadFrame, Frame
from offramp.common.wire.picture import decode_picture
from offramp.server.account import Account
from offramp.server.batch import Batcher, Job
from offramp.server.calls import Context, DroppedCall, QuietLog
from offramp.server.catalog import Catalog, Served, message_bytes, picture_bytes
from offramp.server.limits import StreamLimits
from offramp.server.metrics import ServerMetrics
from offramp.server.stream_age import Due, StreamAge
from offramp.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = logging.getLogger("offramp.cloud-server")

LOOP_SECONDS = 1e-3
"""How long one message may be decoded on the event loop before others have their turn."""
EOF_SECONDS = 0.02
"""How long gRPC may take to say that a stream that seems half-closed is broken."""

Decoded = tuple[NDArray[np.uint8] | Exception, float]
"""A frame's symbols or what is wrong with it, and how many seconds decoding took."""
Answer = tuple[int, int, float, int]
"""A ``Reply`` with an answer, still without a message of its own: its fields by number."""


@dataclass(frozen=True)
class Shared:
    """What all streams of a server use."""

    catalog: Catalog
    batcher: Batcher
    metrics: ServerMetrics
    limits: StreamLimits
    tracing: Tracing | None
    decoders: ThreadPoolExecutor
    quiet: QuietLog


@dataclass(frozen=True)
class StreamSummary:
    """One stream, for the live page."""

    peer: str
    bundle: str | None
    """None before its hello."""
    seconds: float
    """Since it was opened."""
    taken: int
    """Frames that were taken."""
    unanswered: int
    """Those without a reply."""
    strikes: int
    """Frames that were bad."""


class Stream:
    """One device's stream, from hello to its end. It owns its jobs in the batcher."""

    def __init__(self, shared: Shared, context: Context) -> None:
        self.gone = False
        self.served: Served | None = None
        self.pictures: Served | None = None
        """Whose whole model answers this stream's pictures; None: they are refused."""
        self._message_bytes = transport.MESSAGE_BYTES_MIN
        self._shared = shared
        self._metrics = shared.metrics
        self._context = context
        self._age = StreamAge(shared.limits, time.monotonic(), random.uniform(-1, 1))
        self._account = Account(shared.limits.frames_in_flight, shared.limits.strikes)
        self._opened = time.monotonic()
        self._peer = context.peer()
        self._task: asyncio.Task[Any] | None = None
        self._verdict: OfframpError | None = None
        self._replies: list[Answer | pb.Reply] = []
        self._spans: dict[int, Span] = {}
        """Of traced frames that have no reply yet."""
        self._rest: asyncio.Future[None] | None = None
        """What the writer waits for where there is nothing to write: cheaper than an Event, once a frame."""
        self._answered_all = asyncio.Event()
        self._ended = False

    # --- what the service asks of it ---

    def summary(self) -> StreamSummary:
        """What it has done so far; from any thread."""
        return StreamSummary(
            peer=self._peer,
            bundle=None if self.served is None else self.served.bundle.manifest.name,
            seconds=time.monotonic() - self._opened,
            taken=self._account.taken,
            unanswered=self._account.unanswered,
            strikes=self._account.strikes,
        )

    def drain(self, end_in: float = math.inf) -> None:
        """Ask the device to go; end the stream if it has not gone by then, seconds from now."""
        self._age.drain(time.monotonic(), end_in)
        self._wake()

    def check(self, now: float) -> None:
        """End what is stuck, silent or overdue."""
        due = self._age.check(now)
        if due is Due.ASK:
            self._wake()
        elif due is Due.END:
            self._end(UnavailableError("the stream was asked to end and did not"))
        elif due is Due.CUT:
            self._end(None, f"took no reply for {self._shared.limits.write_timeout:g} s")

    def _end(self, verdict: OfframpError | None, why: str = "") -> None:
        if self._task is None or self.gone or (self._ended and verdict is not None):
            return
        self._ended = True
        self._verdict = verdict
        if verdict is None:
            self.gone = True
            self._metrics.streams_aborted.labels("CANCELLED").inc()
            self._shared.quiet.warning("stuck", "CANCELLED for %s: %s", self._context.peer(), why)
        self._task.cancel()

    # --- its flow ---

    async def serve(self) -> None:
        """Raises the error that ends the stream where the device breaks the protocol or a limit."""
        self._task = asyncio.current_task()
        limits = self._shared.limits
        try:
            first = await asyncio.wait_for(self._read(), limits.hello_timeout)
        except TimeoutError:
            raise MessageError(f"no hello within {limits.hello_timeout:g} s of opening") from None
        if first is None:
            raise MessageError("the stream ended before its hello")
        catalog = self._shared.catalog
        frame.check_hello(first, *catalog.digests(), segments=catalog.segments())
        self.served = served = catalog.get(first.hello.bundle_digest, first.hello.segment)
        self.pictures = catalog.pictures_of(served)
        self._age.accepted = True
        self._message_bytes = served.message_bytes
        if self.pictures is not None:
            self._message_bytes = message_bytes(served.bundle, True, served.part)
        deadline = first.hello.deadline_ms / 1e3 if first.hello.deadline_ms else math.inf
        accepted = pb.Limits(
            frames_in_flight=limits.frames_in_flight,
            message_bytes=self._message_bytes,
            frames_per_message=transport.FRAMES_PER_MESSAGE,
            picture_bytes=0 if self.pictures is None else picture_bytes(served.bundle),
        )
        await self._write(pb.ServerMessage(accepted=pb.Accepted(limits=accepted)))
        writer = asyncio.create_task(self._writer())
        try:
            await self._reader(served, deadline)
        except asyncio.CancelledError:
            if self.gone:
                raise DroppedCall from None
            self.gone = self._verdict is None
            if self._verdict is None:
                raise
            raise self._verdict from None
        finally:
            try:
                # Frames that were read are answered, whatever ended the reading.
                while self._account.unanswered and not self.gone:
                    self._answered_all.clear()
                    await self._answered_all.wait()
                self._ended = True
                self._wake()
                if not self.gone:
                    await writer
            finally:
                self.gone = True
                writer.cancel()

    async def _reader(self, served: Served, deadline: float) -> None:
        reader = frame.FrameReader(transport.FRAMES_PER_MESSAGE)
        account, batcher = self._account, self._shared.batcher
        while (message := await self._read()) is not None:
            taken = self._admit(reader.read(message))
            if len(taken) == 1 and served.decode_inline and taken[0].codec != CodecId.PICTURE:
                # What most messages are: no coroutine for it.
                received = time.perf_counter()
                self._offer(served, taken[0], self._decode(served, taken[0]), received, deadline)
                batcher.schedule()
            elif taken:
                await self._take(served, taken, deadline)
            account.check_strikes()
            while account.is_full:
                await asyncio.sleep(0.01)

    def _admit(self, frames: list[Frame | BadFrame]) -> list[Frame]:
        """Those frames of a message that are sound and within the stream's limit; the others are refused."""
        tracing = self._shared.tracing
        taken = []
        payload_bytes = 0
        for each in frames:
            if isinstance(each, BadFrame):
                self._refuse(each.sequence, each.error)
                continue
            payload_bytes += len(each.payload)
            if each.codec == CodecId.PICTURE:
                self._metrics.pictures.inc()
                self._metrics.picture_bytes.inc(len(each.payload))
            try:
                self._account.take()
            except OverloadError as full:
                self._refuse(each.sequence, full)
                continue
            if each.trace and tracing is not None:
                self._spans[each.sequence] = tracing.resume("offramp.frame", each.trace)
            taken.append(each)
        self._metrics.payload_bytes.inc(payload_bytes)
        return taken

    async def _take(self, served: Served, taken: list[Frame], deadline: float) -> None:
        received = time.perf_counter()
        waiting = deque(taken)
        try:
            if _is_inline(served, taken):
                turn = received
                while waiting:
                    decoded = self._decode(served, waiting[0])
                    self._offer(served, waiting.popleft(), decoded, received, deadline)
                    if time.perf_counter() - turn > LOOP_SECONDS:
                        self._shared.batcher.schedule()
                        await asyncio.sleep(0)
                        turn = time.perf_counter()
            else:
                work = asyncio.get_running_loop().run_in_executor
                for decoded in await work(self._shared.decoders, self._decode_all, served, taken):
                    self._offer(served, waiting.popleft(), decoded, received, deadline)
        finally:
            # Cut off in between.
            self._account.drop(len(waiting))
            self._metrics.abandoned.inc(len(waiting))
        self._shared.batcher.schedule()

    def _decode_all(self, served: Served, frames: Sequence[Frame]) -> list[Decoded]:
        return [self._decode(served, each) for each in frames]

    def _decode(self, served: Served, each: Frame) -> Decoded:
        start = time.perf_counter()
        symbols: NDArray[np.uint8] | Exception
        try:
            if each.codec != CodecId.PICTURE or self.pictures is None:
                symbols = served.codec.decode(each.codec, each.payload)
            else:
                image = served.bundle.manifest.preprocessing
                symbols = decode_picture(each.payload, image.height, image.width)
        except Exception as error:
            symbols = error
        return symbols, time.perf_counter() - start

    def _offer(self, served: Served, each: Frame, decoded: Decoded, received: float, deadline: float) -> None:
        symbols, seconds = decoded
        self._metrics.decode_seconds.observe(seconds)
        try:
            if isinstance(symbols, Exception):
                raise symbols
            lane = served.lane
            if each.codec == CodecId.PICTURE:
                assert self.pictures is not None and self.pictures.whole is not None
                lane = self.pictures.whole
            if each.deadline_ms:
                deadline = each.deadline_ms / 1e3
            trace = self._trace_of(each) if each.trace else b""
            lane.offer(Job(self, each.sequence, symbols, received, received + deadline, trace))
        except Exception as error:
            self._account.drop()
            self._refuse(each.sequence, error)

    # --- what the batcher calls ---

    def answered(
        self, job: Job, class_index: int, probability: float, part: int = 0, fallback: bool = False
    ) -> None:
        """See ``batch.Owner``."""
        if self.gone:
            self._metrics.abandoned.inc()
            return
        self._metrics.answered.inc()
        if self._spans:
            self._end_span(
                job.sequence,
                None,
                class_index=class_index,
                confidence=probability,
                **({"part": part, "fallback": fallback} if part or fallback else {}),
            )
        server_time_us = int((time.perf_counter() - job.received) * 1e6)
        if not part and not fallback:
            self._replies.append((job.sequence, class_index, probability, server_time_us))
        else:
            self._replies.append(
                pb.Reply(
                    sequence=job.sequence,
                    class_index=class_index,
                    probability=probability,
                    server_time_us=server_time_us,
                    part=part,
                    fallback=fallback,
                )
            )
        self._account.answer()
        self._wake()
        if not self._account.unanswered:
            self._answered_all.set()

    def refused(self, job: Job, error: Exception) -> None:
        """See ``batch.Owner``."""
        self._account.drop()
        self._refuse(job.sequence, error)
        if not self._account.unanswered:
            self._answered_all.set()

    def _refuse(self, sequence: int, error: Exception) -> None:
        if not isinstance(error, OfframpError):
            log.error("frame %d from %s", sequence, self._context.peer(), exc_info=error)
        reply = frame.refusal(sequence, error)
        self._account.refuse(reply.error.reason)
        self._metrics.refused.inc()
        self._end_span(sequence, reply.error.message)
        self._metrics.rejected[frame.reason_name(reply.error.reason)].inc()
        self._replies.append(reply)
        self._wake()

    # --- spans ---

    def _end_span(self, sequence: int, failure: str | None, **attributes: Attribute) -> None:
        tracing = self._shared.tracing
        if self._spans and tracing is not None and (span := self._spans.pop(sequence, None)):
            tracing.end(span, failure, sequence=sequence, **attributes)

    def _trace_of(self, each: Frame) -> bytes:
        """What goes on with a traced frame: our own span of it, or the device's where we make none."""
        tracing, span = self._shared.tracing, self._spans.get(each.sequence)
        return each.trace if tracing is None or span is None else tracing.context_of(span)

    def end_spans(self) -> None:
        """The device is gone: what is left gets no reply."""
        for sequence in list(self._spans):
            self._end_span(sequence, "abandoned")

    # --- the wire ---

    def _wake(self) -> None:
        """Have the writer look again."""
        if self._rest is not None and not self._rest.done():
            self._rest.set_result(None)

    async def _writer(self) -> None:
        loop = asyncio.get_running_loop()
        asked = False
        while True:
            ask = self._age.draining and not asked
            if self._replies or ask:
                count = transport.FRAMES_PER_MESSAGE
                replies, self._replies = self._replies[:count], self._replies[count:]
                self._account.write(len(replies))
                await self._write(_message(replies, draining=ask))
                asked = asked or ask
            elif self._ended:
                return
            else:
                self._rest = loop.create_future()
                await self._rest

    async def _read(self) -> pb.DeviceMessage | None:
        """The next message; None when the device has half-closed the stream."""
        data: Any = await self._context.read()
        if data is grpc.aio.EOF:
            # So shows also a message that is too long for gRPC, which cancels the call right after.
            await asyncio.sleep(EOF_SECONDS)
            return None
        self._age.read(time.monotonic())
        self._metrics.received_bytes.inc(len(data))
        if len(data) > self._message_bytes:
            raise MessageError(f"a message of {len(data)} bytes, expected {self._message_bytes} at most")
        return frame.parse(pb.DeviceMessage, data)

    async def _write(self, message: pb.ServerMessage) -> None:
        data = message.SerializeToString()
        self._metrics.sent_bytes.inc(len(data))
        self._age.write_began(time.monotonic())
        try:
            await self._context.write(data)
        except Exception as error:
            # The device is gone. gRPC has no public class for that; it cancels the stream's reader itself.
            raise asyncio.CancelledError from error
        finally:
            self._age.write_ended()


def _message(replies: Sequence[Answer | pb.Reply], *, draining: bool) -> pb.ServerMessage:
    """Replies as one message; each is made in its place there, which is cheaper than to copy it."""
    message = pb.ServerMessage(draining=pb.Draining()) if draining else pb.ServerMessage()
    add = message.replies.add
    first = True
    for reply in replies:
        if not isinstance(reply, tuple):
            message.replies.append(reply)
        else:
            sequence, class_index, probability, server_time_us = reply
            if first:
                add(
                    sequence=sequence,
                    class_index=class_index,
                    probability=probability,
                    server_time_us=server_time_us,
                )
            else:
                # Replies of one message took about the same time: the first states it for 4 bytes.
                add(sequence=sequence, class_index=class_index, probability=probability)
        first = False
    return message


def _is_inline(served: Served, frames: Sequence[Frame]) -> bool:
    """Whether frames are decoded on the event loop; pictures never are."""
    return served.decode_inline and all(each.codec != CodecId.PICTURE for each in frames)
