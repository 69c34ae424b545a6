"""Hostile messages: what a device that speaks to the server on its own terms may send.

The same table is played against the functions of ``offramp.common`` (``test_frames.py``) and, over a real
connection, against a server process: send ``messages`` in order, then look at what became of the last one.
The ones before it are good. A stream that is still open afterwards (``Refused``) answers the next good
frame, whose sequence number is ``next_sequence``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offramp.common.bundle.load import Bundle
from offramp.common.codec.activation import CodecId
from offramp.common.wire import transport
from offramp.common.wire.frame import LAST_SEQUENCE, PROTOCOL_VERSION, Frame, FrameWriter, checksum, hello
from offramp.v1 import inference_pb2 as pb


@dataclass(frozen=True)
class Refused:
    """The stream goes on; each frame of the last message gets a reply with this reason and message."""

    reason: str
    """As ``frame.reason_name`` gives it."""
    message: str
    """A regular expression for the whole of it."""
    sequences: tuple[int, ...]
    next_sequence: int


@dataclass(frozen=True)
class Aborted:
    """The stream ends with this gRPC status."""

    status: str
    """Name of a ``grpc.StatusCode`` member."""
    message: str
    """A regular expression for the whole of the details; of gRPC's own where the status is its own."""


@dataclass(frozen=True)
class FrameAttack:
    """Messages of one stream, each a serialized DeviceMessage, and what comes of the last."""

    number: int
    name: str
    messages: tuple[bytes, ...]
    outcome: Refused | Aborted

    @property
    def id(self) -> str:
        """Number and name."""
        return f"{self.number:03}-{self.name}"


def good_frame(bundle: Bundle, sequence: int) -> Frame:
    """A frame that this bundle's server answers."""
    symbols = (np.arange(bundle.codec.raw_bytes) % 3).astype(np.uint8).reshape(bundle.codec.shape)
    codec, payload = bundle.codec.encode(symbols)
    return Frame(sequence, codec, payload)


def sealed(sequence: int, payload: bytes, codec: int = CodecId.BUNDLE) -> bytes:
    """A frame as it lies in a message: payload and checksum."""
    return payload + checksum(sequence, codec, payload).to_bytes(4, "little")


def message(*frames: bytes, first: int = 0, codecs: tuple[int, ...] = ()) -> bytes:
    """A DeviceMessage of sealed frames, nothing checked."""
    built = pb.DeviceMessage(frames=frames, first_sequence=first)
    built.codecs.extend(codecs)  # type: ignore[arg-type]
    return built.SerializeToString()


def greeting(
    bundle: Bundle, *, version: int = PROTOCOL_VERSION, digest: bytes | None = None, segment: str = "tail"
) -> bytes:
    """A hello with one thing changed."""
    return pb.DeviceMessage(
        hello=pb.Hello(protocol_version=version, bundle_digest=digest or bundle.digest, segment=segment)
    ).SerializeToString()


def _nested(depth: int) -> bytes:
    """Groups in groups, in a field that no message has."""
    return b"\xfb\x01" * depth + b"\xfc\x01" * depth


