"""Frames inside messages: what goes on the stream, as pure functions of bytes.

Invariants (docs/reference/wire-format.md has the byte counts):
- A stream's frames are numbered from 1. A message's first frame follows the last one of the stream unless
  ``first_sequence`` says otherwise; numbers only ever rise, with gaps where the device gave a frame up.
- A frame is its payload and four bytes: CRC-32, little-endian, over sequence number (8 bytes,
  little-endian), codec id (1 byte) and payload. A frame that the two sides number differently fails it.
- A bad frame costs its own answer, not the stream: it is reported under its sequence number. Bytes that
  are not a message, or a message out of order, end the stream (``MessageError``). So do numbers above
  ``LAST_SEQUENCE``: no reply could name them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from offramp.common.codec.activation import CodecId
from offramp.common.errors import (
    ChecksumError,
    CodecError,
    ExpiredError,
    FrameError,
    MessageError,
    MismatchError,
    OverloadError,
    PayloadError,
    SequenceError,
)
from offramp.common.tracing import CONTEXT_BYTES
from offramp.v1 import inference_pb2 as pb

PROTOCOL_VERSION = 1
TAIL_SEGMENT = "tail"
"""A bundle's last part, as a hello asks for it."""
CHECKSUM_BYTES = 4
LAST_SEQUENCE = (1 << 63) - 1
HTTP2_FRAME_BYTES = 9
GRPC_PREFIX_BYTES = 5
ENVELOPE_BYTES = HTTP2_FRAME_BYTES + GRPC_PREFIX_BYTES
"""What gRPC puts before a message: an HTTP/2 DATA header and gRPC's own length prefix."""
DIGESTS_NAMED = 4
"""How many of a server's bundles the refusal of another one names."""

M = TypeVar("M", bound=Message)

_SEALED = struct.Struct("<QB")
_CRC = struct.Struct("<I")
_BUNDLE = int(CodecId.BUNDLE)
"""A plain number, with which arithmetic is cheaper."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One coded activation."""

    sequence: int
    codec: int
    payload: bytes
    trace: bytes = b""
    """W3C trace context, 25 bytes; empty where the frame is not traced."""
    deadline_ms: int = 0
    """How long its answer is waited for; 0: as long as the hello says."""


@dataclass(frozen=True, slots=True)
class BadFrame:
    """A frame that arrived but cannot be used, and why."""

    sequence: int
    error: FrameError


def checksum(sequence: int, codec: int, payload: bytes) -> int:
    """CRC-32 of one frame."""
    return zlib.crc32(payload, zlib.crc32(_SEALED.pack(sequence, codec & 0xFF)))


class FrameWriter:
    """Packs frames into messages, for one stream."""

    def __init__(self) -> None:
        self._next = 1

    def pack(self, frames: Sequence[Frame]) -> bytes:
        """One serialized DeviceMessage with these frames, whose sequence numbers rise by one each."""
        first = frames[0].sequence
        message = pb.DeviceMessage(
            frames=[f.payload + _CRC.pack(checksum(f.sequence, f.codec, f.payload)) for f in frames],
            first_sequence=0 if first == self._next else first,
        )
        if any(frame.codec != CodecId.BUNDLE for frame in frames):
            message.codecs.extend(frame.codec for frame in frames)  # type: ignore[misc]
        if any(frame.trace for frame in frames):
            message.traces.extend(frame.trace for frame in frames)
        if any(frame.deadline_ms for frame in frames):
            message.deadlines_ms.extend(frame.deadline_ms for frame in frames)
        self._next = first + len(frames)
        return message.SerializeToString()


class FrameReader:
    """Takes a stream's messages apart again."""

    def __init__(self, frames_per_message: int) -> None:
        self._next = 1
        self._frames_per_message = frames_per_message

    def read(self, message: pb.DeviceMessage) -> list[Frame | BadFrame]:
        """The frames of one message, in order. Raises MessageError if it is not a message of frames."""
        frames = message.frames
        count = len(frames)
        if message.HasField("hello"):
            raise MessageError("a second hello on one stream, expected frames")
        if not 0 < count <= self._frames_per_message:
            raise MessageError(f"a message with {count} frames, expected 1 … {self._frames_per_message}")
        # Each look at a repeated field makes an object.
        codecs: Sequence[int] = message.codecs
        traces: Sequence[bytes] = message.traces
        deadlines: Sequence[int] = message.deadlines_ms
        if codecs and len(codecs) != count:
            raise MessageError(f"a message with {len(codecs)} codec ids for {count} frames")
        if traces:
            _check_traces(traces, count)
        if deadlines and len(deadlines) != count:
            raise MessageError(f"a message with {len(deadlines)} deadlines for {count} frames")
        first = message.first_sequence or self._next
        if first > LAST_SEQUENCE - count:
            raise MessageError(f"sequence number {first}, expected at most {LAST_SEQUENCE - count}")
        if first < self._next:
            wrong = SequenceError(f"sequence number {first}, expected {self._next} or above")
            return [BadFrame(first + i, wrong) for i in range(count)]
        self._next = first + count
        if count == 1:
            codec, trace = codecs[0] if codecs else _BUNDLE, traces[0] if traces else b""
            return [_open(first, codec, frames[0], trace, deadlines[0] if deadlines else 0)]
        codecs = codecs or [_BUNDLE] * count
        traces = traces or [b""] * count
        deadlines = deadlines or [0] * count
        return [_open(first + i, codecs[i], frames[i], traces[i], deadlines[i]) for i in range(count)]


