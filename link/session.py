"""One stream's life over gRPC: made, greeted, accepted, kept fed, read, and explained when it ends.

Rules this module keeps:
- What the server sends is checked; a server that breaks the protocol is as good as one that is gone, and is
  sent nothing again.
- So is one that refuses us: before it has accepted the stream with a status of ``REFUSING``, whoever says it,
  and before it has answered a frame in a detail of our server (``transport.SAID``). Any other end of a stream
  is the network's, or a proxy's.
- What serves nothing is bounded (``backoff.Allowance``).
- The frames are the link's: whatever happens to them happens in its ``Owner``, under its lock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

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
from offramp.link.backoff import Allowance
from offramp.link.metrics import LinkMetrics
from offramp.link.outbox import MESSAGE_OVERHEAD, Limits, Offload
from offramp.link.outcome import Answer, Cause
from offramp.link.security import Security
from offramp.link.servers import Server
from offramp.link.wire_bytes import WireCounter
from offramp.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from offramp.common.bundle.load import Bundle

LASTING_SECONDS, LASTING_CLEAN_SECONDS = 10.0, 1.0
"""A stream that was open for so long was of use without a reply too; the second if both agreed to end it."""
PUSHBACK_MOST = 60.0
"""Seconds that a refused stream may keep us away: what it asks for beyond that is not believed."""

# Where a network, a proxy or a crash ended the stream, whoever says it.
_TRANSIENT = frozenset(
    (
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
    )
)
REFUSING = frozenset(
    (
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
    )
)
"""In answer to a hello these are a refusal, whoever says it: no network that breaks makes them up."""

# Errors that say nothing of the frame: another time, or another server, may answer it.
PASSING = frozenset(
    (pb.FrameError.REASON_OVERLOADED, pb.FrameError.REASON_EXPIRED, pb.FrameError.REASON_INTERNAL)
)


@dataclass(frozen=True, slots=True)
class Terms:
    """What the two ends must agree on, and what will be sent.

    digest: of the bundle, 32 bytes. classes: how many the server may name. raw_bytes: size of an uncoded
    activation. pictures: whether there will be any, so that a server that takes none is warned of. part, of
    parts: which one the server is asked to run, from 2. deadlines: whether each frame says how long it has
    left, where not all have the same time.
    """

    digest: bytes
    classes: int
    raw_bytes: int
    pictures: bool = False
    part: int = 2
    parts: int = 2
    deadlines: bool = False

    @classmethod
    def of(cls, bundle: Bundle, part: int = 2, *, pictures: bool = False, deadlines: bool = False) -> Self:
        """For a server that runs this part of the bundle."""
        classes, parts = len(bundle.manifest.classes), len(bundle.manifest.parts)
        raw_bytes = bundle.codec_of(part - 2).raw_bytes
        return cls(bundle.digest, classes, raw_bytes, pictures, part, parts, deadlines)


@dataclass(frozen=True, slots=True)
class Owner:
    """What the owner of the frames does for their stream. Each of these takes the owner's lock."""

    begins: Callable[[Session, Callable[[], Any]], bool]
    """Make the session's call, so that others can cancel it; False if the link is closed."""
    next_message: Callable[[Session], tuple[Sequence[Offload], bytes] | None]
    """Wait until a message is due: its frames, which count as sent now, and its bytes; None: no more."""
    accepted: Callable[[Session, Limits], None]
    """The server takes frames."""
    draining: Callable[[Session], None]
    """The server reads no further frame."""
    excess: Callable[[int], int]
    """How many of this many replies are beyond one for each frame of the stream."""
    replied: Callable[[Session, int, pb.FrameError | None], tuple[Offload | None, Offload | None]]
    """The frame with this number has its reply, as ``Outbox.settle`` returns it. Raises MessageError."""
    refuse: Callable[[Offload, str, Cause], None]
    """A frame that is in the outbox no more has no answer."""


@dataclass(frozen=True, slots=True)
class Kit:
    """What the streams of one link have in common. timeout: seconds."""

    terms: Terms
    timeout: float
    security: Security
    metrics: LinkMetrics
    wire: WireCounter
    owner: Owner


