"""The link to a server: one stream, kept up in the background; every frame gets exactly one outcome.

Invariants:
- ``offload`` calls its callback exactly once per frame: with an ``Answer``, or with the reason that there
  is none. It does so within ``timeout``, whatever the server or the network does.
- Nothing is connected before the first frame.
- While a connection is being made for the first time, or again after a stream that worked, frames wait for
  it. Once it has failed, with every server that there is (``servers.py``), they do not: until a stream is
  accepted again, each frame is turned away at once. So are they while the breaker is open (``breaker.py``)
  and no other server may take them.
- A frame keeps its sequence number. Where its stream breaks before its reply, it is sent again on the next
  stream under that number, in order, as long as its deadline allows and at most ``SENDS`` times in all. Only
  one stream at a time knows a frame, so that it has one outcome.
- What the server sends is checked; a server that breaks the protocol is as good as one that is gone, and is
  sent nothing again. So is one that refuses us before it has answered a frame, in a detail of our
  server (``transport.SAID``). Any other end of a stream is the network's, or a proxy's: frames go again.
- Only a stream that was of use makes the next pause short (``backoff.py``); what serves nothing is bounded.
- A picture is sent only on a stream whose server takes it; else its outcome is that it was not.
- Time is ``time.monotonic``: a clock that is set changes nothing here.

Three threads: gRPC's own takes messages from ``_requests``; ``_keep_up`` makes the stream and reads its
replies; ``_keep_time`` ends what takes too long.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import grpc

from offramp.common.codec.activation import CodecId
from offramp.common.errors import (
    AccessError,
    ConfigError,
    MessageError,
    MismatchError,
    OfframpError,
    OverloadError,
    PeerError,
    UnavailableError,
)
from offramp.common.wire import frame, transport
from offramp.device.metrics import Cause, DeviceMetrics
from offramp.link.backoff import Allowance, Backoff, Sparingly
from offramp.link.security import Security
from offramp.link.servers import Server, Servers
from offramp.link.wire_bytes import WireCounter
from offramp.v1 import inference_pb2 as pb

log = logging.getLogger("offramp.edge-device")

CLOSE_SECONDS = 2.0
"""How long ``close`` waits for the server to end the stream in good order."""
SENDS = 3
"""How often a frame is sent, at most: one that makes servers fall over must not fell all of them."""
LATE_MOST = 1024
"""Frames of one stream whose late reply is still waited for."""
MESSAGE_OVERHEAD = 32
"""Most bytes that a message takes beside its frames: ``first_sequence``, tags of ``codecs``."""
LASTING_SECONDS, LASTING_CLEAN_SECONDS = 10.0, 1.0
"""A stream that was open for so long was of use without a reply too; the second if both agreed to end it."""
BRIEF_SECONDS = 1.0
"""A server that is away for no longer is not worth a warning."""
FRUITLESS = 3
"""Streams in a row, accepted and broken without a reply, after which frames do not wait for the next."""
FRAME_OVERHEAD = 14
"""Most bytes that a frame takes beside its payload and its trace context: tags, lengths, CRC-32, codec."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's answer to one frame. Byte figures count both directions, and each time it was sent."""

    class_index: int
    probability: float
    server_seconds: float | None
    """From reading the frame to sending its reply; None where another reply of its message tells it."""
    message_bytes: float
    """The frame's share of the serialized messages that carried it and its reply."""
    wire_bytes: float
    """The same with gRPC prefix and HTTP/2 DATA header; not the connection's control traffic."""
    sends: int = 1
    """How often it was sent."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a frame has no answer."""

    reason: str
    cause: Cause
    sends: int = 0
    """How often its bytes had gone out."""

    @property
    def final(self) -> bool:
        """Whether to send the same bytes again is pointless: the server had them, and did not like them."""
        return self.cause is Cause.REFUSED


Outcome = Answer | Refusal