def _check_traces(traces: Sequence[bytes], count: int) -> None:
    if len(traces) != count:
        raise MessageError(f"a message with {len(traces)} trace contexts for {count} frames")
    for trace in traces:
        if len(trace) not in (0, CONTEXT_BYTES):
            raise MessageError(f"a trace context of {len(trace)} bytes, expected {CONTEXT_BYTES}")


def _open(sequence: int, codec: int, sealed: bytes, trace: bytes, deadline_ms: int) -> Frame | BadFrame:
    payload, stored = sealed[:-CHECKSUM_BYTES], sealed[-CHECKSUM_BYTES:]
    if not payload:
        return BadFrame(
            sequence, PayloadError(f"a frame of {len(sealed)} bytes, expected over {CHECKSUM_BYTES}")
        )
    computed = checksum(sequence, codec, payload)
    (found,) = _CRC.unpack(stored)
    if found != computed:
        error = ChecksumError(f"checksum {found:#010x} with frame {sequence}, computed {computed:#010x}")
        return BadFrame(sequence, error)
    return Frame(sequence, codec, payload, trace, deadline_ms)


def parse(kind: type[M], data: bytes) -> M:
    """One message of this kind. Raises MessageError for other bytes."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise MessageError(f"{len(data)} bytes that are not an {kind.DESCRIPTOR.full_name} message") from None


def segment_of(part: int, parts: int) -> str:
    """How a hello names part 1, 2, … of so many: the last one ``tail``, others by their number."""
    return TAIL_SEGMENT if part == parts else f"part {part}"


def hello(digest: bytes, deadline_ms: int = 0, segment: str = TAIL_SEGMENT) -> bytes:
    """A stream's first message, serialized.

    deadline_ms: how long an answer is waited for; 0: for ever. segment: the part that is asked for.
    """
    greeting = pb.Hello(
        protocol_version=PROTOCOL_VERSION,
        bundle_digest=digest,
        segment=segment,
        deadline_ms=deadline_ms,
    )
    return pb.DeviceMessage(hello=greeting).SerializeToString()


def check_hello(
    message: pb.DeviceMessage, *digests: bytes, segments: Mapping[bytes, Sequence[str]] | None = None
) -> None:
    """Accept a stream's first message, or raise MessageError or MismatchError naming both sides' values.

    digests: the bundles that this server has loaded; at least one. segments: what it runs of them, by digest,
    where that is not the last part.
    """
    if not message.HasField("hello") or message.frames or message.first_sequence or message.codecs:
        raise MessageError("the first message of a stream is not a hello, expected one alone")
    theirs = message.hello
    if theirs.protocol_version != PROTOCOL_VERSION:
        raise MismatchError(
            f"the device speaks protocol version {theirs.protocol_version}, the server {PROTOCOL_VERSION}"
        )
    if len(theirs.bundle_digest) != len(digests[0]):
        raise MessageError(
            f"a bundle digest of {len(theirs.bundle_digest)} bytes, expected {len(digests[0])}"
        )
    if theirs.bundle_digest not in digests:
        loaded = ", ".join(digest.hex() for digest in digests[:DIGESTS_NAMED])
        raise MismatchError(f"the device runs bundle {theirs.bundle_digest.hex()}, the server {loaded}")
    ours = (segments or {}).get(theirs.bundle_digest, [TAIL_SEGMENT])
    if theirs.segment not in ours:
        expected = " or ".join(map(repr, ours))
        raise MismatchError(f"the device asks for segment {theirs.segment[:64]!r}, expected {expected}")


_REASONS: dict[type[Exception], pb.FrameError.Reason] = {
    ChecksumError: pb.FrameError.REASON_CHECKSUM,
    SequenceError: pb.FrameError.REASON_SEQUENCE,
    CodecError: pb.FrameError.REASON_CODEC,
    PayloadError: pb.FrameError.REASON_PAYLOAD,
    OverloadError: pb.FrameError.REASON_OVERLOADED,
    ExpiredError: pb.FrameError.REASON_EXPIRED,
}


_NAMES = {
    value.number: value.name.removeprefix("REASON_").lower()
    for value in pb.FrameError.Reason.DESCRIPTOR.values
}


def refusal(sequence: int, error: Exception) -> pb.Reply:
    """The reply to a frame that gets no answer. An error that is not ours is named by its type only."""
    reason = _REASONS.get(type(error), pb.FrameError.REASON_INTERNAL)
    known = reason != pb.FrameError.REASON_INTERNAL
    message = str(error) if known else f"internal error ({type(error).__name__})"
    retry = error.retry_after_ms if isinstance(error, OverloadError) else 0
    refused = pb.FrameError(reason=reason, message=message, retry_after_ms=retry)
    return pb.Reply(sequence=sequence, error=refused)


def reason_name(reason: int) -> str:
    """A reason as it appears in logs and metric labels: ``checksum``, ``payload``, …; ``unknown`` else."""
    return _NAMES.get(reason, "unknown")