def attacks(bundle: Bundle) -> list[FrameAttack]:
    """The table, for a server that has loaded this bundle. New attacks go to the end: numbers stay."""
    raw = bundle.codec.raw_bytes
    good = good_frame(bundle, 1)
    assert good.codec == CodecId.BUNDLE
    payload, whole = good.payload, sealed(1, good.payload)
    first = hello(bundle.digest)
    other = bytes(32)
    table: list[FrameAttack] = []

    def frame(name: str, hostile: bytes, reason: str, text: str, *, count: int = 1) -> None:
        refused = Refused(reason, text, tuple(range(1, count + 1)), count + 1)
        table.append(FrameAttack(len(table) + 1, name, (first, hostile), refused))

    def stream(name: str, text: str, *messages: bytes, status: str = "INVALID_ARGUMENT") -> None:
        table.append(FrameAttack(len(table) + 1, name, messages, Aborted(status, text)))

    # -- one frame is bad: it is answered, and the stream goes on
    short = r"a frame of \d bytes, expected over 4"
    crc = r"checksum 0x[0-9a-f]{8} with frame 1, computed 0x[0-9a-f]{8}"
    # The compiled coder's words, or the reference's.
    early = r"the payload (ends before its last symbol|has a lane of \d+ bytes that ends within channel \d+)"
    late = (
        r"the payload (is longer than its symbols need|has a lane of \d+ bytes whose symbols end in byte \d+)"
    )
    raw_size = rf"a raw payload has \d+ bytes, expected {raw}"
    frame("frame-empty", message(b""), "payload", short)
    frame("frame-of-a-checksum-only", message(bytes(4)), "payload", short)
    frame("frame-truncated", message(whole[:-1]), "checksum", crc)
    frame("frame-corrupt", message(bytes([whole[0] ^ 1]) + whole[1:]), "checksum", crc)
    frame("wrong-checksum", message(payload + bytes(4)), "checksum", crc)
    frame("checksum-of-another-sequence", message(sealed(2, payload)), "checksum", crc)
    frame("checksum-of-another-codec", message(sealed(1, payload, CodecId.RAW)), "checksum", crc)
    frame("payload-truncated", message(sealed(1, payload[:-1])), "payload", early)
    frame("payload-of-one-byte", message(sealed(1, b"\0")), "payload", early)
    frame("symbols-left-over", message(sealed(1, payload + b"\0")), "payload", late)
    frame(
        "payload-as-large-as-raw",
        message(sealed(1, bytes(raw))),
        "payload",
        rf"a coded payload has {raw} bytes, expected fewer than the raw {raw}",
    )
    frame(
        "payload-larger-than-raw",
        message(sealed(1, bytes(8_000))),
        "payload",
        rf"a coded payload has 8000 bytes, expected fewer than the raw {raw}",
    )
    for size in (1, raw - 1, raw + 1):
        frame(
            f"raw-payload-of-{size}-bytes",
            message(sealed(1, bytes(size), CodecId.RAW), codecs=(CodecId.RAW,)),
            "payload",
            raw_size,
        )
    frame(
        "picture-where-none-are-answered",
        message(sealed(1, payload, CodecId.PICTURE), codecs=(CodecId.PICTURE,)),
        "codec",
        "codec id 2 is a picture, expected an activation: none are answered here",
    )
    for codec in (255, 256, 2**31 - 1, -1):
        frame(
            f"codec-{codec}",
            message(sealed(1, payload, codec), codecs=(codec,)),
            "codec",
            rf"codec id {codec} is unknown, expected one of \[0, 1\]",
        )
    frame(
        "every-frame-of-a-message",
        message(*[bytes(9)] * transport.FRAMES_PER_MESSAGE),
        "checksum",
        r"checksum 0x00000000 with frame \d+, computed 0x[0-9a-f]{8}",
        count=transport.FRAMES_PER_MESSAGE,
    )

    # -- sequence numbers
    three = FrameWriter().pack([good_frame(bundle, n) for n in (1, 2, 3)])
    for name, again in (("first", 1), ("last", 3)):
        table.append(
            FrameAttack(
                len(table) + 1,
                f"sequence-of-the-{name}-frame-again",
                (first, three, message(sealed(again, payload), first=again)),
                Refused("sequence", rf"sequence number {again}, expected 4 or above", (again,), 4),
            )
        )
    for name, number in (("63-bits", LAST_SEQUENCE), ("64-bits", 2**64 - 1)):
        stream(
            f"sequence-of-{name}",
            rf"sequence number {number}, expected at most \d+",
            first,
            message(sealed(number, payload), first=number),
        )

    # -- bytes that are not a message, or a message out of order: the stream ends
    no_message = r"\d+ bytes that are not an offramp\.v1\.DeviceMessage message"
    stream("message-of-random-bytes", no_message, first, np.random.default_rng(5).bytes(200))
    stream("message-truncated", no_message, first, message(whole)[:-1])
    stream("message-with-a-length-past-its-end", no_message, first, b"\x12\xff\xff\xff\xff\x07abc")
    stream("message-of-nested-groups", no_message, first, _nested(4_000))
    stream("message-empty", "a message with 0 frames, expected 1 … 64", first, b"")
    stream(
        "message-of-unknown-fields-only",
        "a message with 0 frames, expected 1 … 64",
        first,
        b"\xa2\x06\x03abc",
    )
    stream(
        "more-frames-than-a-message-may-carry",
        "a message with 65 frames, expected 1 … 64",
        first,
        message(*[whole] * 65),
    )
    stream(
        "thousands-of-empty-frames",
        "a message with 8000 frames, expected 1 … 64",
        first,
        message(*[b""] * 8_000),
    )
    stream(
        "more-codec-ids-than-frames",
        "a message with 2 codec ids for 1 frames",
        first,
        message(whole, codecs=(0, 0)),
    )
    stream("second-hello", "a second hello on one stream, expected frames", first, first)
    stream(
        "hello-with-a-frame",
        "the first message of a stream is not a hello, expected one alone",
        first + message(whole),
    )
    stream(
        "frames-before-the-hello",
        "the first message of a stream is not a hello, expected one alone",
        message(whole),
    )
    stream("hello-empty", "the first message of a stream is not a hello, expected one alone", b"")
    stream("hello-of-random-bytes", no_message, np.random.default_rng(6).bytes(200))
    stream("hello-whose-segment-is-no-text", no_message, b"\x0a\x04\x1a\x02\xff\xfe")
    stream(
        "wrong-protocol-version",
        "the device speaks protocol version 2, the server 1",
        greeting(bundle, version=2),
        status="FAILED_PRECONDITION",
    )
    stream(
        "protocol-version-of-32-bits",
        "the device speaks protocol version 4294967295, the server 1",
        greeting(bundle, version=2**32 - 1),
        status="FAILED_PRECONDITION",
    )
    stream(
        "wrong-digest",
        rf"the device runs bundle {other.hex()}, the server {bundle.digest.hex()}",
        greeting(bundle, digest=other),
        status="FAILED_PRECONDITION",
    )
    stream(
        "digest-cut", "a bundle digest of 31 bytes, expected 32", greeting(bundle, digest=bundle.digest[:-1])
    )
    stream(
        "digest-of-10-kb",
        "a bundle digest of 10000 bytes, expected 32",
        greeting(bundle, digest=bytes(10_000)),
    )
    stream(
        "segment-unknown",
        r"the device asks for segment '\.\./etc\\n', expected 'tail'",
        greeting(bundle, segment="../etc\n"),
        status="FAILED_PRECONDITION",
    )
    # Before any of it is parsed; far over the limit gRPC itself refuses it.
    over = transport.message_bytes(raw)
    stream(
        "message-over-the-size-limit",
        rf"a message of \d+ bytes, expected {over} at most",
        first,
        message(sealed(1, bytes(over))),
    )
    stream(
        "message-far-over-the-size-limit",
        r".*larger than max.*",
        first,
        message(sealed(1, bytes(transport.RECEIVE_FACTOR * over))),
        status="RESOURCE_EXHAUSTED",
    )
    return table