# Errors that say nothing of the frame: another time, or another server, may answer it.
_PASSING = frozenset(
    (pb.FrameError.REASON_OVERLOADED, pb.FrameError.REASON_EXPIRED, pb.FrameError.REASON_INTERNAL)
)


# Where a network, a proxy or a crash ended the stream; the same whoever says it.
_TRANSIENT = frozenset(
    (
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
    )
)


@dataclass(slots=True)
class _Offload:
    codec: CodecId
    payload: bytes
    done: Callable[[Outcome], None]
    late: Callable[[Answer], None] | None
    start: float
    deadline: float
    trace: bytes
    probe: bool = False
    sequence: int = 0
    """0 until it is sent for the first time."""
    sends: int = 0
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

    def __init__(self, server: Server, timeout: float) -> None:
        self.server = server
        self.limits: pb.Limits | None = None
        self.sent: dict[int, _Offload] = {}
        """By sequence number, rising."""
        self.late: dict[int, _Offload] = {}
        """Answered already, as far as their image is concerned; the oldest go first."""
        self.last_received = 0.0
        self.accept_by = time.monotonic() + timeout
        self.end_by = math.inf
        self.half_close = False
        self.call: Any = None
        self.cancelled: str | None = None
        self.progress = False
        """Whether a frame was answered."""
        self.accepted_at = math.inf
        self.owed = 0
        """Replies that may still come, one for each frame that was sent here."""
        self.idle = Allowance()

    def takes(self, item: _Offload) -> bool:
        """Whether the server takes this frame, as far as it has said so; any but pictures."""
        limits = self.limits
        if item.codec is not CodecId.PICTURE or limits is None:
            return True
        whole_message = limits.message_bytes - MESSAGE_OVERHEAD - FRAME_OVERHEAD - len(item.trace)
        return len(item.payload) <= min(limits.picture_bytes, whole_message)

    def room(self) -> int:
        """How many more frames the server takes. More may wait: they came before its limits did."""
        return 0 if self.limits is None else self.limits.frames_in_flight - len(self.sent)

    def of_use(self, clean: bool, now: float) -> bool:
        """Whether it answered a frame, or was open long enough. clean: both sides agreed to end it."""
        return self.progress or now - self.accepted_at >= (
            LASTING_CLEAN_SECONDS if clean else LASTING_SECONDS
        )

    def useless(self, message: pb.ServerMessage) -> int:
        """How much of this message serves nothing: itself if it is empty, replies beyond one a frame."""
        expected = min(len(message.replies), self.owed)
        self.owed -= expected
        if message.replies:
            return len(message.replies) - expected
        return 0 if message.HasField("draining") and self.end_by == math.inf else 1

    def cancel(self, reason: str) -> None:
        """End the stream from our side; its reader then fails with this reason."""
        if self.cancelled is None and self.call is not None:
            self.cancelled = reason
            self.call.cancel()