class Session:
    """One stream, from its channel to its end."""

    def __init__(self, server: Server, kit: Kit, now: float) -> None:
        self.server = server
        self.accept_by = now + kit.timeout
        self.end_by = math.inf
        self.half_close = False
        """Whether we send no further frame."""
        self.cancelled: str | None = None
        """Why we ended it, if we did."""
        self.progress = False
        """Whether a frame was answered."""
        self.accepted_at = math.inf
        self.last_received = 0.0
        self.call: Any = None
        self._kit = kit
        self._answers = kit.metrics.server_answers.labels(server.target)
        self._writer = frame.FrameWriter()
        self._idle = Allowance()

    @property
    def is_accepted(self) -> bool:
        """Whether the server has accepted the stream."""
        return self.accepted_at < math.inf

    def of_use(self, clean: bool, now: float) -> bool:
        """Whether it answered a frame, or was open long enough. clean: both sides agreed to end it."""
        lasting = LASTING_CLEAN_SECONDS if clean else LASTING_SECONDS
        return self.progress or now - self.accepted_at >= lasting

    def next_deadline(self) -> float:
        """When the server must have accepted the stream, or have ended it after it announced to drain."""
        if self.cancelled is not None:
            return math.inf
        return self.end_by if self.is_accepted else min(self.accept_by, self.end_by)

    def cancel_if_overdue(self, now: float) -> None:
        """End it if the server did not accept it, or did not end it, in time."""
        if not self.is_accepted and self.accept_by <= now:
            self.cancel(f"did not accept the stream within {self._kit.timeout:g} s")
        if self.end_by <= now:
            self.cancel(f"did not end the stream within {self._kit.timeout:g} s of draining")

    def cancel(self, reason: str) -> None:
        """End the stream from our side; its reader then fails with this reason."""
        if self.cancelled is None and self.call is not None:
            self.cancelled = reason
            self.call.cancel()

    def run(self) -> OfframpError | None:
        """Make the stream and read it to its end: the error that ended it, None if both sides agreed to."""
        target, kit = self.server.target, self._kit
        error: OfframpError | None = None
        channel: Any = None
        try:
            # A new channel each time: its socket's bytes are counted, and its certificates are fresh.
            metadata = kit.security.metadata()
            channel = kit.security.channel(target, transport.device_options())
            method: Any = channel.stream_stream(transport.OFFLOAD)
            if not self._kit.owner.begins(self, partial(method, self._requests(), metadata=metadata)):
                return None
            for data in self.call:
                self._receive(data)
            if not self.half_close:
                error = UnavailableError(f"{target} ended the stream")
        except grpc.RpcError as failure:
            error = self._explain(failure)
        except ConfigError as failure:  # a token or a certificate that is gone: it may come back
            error = UnavailableError(f"{target} cannot be asked: {failure}")
        except OfframpError as failure:
            error = failure
            self.call.cancel()
        finally:
            if not self.is_accepted:
                kit.wire.attach(kit.security.peer_port(target))
            kit.wire.detach()
            if channel is not None:
                channel.close()
        return error

    def pack(self, items: Sequence[Offload]) -> bytes:
        """One serialized message with these frames, whose numbers follow each other."""
        if self._kit.terms.deadlines:
            now = time.monotonic()
            return self._writer.pack(
                [
                    frame.Frame(i.sequence, i.codec, i.payload, i.trace, _milliseconds(i.deadline - now))
                    for i in items
                ]
            )
        return self._writer.pack([frame.Frame(i.sequence, i.codec, i.payload, i.trace) for i in items])

    def _requests(self) -> Iterator[bytes]:
        """What gRPC sends; it asks for the next message when the last one is out."""
        terms, metrics = self._kit.terms, self._kit.metrics
        segment = frame.segment_of(terms.part, terms.parts)
        greeting = frame.hello(terms.digest, _milliseconds(self._kit.timeout), segment)
        metrics.message_bytes_sent.inc(len(greeting))
        yield greeting
        while (following := self._kit.owner.next_message(self)) is not None:
            items, message = following
            metrics.message_bytes_sent.inc(len(message))
            metrics.payload_bytes.inc(sum(len(item.payload) for item in items))
            pictures = [len(item.payload) for item in items if item.codec is CodecId.PICTURE]
            metrics.picture_bytes.inc(sum(pictures))
            metrics.audit_bytes.inc(sum(len(item.payload) for item in items if item.behind))
            metrics.raw_activation_bytes.inc(terms.raw_bytes * (len(items) - len(pictures)))
            if items[0].sends > 1:
                metrics.frames_resent.inc(sum(item.sends > 1 for item in items))
            yield message

    # --- what the server says ---

    def _receive(self, data: bytes) -> None:
        """One message of the server. Raises PeerError if it breaks the protocol."""
        self._kit.metrics.message_bytes_received.inc(len(data))
        now = self.last_received = time.monotonic()
        message = frame.parse(pb.ServerMessage, data)
        if not self.is_accepted:
            self._accept(message)
            return
        target = self.server.target
        if message.HasField("accepted"):
            raise MessageError(f"{target} accepted one stream twice")
        drains = message.HasField("draining") and self.end_by == math.inf
        replies = len(message.replies)
        useless = self._kit.owner.excess(replies) if replies else int(not drains)
        if not self._idle.take(useless, now):
            raise MessageError(f"{target} sends messages without end that answer nothing")
        if drains:
            self._kit.owner.draining(self)
        for reply in message.replies:
            self._settle(reply, len(data) / replies, frame.ENVELOPE_BYTES / replies)
        self._kit.wire.sample()

    def _accept(self, message: pb.ServerMessage) -> None:
        target, terms = self.server.target, self._kit.terms
        if not message.HasField("accepted") or message.replies:
            raise MessageError(f"{target} answered hello with something else than accepted")
        theirs = message.accepted.limits
        limits = Limits(
            theirs.frames_in_flight, theirs.frames_per_message, theirs.message_bytes, theirs.picture_bytes
        )
        least = min(limits.frames_in_flight, limits.frames_per_message)
        if not least or limits.message_bytes < terms.raw_bytes + MESSAGE_OVERHEAD:
            raise MessageError(
                f"{target} allows {limits.frames_in_flight} frames in flight, "
                f"{limits.frames_per_message} a message and {limits.message_bytes} bytes a message, "
                f"expected at least 1, 1 and {terms.raw_bytes + MESSAGE_OVERHEAD}"
            )
        self._kit.wire.attach(self._kit.security.peer_port(target), made=True)
        self._kit.owner.accepted(self, limits)

    def _settle(self, reply: pb.Reply, message: float, envelope: float) -> None:
        """One reply; message, envelope: its share of the bytes that brought it."""
        target, classes, metrics = self.server.target, self._kit.terms.classes, self._kit.metrics
        error = reply.error if reply.HasField("error") else None
        item, late = self._kit.owner.replied(self, reply.sequence, error)
        if item is None:
            metrics.late_replies.inc()
        elif error is not None:
            reason = frame.reason_name(error.reason)
            metrics.frames_refused.labels(reason).inc()
            cause = Cause.UNAVAILABLE if error.reason in PASSING else Cause.REFUSED
            self._kit.owner.refuse(item, f"refused ({reason}): {one_line(error.message)}", cause)
            return
        answered = item or late
        if answered is None or error is not None:
            return
        part = reply.part or self._kit.terms.part
        if not self._kit.terms.part <= part <= self._kit.terms.parts:
            self._refuse_nonsense(item)
            raise MessageError(
                f"{target} answered by part {part}, expected {self._kit.terms.part} … {self._kit.terms.parts}"
            )
        if reply.class_index >= classes or not 0 <= reply.probability <= 1:
            self._refuse_nonsense(item)
            raise MessageError(
                f"{target} answered class {reply.class_index} with probability {reply.probability:g}, "
                f"expected a class below {classes} and a probability of 0 … 1"
            )
        both = answered.message_bytes + message
        answer = Answer(
            class_index=reply.class_index,
            probability=reply.probability,
            server_seconds=reply.server_time_us / 1e6 or None,
            message_bytes=both,
            wire_bytes=both + answered.envelope_bytes + envelope,
            sends=answered.sends,
            part=part,
            server=target,
            fallback=reply.fallback,
        )
        if item is not None:
            if not item.behind:
                metrics.round_trip_seconds.observe(self.last_received - item.start)
                self._answers.inc()
            item.done(answer)
        elif answered.late is not None:
            answered.late(answer)

    def _refuse_nonsense(self, item: Offload | None) -> None:
        if item is not None:
            self._kit.owner.refuse(item, "the reply makes no sense", Cause.REFUSED)

    # --- how it ends ---

    def _explain(self, failure: Any) -> OfframpError:
        """gRPC's error as one of ours."""
        if self.cancelled is not None:
            return UnavailableError(f"{self.server.target}: {self.cancelled}")
        code, details = failure.code(), one_line(failure.details())
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self.server.away_until = time.monotonic() + _pushback(failure)
        error = explain(self.server.target, code, details, self.is_accepted, self.progress)
        if isinstance(error, PeerError) and not self.is_accepted:
            self._kit.metrics.hellos_refused.labels(_REFUSED.get(type(error), "other")).inc()
        return error


