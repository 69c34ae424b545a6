"""The link to the server: one stream, kept up in the background; every frame gets exactly one outcome.

Invariants:
- ``offload`` calls its callback exactly once per frame: with an ``Answer``, or with the reason that there
  is none. It does so within ``timeout``, whatever the server or the network does.
- Nothing is connected before the first frame.
- While the first connection is being made, frames wait for it. Once it has failed they do not: until a
  stream is accepted again, each frame is turned away at once.
- What the server sends is checked; a server that breaks the protocol is as good as one that is gone.

Three threads: gRPC's own takes messages from ``_requests``; ``_keep_up`` makes the stream and reads its
replies; ``_keep_time`` ends what takes too long.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import grpc

from offramp.common import frame, transport
from offramp.common.codec import CodecId
from offramp.common.errors import MessageError, MismatchError, OfframpError, PeerError, UnavailableError
from offramp.device.metrics import DeviceMetrics
from offramp.device.wire_bytes import WireCounter
from offramp.v1 import inference_pb2 as pb

log = logging.getLogger("offramp.edge-device")

BACKOFF_FIRST, BACKOFF_MOST = 0.1, 2.0
"""Seconds between attempts to connect: the first pause, doubled each time up to the second."""
CLOSE_SECONDS = 2.0
"""How long ``close`` waits for the server to end the stream in good order."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's answer to one frame. Byte figures count both directions."""

    class_index: int
    probability: float
    server_seconds: float
    message_bytes: float
    """The frame's share of the serialized messages that carried it and its reply."""
    wire_bytes: float
    """The same with gRPC prefix and HTTP/2 DATA header; not the connection's control traffic."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a frame has no answer."""

    reason: str
    sent: bool
    """Whether its bytes had gone out."""


Outcome = Answer | Refusal


@dataclass(slots=True)
class _Offload:
    codec: CodecId
    payload: bytes
    done: Callable[[Outcome], None]
    start: float
    deadline: float
    sent_at: float = math.inf
    message_bytes: float = 0.0
    envelope_bytes: float = 0.0


class _State(Enum):
    IDLE = auto()
    CONNECTING = auto()
    READY = auto()
    DOWN = auto()
    CLOSED = auto()


class _Session:
    """One stream, from its channel to its end."""

    def __init__(self, timeout: float) -> None:
        self.limits: pb.Limits | None = None
        self.sent: dict[int, _Offload] = {}
        self.next_sequence = 1
        self.last_received = 0.0
        self.accept_by = time.monotonic() + timeout
        self.end_by = math.inf
        self.half_close = False
        self.call: Any = None
        self.cancelled: str | None = None

    def room(self) -> int:
        """How many more frames the server takes. More may wait: they came before its limits did."""
        return 0 if self.limits is None else self.limits.frames_in_flight - len(self.sent)

    def cancel(self, reason: str) -> None:
        """End the stream from our side; its reader then fails with this reason."""
        if self.cancelled is None and self.call is not None:
            self.cancelled = reason
            self.call.cancel()