class Link:
    """Frames to one server at a time and their answers back.

    servers: HOST:PORT each, in the order in which they are tried. digest: the bundle's. classes: how many
    the server may name. raw_bytes: size of an uncoded activation. timeout: seconds from ``offload`` to an
    outcome. window: frames without an outcome. coalesce: seconds that a frame may wait for others to share
    its message; coalesce_frames: how many are enough. failures: timeouts and refusals in a row that open
    the breaker. pictures: whether there will be any, so that a server that takes none is told of.
    """

    def __init__(
        self,
        servers: Sequence[str],
        digest: bytes,
        classes: int,
        raw_bytes: int,
        metrics: DeviceMetrics,
        *,
        timeout: float,
        window: int,
        coalesce: float = 0.0,
        coalesce_frames: int = transport.FRAMES_PER_MESSAGE,
        failures: int = 5,
        pictures: bool = False,
        security: Security | None = None,
    ) -> None:
        self._servers = Servers(servers, failures)
        self._digest = digest
        self._classes = classes
        self._raw_bytes = raw_bytes
        self._metrics = metrics
        self._timeout = timeout
        self._window = window
        self._coalesce = coalesce
        self._coalesce_frames = coalesce_frames
        self._pictures = pictures
        self._security = security or Security()
        lock = threading.Lock()
        self._lock = lock
        self._work = threading.Condition(lock)
        """The writer waits for it: something to send, or the stream's end."""
        self._space = threading.Condition(lock)
        """Others wait for it: room in the window, nothing under way, another state."""
        self._closed = threading.Event()
        self._sooner = threading.Event()
        """Wakes the thread that keeps time: a deadline lies before those that it knew."""
        self._state = _State.IDLE
        self._opens_seen = 0
        self._fruitless = 0
        self._breaks, self._drains = Sparingly(), Sparingly()
        self._outbox: deque[_Offload] = deque()
        """Frames to send; first those that are sent again."""
        self._next_sequence = 1
        self._hurry = 0
        """Above 0 while somebody waits for all outcomes: nothing is held back to share a message."""
        self._session = _Session(self._servers.current, timeout)
        self._threads: list[threading.Thread] = []
        self.wire = WireCounter()
        self.failure: OfframpError | None = None
        """Why the link was last down; None if it never was."""
        metrics.watch_wire(self.wire.total)

    def offload(
        self,
        codec: CodecId,
        payload: bytes,
        done: Callable[[Outcome], None],
        *,
        late: Callable[[Answer], None] | None = None,
        background: bool = False,
        deadline: float | None = None,
        trace: bytes = b"",
    ) -> None:
        """Send one frame. Waits while the window is full, no longer than the timeout.

        late: called with the answer if it comes after the deadline, once ``done`` was called without it.
        background: it gives way to other frames, and is turned away rather than wait for a window or for a
        connection. deadline: when its outcome is due, ``time.monotonic``'s, no later than a timeout from now;
        None: then. trace: a W3C trace context to send along, 25 bytes (``tracing.py``).
        """
        start = time.monotonic()
        due = start + self._timeout if deadline is None else deadline
        item = _Offload(codec, payload, done, late, start, due, trace)
        with self._lock:
            if self._state is _State.IDLE:
                self._start()
            refusal = self._admit(item, background)
        if deadline is not None:
            self._sooner.set()
        if refusal is not None:
            if not background:
                self._metrics.unanswered.labels(refusal.cause).inc()
            done(refusal)

    def _admit(self, item: _Offload, background: bool) -> Refusal | None:
        """Put a frame into the outbox, or say why not."""
        while True:
            if not self._is_open():
                cause = Cause.CLOSED if self._state is _State.CLOSED else Cause.UNAVAILABLE
                return Refusal(self._reason(), cause)
            if not self._session.takes(item):
                return _no_picture(self._session)
            now = time.monotonic()
            breaker = self._servers.current.breaker
            if not breaker.allows(now):
                return Refusal(f"waits for a probe to succeed: {breaker.reason}", Cause.BREAKER)
            if background and (self._outbox or self._state is not _State.READY or breaker.is_open):
                return Refusal("gives way", Cause.WINDOW)
            most = max(1, self._most() // 2) if background else self._most()
            if len(self._outbox) + len(self._session.sent) < most:
                break
            if background or now >= item.deadline:
                return Refusal("window full", Cause.WINDOW)
            self._space.wait(item.deadline - now)
        item.probe = breaker.take()
        self._outbox.append(item)
        self._work.notify()
        return None

    def wait_idle(self) -> None:
        """Wait until every frame has its outcome; each has one within its timeout."""
        with self._lock:
            self._hurry += 1
            self._work.notify()
            self._space.wait_for(lambda: not self._outbox and not self._session.sent)
            self._hurry -= 1

    def late_replies_due(self) -> bool:
        """Whether a frame that has its outcome may still be answered."""
        with self._lock:
            return bool(self._session.late)

    def close(self) -> None:
        """Give outstanding frames their outcome, end the stream and stop the threads."""
        self.wait_idle()
        with self._lock:
            self._state = _State.CLOSED
            self._session.half_close = True
            self._notify()
            if self._session.limits is None:
                self._session.cancel("closed")
        self._closed.set()
        self._sooner.set()
        end = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._lock:
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

    def _notify(self) -> None:
        self._work.notify_all()
        self._space.notify_all()

    def _start(self) -> None:
        self._state = _State.CONNECTING
        for work in (self._keep_up, self._keep_time):
            thread = threading.Thread(target=work, name=f"offramp{work.__name__}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _refuse(self, item: _Offload, reason: str, cause: Cause) -> None:
        """Tell a frame, which nothing knows any more, that it has no answer."""
        self._metrics.unanswered.labels(cause).inc()
        item.done(Refusal(reason, cause, item.sends))

    # --- the stream ---

    def _keep_up(self) -> None:
        backoff = Backoff()
        attempt = 0
        while True:
            if attempt:
                self._metrics.reconnects.inc()
            attempt += 1
            session, error = self._run_session()
            useful = session.of_use(error is None, time.monotonic())
            if self._end_session(session, error):
                return
            with self._lock:
                away = max(0.0, self._servers.current.away_until - time.monotonic())
                going_round = self._servers.going_round
            if self._closed.wait(away + backoff.after(useful, going_round)):
                self._end_session(session, None)
                return

    def _run_session(self) -> tuple[_Session, OfframpError | None]:
        """One stream until it ends; the error that ended it, None if both sides agreed to end."""
        with self._lock:
            session = _Session(self._servers.current, self._timeout)
        target = session.server.target
        error: OfframpError | None = None
        channel: Any = None
        try:
            # A new channel each time: its socket's bytes are counted, and its certificates are fresh.
            metadata = self._security.metadata()
            channel = self._security.channel(target, transport.device_options())
            method: Any = channel.stream_stream(transport.OFFLOAD)
            with self._lock:
                if self._state is _State.CLOSED:
                    return session, None
                self._session = session
                session.call = method(self._requests(session), metadata=metadata)
                self._notify()
            for data in session.call:
                self._receive(session, data)
            if not session.half_close:
                error = UnavailableError(f"{target} ended the stream")
        except grpc.RpcError as failure:
            error = self._explain(session, failure)
        except ConfigError as failure:  # a token or a certificate that is gone: it may come back
            error = UnavailableError(f"{target} cannot be asked: {failure}")
        except OfframpError as failure:
            error = failure
            session.call.cancel()
        finally:
            if session.limits is None:
                self.wire.attach(self._security.peer_port(target))
            self.wire.detach()
            if channel is not None:
                channel.close()
        return session, error

    def _explain(self, session: _Session, failure: Any) -> OfframpError:
        target = session.server.target
        if session.cancelled is not None:
            return UnavailableError(f"{target}: {session.cancelled}")
        code, details = failure.code(), _one_line(failure.details())
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            session.server.away_until = time.monotonic() + _pushback(failure)
            return OverloadError(f"{target} cannot take more: {details.removeprefix(transport.SAID)}")
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return UnavailableError(f"{target} is unreachable: {details.removeprefix(transport.SAID)}")
        if code in _TRANSIENT or session.progress or not details.startswith(transport.SAID):
            return UnavailableError(f"{target}: the stream broke ({code.name}): {details}")
        details = details.removeprefix(transport.SAID)
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            return MismatchError(f"{target} refuses: {details}")
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return AccessError(f"{target} refuses this device ({code.name}): {details}")
        return PeerError(f"{target} ended the stream with {code.name}: {details}")

    def _end_session(self, session: _Session, error: OfframpError | None) -> bool:
        """Keep its frames for the next stream, or give them their outcome; whether the link is closed."""
        again: list[_Offload] = []
        lost: list[_Offload] = []
        server, servers = session.server, self._servers
        with self._lock:
            now = time.monotonic()
            session.half_close = True
            closed = self._state is _State.CLOSED
            # A stream that never answered and went silent is no reason to believe in the next one.
            silent = session.cancelled is not None and not session.progress
            passing = error is None or type(error) is UnavailableError
            broken = error is not None and session.limits is not None and not closed
            useful = session.of_use(error is None, now)
            self._fruitless = 0 if useful else self._fruitless + broken
            worked = session.limits is not None and passing and not silent and not closed
            worked &= self._fruitless < FRUITLESS
            costs_none = worked or not (self._outbox or session.sent)
            brief = type(error) is UnavailableError and now - server.worked_at < BRIEF_SECONDS and costs_none
            if worked:
                server.worked_at = now
                servers.worked()
            else:
                servers.failed()
            another = not closed and self._state is not _State.DOWN and not servers.round_is_over
            waits = worked or another
            news = not closed and type(error) is not server.told and not brief
            if error is not None and not closed:  # what close() cuts short says nothing of the server
                self.failure = error
                if useful:
                    server.told = None
                if news and not worked:
                    server.told = type(error)
            for item in session.sent.values():
                repeat = waits and item.sends < SENDS and item.deadline > now
                (again if repeat else lost).append(item)
            session.sent.clear()
            session.late.clear()
            if waits:
                # Numbers in a stream only rise. Those that waited here were given theirs later, or have none.
                self._outbox.extendleft(reversed(again))
            else:
                lost += self._outbox
                self._outbox.clear()
            if not closed:
                self._state = _State.CONNECTING if waits else _State.DOWN
            self._release(server, lost)
            if not closed and servers.current is server:
                self._go_on(now)
            following = servers.current.target
            self._notify()
        self._metrics.connected.set(0)
        if error is not None:
            level = logging.WARNING if news else logging.DEBUG
            if (worked or brief) and self._breaks.due(now):
                level = logging.INFO
            elif worked:
                level = logging.DEBUG
            if worked:
                log.log(level, "%s; connecting to %s, %d frames wait for it", error, following, len(again))
            elif another:
                log.log(level, "%s; trying %s", error, following)
            else:
                log.log(level, "%s; unsure images are answered by the early exit until it is back", error)
        reason = f"{server.target} ended the stream without a reply" if error is None else str(error)
        for item in lost:
            self._refuse(item, reason, Cause.UNAVAILABLE)
        return closed

    def _go_on(self, now: float) -> None:
        """From now on frames are for the next server, if there is another."""
        before = self._servers.current
        if self._servers.go_on(now):
            self._metrics.failovers.inc()
            # A probe tells something of the server that it was let out to only.
            if any(item.probe for item in self._outbox):
                before.breaker.release()
            for item in self._outbox:
                item.probe = False
        self._watch_breaker()

    def _requests(self, session: _Session) -> Iterator[bytes]:
        """What gRPC sends on one stream; it asks for the next message when the last one is out."""
        greeting = frame.hello(self._digest, min(math.ceil(self._timeout * 1000), (1 << 32) - 1))
        self._metrics.message_bytes_sent.inc(len(greeting))
        yield greeting
        writer = frame.FrameWriter()
        while True:
            with self._lock:
                while not session.half_close:
                    wait = self._until_due(session)
                    if wait is not None and wait <= 0:
                        break
                    self._work.wait(wait)
                if session.half_close or session.limits is None:
                    return
                items = self._take(session.limits, session.room())
                frames = [frame.Frame(item.sequence, item.codec, item.payload, item.trace) for item in items]
                message = writer.pack(frames)
                now = time.monotonic()
                # Payloads of one message differ in length; the rest of it is shared evenly.
                shared = (len(message) - sum(len(item.payload) for item in items)) / len(items)
                for item in items:
                    item.sent_at = now
                    item.message_bytes += len(item.payload) + shared
                    item.envelope_bytes += frame.ENVELOPE_BYTES / len(items)
                    item.sends += 1
                    session.sent[item.sequence] = item
                session.owed += len(items)
            self._metrics.message_bytes_sent.inc(len(message))
            self._metrics.payload_bytes.inc(sum(len(item.payload) for item in items))
            pictures = [len(item.payload) for item in items if item.codec is CodecId.PICTURE]
            self._metrics.picture_bytes.inc(sum(pictures))
            self._metrics.raw_activation_bytes.inc(self._raw_bytes * (len(items) - len(pictures)))
            if items[0].sends > 1:
                self._metrics.frames_resent.inc(sum(item.sends > 1 for item in items))
            yield message

    def _until_due(self, session: _Session) -> float | None:
        """Seconds until a message is to go out, 0 or less: now; None where something must happen first."""
        waiting, room = len(self._outbox), session.room()
        if not waiting or room <= 0 or session.limits is None:
            return None
        first = self._outbox[0]
        enough = min(self._coalesce_frames, session.limits.frames_per_message, room)
        # A picture has waited for a reply already.
        urgent = first.sends or first.codec is CodecId.PICTURE
        if not self._coalesce or self._hurry or urgent or waiting >= enough:
            return 0.0
        if waiting + len(session.sent) >= self._most():
            return 0.0  # no other frame may come
        return first.start + self._coalesce - time.monotonic()

    def _take(self, limits: pb.Limits, room: int) -> list[_Offload]:
        """The frames for the next message: all that wait, within the server's limits; at least one.

        Their sequence numbers follow each other: a message can only have such.
        """
        bytes_left = limits.message_bytes - MESSAGE_OVERHEAD
        items: list[_Offload] = []
        while self._outbox and len(items) < min(limits.frames_per_message, room):
            item = self._outbox[0]
            bytes_left -= len(item.payload) + len(item.trace) + FRAME_OVERHEAD
            sequence = item.sequence or self._next_sequence
            if items and (bytes_left < 0 or sequence != items[-1].sequence + 1):
                break
            if not item.sequence:
                item.sequence = sequence
                self._next_sequence += 1
            items.append(self._outbox.popleft())
        return items

    def _receive(self, session: _Session, data: bytes) -> None:
        """One message of the server. Raises PeerError if it breaks the protocol."""
        self._metrics.message_bytes_received.inc(len(data))
        session.last_received = time.monotonic()
        message = frame.parse(pb.ServerMessage, data)
        if session.limits is None:
            self._accept(session, message)
            return
        if message.HasField("accepted"):
            raise MessageError(f"{session.server.target} accepted one stream twice")
        now = time.monotonic()
        with self._lock:
            useless = session.useless(message)
        if not session.idle.take(useless, now):
            raise MessageError(f"{session.server.target} sends messages without end that answer nothing")
        if message.HasField("draining") and session.end_by == math.inf:
            level = logging.INFO if self._drains.due(now) else logging.DEBUG
            log.log(level, "%s is draining; connecting again", session.server.target)
            with self._lock:
                session.half_close = True
                session.end_by = time.monotonic() + self._timeout
                if self._state is _State.READY:
                    self._state = _State.CONNECTING
                self._notify()
        share = len(message.replies) or 1
        for reply in message.replies:
            self._settle(session, reply, len(data) / share, frame.ENVELOPE_BYTES / share)
        self.wire.sample()

    def _accept(self, session: _Session, message: pb.ServerMessage) -> None:
        if not message.HasField("accepted") or message.replies:
            raise MessageError(f"{session.server.target} answered hello with something else than accepted")
        limits = message.accepted.limits
        least = min(limits.frames_in_flight, limits.frames_per_message)
        if not least or limits.message_bytes < self._raw_bytes + MESSAGE_OVERHEAD:
            raise MessageError(
                f"{session.server.target} allows {limits.frames_in_flight} frames in flight, "
                f"{limits.frames_per_message} a message and {limits.message_bytes} bytes a message, "
                f"expected at least 1, 1 and {self._raw_bytes + MESSAGE_OVERHEAD}"
            )
        self.wire.attach(self._security.peer_port(session.server.target), made=True)
        self._metrics.connects.inc()
        self._metrics.connected.set(1)
        with self._lock:
            came_back = self._state is _State.DOWN and not self._fruitless
            session.limits = limits
            session.accepted_at = time.monotonic()
            if self._state is not _State.CLOSED:
                self._state = _State.READY
            misfits = [item for item in self._outbox if not session.takes(item)]
            self._outbox = deque(filter(session.takes, self._outbox))
            self._release(session.server, misfits)
            self._notify()
        log.log(logging.INFO if came_back else logging.DEBUG, "%s accepted the stream", session.server.target)
        if self._pictures and not limits.picture_bytes:
            log.warning("%s takes no pictures; first answers stand", session.server.target)
        for item in misfits:
            refusal = _no_picture(session)
            self._refuse(item, refusal.reason, refusal.cause)

    def _settle(self, session: _Session, reply: pb.Reply, message: float, envelope: float) -> None:
        target = session.server.target
        failed = reply.HasField("error")
        now = time.monotonic()
        with self._lock:
            item = session.sent.pop(reply.sequence, None)
            late = session.late.pop(reply.sequence, None) if item is None else None
            known = 0 < reply.sequence < self._next_sequence
            if item is not None or late is not None:
                session.progress = True
                session.server.told = None
            if item is not None:
                if failed:
                    self._note_error(session, item, reply.error, now)
                elif session.server.breaker.success():
                    self._watch_breaker()
                if self._outbox:
                    self._work.notify()
                self._space.notify_all()
        if item is None and not known:
            raise MessageError(f"{target} answered frame {reply.sequence}, which was never sent")
        if item is None:
            self._metrics.late_replies.inc()
        elif failed:
            reason = frame.reason_name(reply.error.reason)
            self._metrics.frames_refused.labels(reason).inc()
            passing = reply.error.reason in _PASSING
            text = f"refused ({reason}): {_one_line(reply.error.message)}"
            self._refuse(item, text, Cause.UNAVAILABLE if passing else Cause.REFUSED)
            return
        answered = item or late
        if answered is None or failed:
            return
        if reply.class_index >= self._classes or not 0 <= reply.probability <= 1:
            if item is not None:
                self._refuse(item, "the reply makes no sense", Cause.REFUSED)
            raise MessageError(
                f"{target} answered class {reply.class_index} with probability {reply.probability:g}, "
                f"expected a class below {self._classes} and a probability of 0 … 1"
            )
        both = answered.message_bytes + message
        answer = Answer(
            class_index=reply.class_index,
            probability=reply.probability,
            server_seconds=reply.server_time_us / 1e6 or None,
            message_bytes=both,
            wire_bytes=both + answered.envelope_bytes + envelope,
            sends=answered.sends,
        )
        if item is not None:
            self._metrics.round_trip_seconds.observe(now - item.start)
            item.done(answer)
        elif answered.late is not None:
            answered.late(answer)

    # --- the breaker, under the lock ---

    def _note_error(self, session: _Session, item: _Offload, error: pb.FrameError, now: float) -> None:
        server = session.server
        reason = f"{server.target} refuses ({frame.reason_name(error.reason)})"
        if error.reason == pb.FrameError.REASON_OVERLOADED and error.retry_after_ms:
            server.breaker.hold(now, error.retry_after_ms / 1000, reason)
        else:
            server.breaker.failure(now, reason, item.probe)
        self._leave_if_better(session, now)
        self._watch_breaker()

    def _release(self, server: Server, items: list[_Offload]) -> None:
        """These frames ended without telling anything of the link."""
        if any(item.probe for item in items):
            server.breaker.release()

    def _leave_if_better(self, session: _Session, now: float) -> None:
        """Where this server's breaker is open and another server may take frames, they go there."""
        if session.server is self._servers.current and session.limits and self._servers.better(now):
            session.cancel(session.server.breaker.reason)
            if self._state is _State.READY:
                self._state = _State.CONNECTING
            self._go_on(now)
            self._notify()

    def _watch_breaker(self) -> None:
        breaker = self._servers.current.breaker
        self._metrics.breaker_open.set(breaker.is_open)
        fresh = self._servers.opens - self._opens_seen
        if fresh:
            self._opens_seen = self._servers.opens
            self._metrics.breaker_opens.inc(fresh)
            if breaker.is_open:
                log.info("%s; frames are turned away until a probe succeeds", breaker.reason)

    # --- time ---

    def _keep_time(self) -> None:
        pause = self._timeout
        while True:
            self._sooner.wait(pause)
            self._sooner.clear()
            if self._closed.is_set():
                return
            with self._lock:
                late = self._take_late()
                pause = max(self._next_deadline() - time.monotonic(), 0.001)
            for item in late:
                self._refuse(item, f"no reply within {self._timeout:g} s", Cause.TIMEOUT)

    def _next_deadline(self) -> float:
        """The first one. What starts later ends a whole timeout later, or says so by ``_sooner``."""
        session = self._session
        deadlines = [time.monotonic() + self._timeout]
        deadlines += [item.deadline for item in self._outbox]
        deadlines += [item.deadline for item in session.sent.values()]
        if session.limits is None and session.cancelled is None:
            deadlines.append(session.accept_by)
        if session.cancelled is None:
            deadlines.append(session.end_by)
        return min(deadlines)

    def _take_late(self) -> list[_Offload]:
        """Frames whose time is up; they are forgotten here. A stream that has gone silent is ended."""
        now = time.monotonic()
        session = self._session
        late = [item for item in self._outbox if item.deadline <= now]
        if late:
            self._outbox = deque(item for item in self._outbox if item.deadline > now)
        for sequence, item in list(session.sent.items()):
            if item.deadline > now:
                continue
            late.append(session.sent.pop(sequence))
            if item.late is not None:
                session.late[sequence] = item
                if len(session.late) > LATE_MOST:
                    del session.late[next(iter(session.late))]
            # One that was sent shortly before its deadline tells nothing.
            heard = session.last_received >= item.sent_at or now - item.sent_at < self._timeout / 2
            if not heard and session.cancelled is None:
                silence = f"silent for {now - item.sent_at:.1f} s"
                session.cancel(silence)
                session.server.breaker.trip(now, f"{session.server.target}: {silence}")
        for item in late:
            session.server.breaker.failure(now, f"{session.server.target} answers too late", item.probe)
        if late:
            self._leave_if_better(session, now)
        if session.limits is None and session.accept_by <= now:
            session.cancel(f"did not accept the stream within {self._timeout:g} s")
        if session.end_by <= now:
            session.cancel(f"did not end the stream within {self._timeout:g} s of draining")
        if late:
            self._watch_breaker()
            self._notify()
        return late


def _no_picture(session: _Session) -> Refusal:
    most = 0 if session.limits is None else session.limits.picture_bytes
    told = f"takes pictures of at most {most} bytes" if most else "takes no pictures"
    return Refusal(f"{session.server.target} {told}", Cause.PICTURE)


def _pushback(failure: Any) -> float:
    """Seconds that a stream's trailing metadata ask to stay away for; 0 where they do not, 60 at most."""
    try:
        values = dict(failure.trailing_metadata() or ())
        return min(max(int(values.get(transport.RETRY_PUSHBACK, 0)), 0) / 1000, 60.0)
    except (AttributeError, TypeError, ValueError):
        return 0.0


def _one_line(text: str | None) -> str:
    """A stranger's text, fit for one line of a log."""
    return " ".join("".join(c if c.isprintable() else " " for c in (text or "")[:300]).split())