_REFUSED: dict[type[OfframpError], str] = {MismatchError: "mismatch", AccessError: "access"}
"""What the metrics call a refused hello."""


def _milliseconds(seconds: float) -> int:
    """As a message says it: rounded up, at least 1."""
    return min(max(math.ceil(seconds * 1000), 1), (1 << 32) - 1)


def explain(target: str, code: Any, details: str, accepted: bool, progress: bool) -> OfframpError:
    """The error that a stream's status is.

    code: a ``grpc.StatusCode``. details: one line. accepted: whether the server had accepted the stream;
    progress: whether it had answered a frame.
    """
    ours = details.startswith(transport.SAID)
    text = details.removeprefix(transport.SAID)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return OverloadError(f"{target} cannot take more: {text}")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return UnavailableError(f"{target} is unreachable: {text}")
    refuses = ours or (code in REFUSING and not accepted)
    if code in _TRANSIENT or progress or not refuses:
        return UnavailableError(f"{target}: the stream broke ({code.name}): {details}")
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return MismatchError(f"{target} refuses: {text}")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return AccessError(f"{target} refuses this device ({code.name}): {text}")
    return PeerError(f"{target} ended the stream with {code.name}: {text}")


def _pushback(failure: Any) -> float:
    """Seconds that a stream's trailing metadata ask us to stay away for; 0 if they do not."""
    try:
        values = dict(failure.trailing_metadata() or ())
        return min(max(int(values.get(transport.RETRY_PUSHBACK, 0)), 0) / 1000, PUSHBACK_MOST)
    except (AttributeError, TypeError, ValueError):
        return 0.0


def one_line(text: str | None) -> str:
    """A stranger's text, fit for one line of a log."""
    return " ".join("".join(c if c.isprintable() else " " for c in (text or "")[:300]).split())