class Link:
    """Frames to one server and their answers back.

    target: HOST:PORT. digest: the bundle's. classes: how many the server may name. raw_bytes: size of an
    uncoded activation. timeout: seconds from ``offload`` to an outcome. window: frames without an outcome.
    """

    def __init__(
        self,
        target: str,
        port: int,
        digest: bytes,
        classes: int,
        raw_bytes: int,
        metrics: DeviceMetrics,
        *,
        timeout: float,
        window: int,
    ) -> None:
        self._target = target
        self._port = port
        self._digest = digest
        self._classes = classes
        self._raw_bytes = raw_bytes
        self._metrics = metrics
        self._timeout = timeout
        self._window = window
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._state = _State.IDLE
        self._outbox: deque[_Offload] = deque()
        self._session = _Session(timeout)
        self._threads: list[threading.Thread] = []
        self.wire = WireCounter()
        self.failure: OfframpError | None = None
        """Why the link was last down; None if it never was."""
        metrics.watch_wire(self.wire.total)

    def offload(self, codec: CodecId, payload: bytes, done: Callable[[Outcome], None]) -> None:
        """Send one frame. Waits while the window is full, no longer than the timeout."""
        start = time.monotonic()
        item = _Offload(codec, payload, done, start, start + self._timeout)
        with self._changed:
            if self._state is _State.IDLE:
                self._start()
            while self._is_open() and len(self._outbox) + len(self._session.sent) >= self._most():
                if not self._changed.wait(max(0.0, item.deadline - time.monotonic())):
                    break
            full = len(self._outbox) + len(self._session.sent) >= self._most()
            accepted = self._is_open() and not full
            if accepted:
                self._outbox.append(item)
                self._changed.notify_all()
        if not accepted:
            done(Refusal("window full" if full else self._reason(), sent=False))

    def wait_idle(self) -> None:
        """Wait until every frame has its outcome; each has one within its timeout."""
        with self._changed:
            self._changed.wait_for(lambda: not self._outbox and not self._session.sent)

    def close(self) -> None:
        """Give outstanding frames their outcome, end the stream and stop the threads."""
        self.wait_idle()
        with self._changed:
            self._state = _State.CLOSED
            self._session.half_close = True
            self._changed.notify_all()
            if self._session.limits is None:
                self._session.cancel("closed")
        self._closed.set()
        end = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._changed:
            self._session.cancel("closed")
        for thread in self._threads:
            thread.join()

    def _is_open(self) -> bool:
        return self._state in (_State.CONNECTING, _State.READY)

    def _most(self) -> int:
        limits = self._session.limits
        return self._window if limits is None else min(self._window, limits.frames_in_flight)

    def _reason(self) -> str:
        return "closed" if self.failure is None else str(self.failure)

    def _start(self) -> None:
        self._state = _State.CONNECTING
        for work in (self._keep_up, self._keep_time):
            thread = threading.Thread(target=work, name=f"offramp{work.__name__}", daemon=True)
            self._threads.append(thread)
            thread.start()

    # --- the stream ---

    def _keep_up(self) -> None:
        pause = BACKOFF_FIRST
        attempt = 0
        while True:
            if attempt:
                self._metrics.reconnects.inc()
            attempt += 1
            session, error = self._run_session()
            if session.limits is not None:
                pause = BACKOFF_FIRST
            if self._end_session(session, error):
                return
            if self._closed.wait(pause * random.uniform(0.5, 1.0)):
                return
            pause = min(pause * 2, BACKOFF_MOST)

    def _run_session(self) -> tuple[_Session, OfframpError | None]:
        """One stream until it ends; the error that ended it, None if both sides agreed to end."""
        session = _Session(self._timeout)
        error: OfframpError | None = None
        channel = grpc.insecure_channel(self._target, options=transport.device_options())
        try:
            method: Any = channel.stream_stream(transport.OFFLOAD)
            with self._changed:
                if self._state is _State.CLOSED:
                    return session, None
                self._session = session
                session.call = method(self._requests(session))
                self._changed.notify_all()
            for data in session.call:
                self._receive(session, data)
            if not session.half_close:
                error = UnavailableError(f"{self._target} ended the stream")
        except grpc.RpcError as failure:
            error = self._explain(session, failure)
        except OfframpError as failure:
            error = failure
            session.call.cancel()
        finally:
            if session.limits is None:
                self.wire.attach(self._port)
            self.wire.detach()
            channel.close()
        return session, error

    def _explain(self, session: _Session, failure: Any) -> OfframpError:
        if session.cancelled is not None:
            return UnavailableError(f"{self._target}: {session.cancelled}")
        code, details = failure.code(), _one_line(failure.details())
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            return MismatchError(f"{self._target} refuses: {details}")
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return UnavailableError(f"{self._target} is unreachable: {details}")
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return UnavailableError(f"{self._target} cannot take more: {details}")
        return PeerError(f"{self._target} ended the stream with {code.name}: {details}")

    def _end_session(self, session: _Session, error: OfframpError | None) -> bool:
        """Give its frames their outcome; whether the link is closed."""
        with self._changed:
            session.half_close = True
            left = list(session.sent.values())
            session.sent.clear()
            unsent: list[_Offload] = []
            closed = self._state is _State.CLOSED
            news = self._state is not _State.DOWN or type(error) is not type(self.failure)
            if error is not None:
                if not closed:  # what close() cuts short says nothing of the server
                    self.failure = error
                unsent = list(self._outbox)
                self._outbox.clear()
                if not closed:
                    self._state = _State.DOWN
            elif not closed:
                self._state = _State.CONNECTING
            self._changed.notify_all()
        self._metrics.connected.set(0)
        if error is not None:
            level = logging.WARNING if news and not closed else logging.DEBUG
            log.log(level, "%s; unsure images are answered by the early exit until it is back", error)
        reason = f"{self._target} ended the stream without a reply" if error is None else str(error)
        for item in left:
            item.done(Refusal(reason, sent=True))
        for item in unsent:
            item.done(Refusal(reason, sent=False))
        return closed

    def _requests(self, session: _Session) -> Iterator[bytes]:
        """What gRPC sends on one stream; it asks for the next message when the last one is out."""
        greeting = frame.hello(self._digest)
        self._metrics.message_bytes.labels("sent").inc(len(greeting))
        yield greeting
        writer = frame.FrameWriter()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: session.half_close or (self._outbox and session.room() > 0))
                if session.half_close or session.limits is None:
                    return
                items = self._take(session.limits, session.room())
                frames = [
                    frame.Frame(session.next_sequence + i, item.codec, item.payload)
                    for i, item in enumerate(items)
                ]
                message = writer.pack(frames)
                now = time.monotonic()
                for each, item in zip(frames, items, strict=True):
                    item.sent_at = now
                    item.message_bytes = len(message) / len(items)
                    item.envelope_bytes = frame.ENVELOPE_BYTES / len(items)
                    session.sent[each.sequence] = item
                session.next_sequence += len(items)
            self._metrics.message_bytes.labels("sent").inc(len(message))
            for item in items:
                self._metrics.payload_bytes.inc(len(item.payload))
                self._metrics.raw_activation_bytes.inc(self._raw_bytes)
            yield message

    def _take(self, limits: pb.Limits, room: int) -> list[_Offload]:
        """The frames for the next message: all that wait, within the server's limits; at least one."""
        bytes_left = limits.message_bytes - 32
        items: list[_Offload] = []
        while self._outbox and len(items) < min(limits.frames_per_message, room):
            bytes_left -= len(self._outbox[0].payload) + 12
            if items and bytes_left < 0:
                break
            items.append(self._outbox.popleft())
        return items

    def _receive(self, session: _Session, data: bytes) -> None:
        """One message of the server. Raises PeerError if it breaks the protocol."""
        self._metrics.message_bytes.labels("received").inc(len(data))
        session.last_received = time.monotonic()
        message = frame.parse(pb.ServerMessage, data)
        if session.limits is None:
            self._accept(session, message)
            return
        if message.HasField("accepted"):
            raise MessageError(f"{self._target} accepted one stream twice")
        if message.HasField("draining"):
            log.info("%s is draining; connecting again", self._target)
            with self._changed:
                session.half_close = True
                session.end_by = time.monotonic() + self._timeout
                if self._state is _State.READY:
                    self._state = _State.CONNECTING
                self._changed.notify_all()
        share = len(message.replies) or 1
        for reply in message.replies:
            self._settle(session, reply, len(data) / share, frame.ENVELOPE_BYTES / share)
        self.wire.sample()

    def _accept(self, session: _Session, message: pb.ServerMessage) -> None:
        if not message.HasField("accepted") or message.replies:
            raise MessageError(f"{self._target} answered hello with something else than accepted")
        limits = message.accepted.limits
        least = min(limits.frames_in_flight, limits.frames_per_message)
        if not least or limits.message_bytes < self._raw_bytes + 32:
            raise MessageError(
                f"{self._target} allows {limits.frames_in_flight} frames in flight, "
                f"{limits.frames_per_message} a message and {limits.message_bytes} bytes a message, "
                f"expected at least 1, 1 and {self._raw_bytes + 32}"
            )
        self.wire.attach(self._port)
        self._metrics.connects.inc()
        self._metrics.connected.set(1)
        with self._changed:
            came_back = self._state is _State.DOWN
            session.limits = limits
            if self._state is not _State.CLOSED:
                self._state = _State.READY
            self._changed.notify_all()
        log.log(logging.INFO if came_back else logging.DEBUG, "%s accepted the stream", self._target)

    def _settle(self, session: _Session, reply: pb.Reply, message: float, envelope: float) -> None:
        with self._changed:
            item = session.sent.pop(reply.sequence, None)
            self._changed.notify_all()
        if item is None:
            if not 0 < reply.sequence < session.next_sequence:
                raise MessageError(f"{self._target} answered frame {reply.sequence}, which was never sent")
            self._metrics.late_replies.inc()
            return
        if reply.HasField("error"):
            reason = frame.reason_name(reply.error.reason)
            self._metrics.frames_refused.labels(reason).inc()
            item.done(Refusal(f"refused ({reason}): {_one_line(reply.error.message)}", sent=True))
            return
        if reply.class_index >= self._classes or not 0 <= reply.probability <= 1:
            item.done(Refusal("the reply makes no sense", sent=True))
            raise MessageError(
                f"{self._target} answered class {reply.class_index} with probability {reply.probability:g}, "
                f"expected a class below {self._classes} and a probability of 0 … 1"
            )
        self._metrics.round_trip_seconds.observe(time.monotonic() - item.start)
        both = item.message_bytes + message
        item.done(
            Answer(
                class_index=reply.class_index,
                probability=reply.probability,
                server_seconds=reply.server_time_us / 1e6,
                message_bytes=both,
                wire_bytes=both + item.envelope_bytes + envelope,
            )
        )

    # --- time ---

    def _keep_time(self) -> None:
        pause = self._timeout
        while not self._closed.wait(pause):
            with self._changed:
                late = self._take_late()
                pause = max(self._next_deadline() - time.monotonic(), 0.001)
            for item in late:
                waited = f"no reply within {self._timeout:g} s"
                item.done(Refusal(waited, sent=item.sent_at < math.inf))

    def _next_deadline(self) -> float:
        """No deadline lies before this one: whatever starts later ends a whole timeout later."""
        session = self._session
        deadlines = [time.monotonic() + self._timeout]
        if self._outbox:
            deadlines.append(self._outbox[0].deadline)
        if session.sent:
            deadlines.append(next(iter(session.sent.values())).deadline)
        if session.limits is None and session.cancelled is None:
            deadlines.append(session.accept_by)
        if session.cancelled is None:
            deadlines.append(session.end_by)
        return min(deadlines)

    def _take_late(self) -> list[_Offload]:
        """Frames whose time is up; they are forgotten here. A stream that has gone silent is ended."""
        now = time.monotonic()
        session = self._session
        late = []
        while self._outbox and self._outbox[0].deadline <= now:
            late.append(self._outbox.popleft())
        for sequence, item in list(session.sent.items()):
            if item.deadline > now:
                break
            late.append(session.sent.pop(sequence))
            if session.last_received < item.sent_at:
                session.cancel(f"silent for {now - item.sent_at:.1f} s")
        if session.limits is None and session.accept_by <= now:
            session.cancel(f"did not accept the stream within {self._timeout:g} s")
        if session.end_by <= now:
            session.cancel(f"did not end the stream within {self._timeout:g} s of draining")
        if late:
            self._changed.notify_all()
        return late


def _one_line(text: str | None) -> str:
    """A stranger's text, fit for one line of a log."""
    return " ".join("".join(c if c.isprintable() else " " for c in (text or "")[:300]).split())
