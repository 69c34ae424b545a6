"""Frames and messages: their overhead to the byte, their numbers, and what hostile bytes may do."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.common import errors
from offramp.common.codec.activation import CodecId
from offramp.common.wire.frame import (
    LAST_SEQUENCE,
    PROTOCOL_VERSION,
    BadFrame,
    Frame,
    FrameReader,
    FrameWriter,
    check_hello,
    checksum,
    hello,
    parse,
    reason_name,
    refusal,
    segment_of,
)
from offramp.v1 import inference_pb2 as pb

DIGEST = bytes(range(32))
LIMIT = 16

payloads = st.binary(min_size=1, max_size=300)
codec_ids = st.sampled_from(CodecId)


def read(reader: FrameReader, data: bytes) -> list[Frame | BadFrame]:
    return reader.read(parse(pb.DeviceMessage, data))


def sealed(sequence: int, payload: bytes, codec: int = CodecId.BUNDLE) -> bytes:
    return payload + checksum(sequence, codec, payload).to_bytes(4, "little")


# ---- what goes over the wire -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "codec", "first", "overhead"),
    [
        (1, CodecId.BUNDLE, 1, 6),
        (100, CodecId.BUNDLE, 1, 6),
        (123, CodecId.BUNDLE, 1, 6),
        (124, CodecId.BUNDLE, 1, 7),
        (16_379, CodecId.BUNDLE, 1, 7),
        (16_380, CodecId.BUNDLE, 1, 8),
        (24_576, CodecId.BUNDLE, 1, 8),
        # A codec id costs three bytes a message, and one more for each further frame.
        (100, CodecId.RAW, 1, 9),
        (24_576, CodecId.RAW, 1, 11),
        # A sequence number that the reader cannot infer costs a tag and a varint, once a message.
        (100, CodecId.BUNDLE, 2, 8),
        (100, CodecId.BUNDLE, 200, 9),
        (100, CodecId.BUNDLE, LAST_SEQUENCE - 1, 16),
    ],
)
def test_overhead_of_a_message_with_one_frame(payload: int, codec: int, first: int, overhead: int) -> None:
    message = FrameWriter().pack([Frame(first, codec, bytes(payload))])

    assert len(message) - payload == overhead


def test_frames_in_one_message_cost_six_bytes_each() -> None:
    message = FrameWriter().pack([Frame(i + 1, CodecId.BUNDLE, bytes(100)) for i in range(10)])

    assert len(message) == 10 * 106


def test_one_raw_frame_among_ten_costs_a_codec_id_for_each() -> None:
    kinds = [CodecId.RAW, *[CodecId.BUNDLE] * 9]
    message = FrameWriter().pack([Frame(i + 1, kind, bytes(100)) for i, kind in enumerate(kinds)])

    assert len(message) == 10 * 106 + 2 + 10


def test_only_the_first_message_after_a_gap_names_its_sequence() -> None:
    writer = FrameWriter()
    messages = [writer.pack([Frame(n, CodecId.BUNDLE, b"x")]) for n in (1, 2, 7, 8)]

    firsts = [parse(pb.DeviceMessage, message).first_sequence for message in messages]
    assert firsts == [0, 0, 7, 0]


def test_checksum_is_the_crc_32_of_sequence_codec_and_payload() -> None:
    assert checksum(0x0102, CodecId.RAW, b"abc") == zlib.crc32(bytes([2, 1, 0, 0, 0, 0, 0, 0, 1]) + b"abc")


@given(
    st.lists(
        st.tuples(st.integers(0, 2**40), st.lists(st.tuples(codec_ids, payloads), min_size=1, max_size=5)),
        max_size=6,
    )
)
def test_what_is_packed_is_read(stream: list[tuple[int, list[tuple[CodecId, bytes]]]]) -> None:
    writer, reader, following = FrameWriter(), FrameReader(LIMIT), 1
    for gap, contents in stream:
        first = following + gap
        frames = [Frame(first + i, codec, payload) for i, (codec, payload) in enumerate(contents)]
        following = first + len(frames)

        assert read(reader, writer.pack(frames)) == frames


# ---- one bad frame -----------------------------------------------------------------------------------


def test_each_flipped_bit_of_a_frame_fails_its_checksum() -> None:
    good = sealed(1, b"payload")
    for bit in range(8 * len(good)):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        (bad,) = FrameReader(LIMIT).read(pb.DeviceMessage(frames=[bytes(flipped)]))

        assert isinstance(bad, BadFrame)
        assert isinstance(bad.error, errors.ChecksumError)


def test_the_checksum_covers_sequence_and_codec() -> None:
    frame = sealed(1, b"payload")
    for message in (
        pb.DeviceMessage(frames=[frame], first_sequence=2),
        pb.DeviceMessage(frames=[frame], codecs=[pb.CODEC_RAW]),
    ):
        (bad,) = FrameReader(LIMIT).read(message)
        assert isinstance(bad, BadFrame)
        assert isinstance(bad.error, errors.ChecksumError)


@pytest.mark.parametrize("size", range(5))
def test_a_frame_too_short_for_a_payload(size: int) -> None:
    (bad,) = FrameReader(LIMIT).read(pb.DeviceMessage(frames=[bytes(size)]))

    assert isinstance(bad, BadFrame)
    assert str(bad.error) == f"a frame of {size} bytes, expected over 4"


def test_a_bad_frame_leaves_those_beside_it_and_the_numbering_alone() -> None:
    reader = FrameReader(LIMIT)
    first, bad, third = reader.read(
        pb.DeviceMessage(frames=[sealed(1, b"a"), sealed(9, b"b"), sealed(3, b"c")])
    )

    assert (first, third) == (Frame(1, 0, b"a"), Frame(3, 0, b"c"))
    assert isinstance(bad, BadFrame)
    assert bad.sequence == 2
    assert read(reader, pb.DeviceMessage(frames=[sealed(4, b"d")]).SerializeToString()) == [Frame(4, 0, b"d")]


def test_an_unknown_codec_id_reaches_the_codec() -> None:
    message = pb.DeviceMessage(frames=[sealed(1, b"a", 9)])
    message.codecs.append(9)  # type: ignore[arg-type]

    assert FrameReader(LIMIT).read(message) == [Frame(1, 9, b"a")]


# ---- sequence numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [1, 3, 5])
def test_a_number_that_was_used_is_refused_frame_by_frame(again: int) -> None:
    reader = FrameReader(LIMIT)
    read(reader, FrameWriter().pack([Frame(n, 0, b"x") for n in range(1, 6)]))

    replayed = reader.read(
        pb.DeviceMessage(frames=[sealed(again, b"x"), sealed(again + 1, b"x")], first_sequence=again)
    )

    assert [frame.sequence for frame in replayed] == [again, again + 1]
    for frame in replayed:
        assert isinstance(frame, BadFrame)
        assert isinstance(frame.error, errors.SequenceError)
        assert str(frame.error) == f"sequence number {again}, expected 6 or above"
    assert reader.read(pb.DeviceMessage(frames=[sealed(6, b"y")])) == [Frame(6, 0, b"y")]


@pytest.mark.parametrize("first", [LAST_SEQUENCE, LAST_SEQUENCE + 1, 2**64 - 1])
def test_a_number_past_the_last_ends_the_stream(first: int) -> None:
    with pytest.raises(errors.MessageError, match=f"sequence number {first}, expected at most"):
        FrameReader(LIMIT).read(pb.DeviceMessage(frames=[b"x"], first_sequence=first))


@given(st.integers(0, 2**64 - 1), st.lists(st.binary(max_size=8), min_size=1, max_size=LIMIT))
def test_every_frame_of_a_message_can_be_answered(first: int, frames: list[bytes]) -> None:
    reader = FrameReader(LIMIT)
    reader.read(pb.DeviceMessage(frames=[b""] * 3))
    try:
        found = reader.read(pb.DeviceMessage(frames=frames, first_sequence=first))
    except errors.MessageError:
        return
    assert [frame.sequence for frame in found] == list(range(first or 4, (first or 4) + len(frames)))
    for frame in found:
        refusal(frame.sequence, errors.PayloadError("")).SerializeToString()


# ---- messages ----------------------------------------------------------------------------------------

NO_FRAMES = {
    "empty": (pb.DeviceMessage(), "a message with 0 frames, expected 1 … 16"),
    "too-many": (pb.DeviceMessage(frames=[b""] * 17), "a message with 17 frames, expected 1 … 16"),
    "second-hello": (pb.DeviceMessage(hello=pb.Hello()), "a second hello on one stream, expected frames"),
    "hello-and-frame": (
        pb.DeviceMessage(hello=pb.Hello(), frames=[b"x"]),
        "a second hello on one stream, expected frames",
    ),
    "codecs": (
        pb.DeviceMessage(frames=[b"x"], codecs=[pb.CODEC_RAW] * 2),
        "a message with 2 codec ids for 1 frames",
    ),
}


@pytest.mark.parametrize("name", NO_FRAMES)
def test_refuses_a_message_that_is_not_frames(name: str) -> None:
    message, expected = NO_FRAMES[name]
    with pytest.raises(errors.MessageError) as caught:
        FrameReader(LIMIT).read(message)
    assert str(caught.value) == expected


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_message_error_or_frames(data: bytes) -> None:
    try:
        frames = read(FrameReader(LIMIT), data)
    except errors.MessageError:
        return
    assert 0 < len(frames) <= LIMIT
    assert all(isinstance(frame, Frame | BadFrame) for frame in frames)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=3)), min_size=1, max_size=6),
    st.lists(payloads, min_size=1, max_size=4),
)
def test_damaged_messages_are_a_message_error_or_frames(
    edits: list[tuple[int, bytes]], contents: list[bytes]
) -> None:
    data = FrameWriter().pack([Frame(7 + i, CodecId.RAW, payload) for i, payload in enumerate(contents)])
    for place, insert in edits:
        data = data[:place] + insert + data[place + 1 :]
    try:
        found = read(FrameReader(LIMIT), data)
    except errors.MessageError:
        return
    for frame in found:
        if isinstance(frame, BadFrame):
            refusal(frame.sequence, frame.error).SerializeToString()


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_hello(data: bytes) -> None:
    with pytest.raises((errors.MessageError, errors.MismatchError)):
        check_hello(parse(pb.DeviceMessage, data), DIGEST)


def test_bytes_that_are_no_message() -> None:
    with pytest.raises(errors.MessageError) as caught:
        parse(pb.DeviceMessage, b"\xff\xff\xff")
    assert str(caught.value) == "3 bytes that are not an offramp.v1.DeviceMessage message"


# ---- hello -------------------------------------------------------------------------------------------


def test_hello_is_accepted() -> None:
    check_hello(parse(pb.DeviceMessage, hello(DIGEST)), DIGEST)


def greeting(
    *, version: int = PROTOCOL_VERSION, digest: bytes = DIGEST, segment: str = "tail"
) -> pb.DeviceMessage:
    return pb.DeviceMessage(hello=pb.Hello(protocol_version=version, bundle_digest=digest, segment=segment))


def test_a_hello_may_ask_for_a_part_between_where_the_server_runs_that() -> None:
    asked = parse(pb.DeviceMessage, hello(DIGEST, segment=segment_of(2, 3)))

    check_hello(asked, DIGEST, segments={DIGEST: ["part 2", "tail"]})
    with pytest.raises(
        errors.MismatchError, match=r"^the device asks for segment 'part 2', expected 'tail'$"
    ):
        check_hello(asked, DIGEST)
    with pytest.raises(
        errors.MismatchError, match=r"^the device asks for segment 'tail', expected 'part 2'$"
    ):
        check_hello(greeting(), DIGEST, segments={DIGEST: ["part 2"]})
    with pytest.raises(
        errors.MismatchError, match=r"^the device asks for segment 'part', expected 'part 2' or 'tail'$"
    ):
        check_hello(greeting(segment="part"), DIGEST, segments={DIGEST: ["part 2", "tail"]})
    assert [segment_of(part, 3) for part in (2, 3)] == ["part 2", "tail"]


def test_a_frame_may_have_less_time_than_its_hello_says() -> None:
    frames = [Frame(1, 0, b"one", deadline_ms=70), Frame(2, 0, b"two")]
    message = parse(pb.DeviceMessage, FrameWriter().pack(frames))

    assert FrameReader(LIMIT).read(message) == frames
    assert not parse(pb.DeviceMessage, FrameWriter().pack([Frame(1, 0, b"one")])).deadlines_ms
    del message.deadlines_ms[1:]
    with pytest.raises(errors.MessageError, match=r"^a message with 1 deadlines for 2 frames$"):
        FrameReader(LIMIT).read(message)


FOREIGN = {
    "version": (
        greeting(version=2),
        errors.MismatchError,
        "the device speaks protocol version 2, the server 1",
    ),
    "digest": (
        greeting(digest=bytes(32)),
        errors.MismatchError,
        f"the device runs bundle {'00' * 32}, the server {DIGEST.hex()}",
    ),
    "digest-size": (
        greeting(digest=bytes(1 << 10)),
        errors.MessageError,
        "a bundle digest of 1024 bytes, expected 32",
    ),
    "segment": (
        greeting(segment="a\nb" + "x" * 100),
        errors.MismatchError,
        f"the device asks for segment 'a\\nb{'x' * 61}', expected 'tail'",
    ),
    "frames-first": (
        pb.DeviceMessage(frames=[b"x"]),
        errors.MessageError,
        "the first message of a stream is not a hello, expected one alone",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_refuses_a_foreign_hello(name: str) -> None:
    message, error, expected = FOREIGN[name]
    with pytest.raises(errors.PeerError) as caught:
        check_hello(message, DIGEST)
    assert type(caught.value) is error
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    "extra",
    [
        pb.DeviceMessage(frames=[b"x"]),
        pb.DeviceMessage(first_sequence=1),
        pb.DeviceMessage(codecs=[pb.CODEC_RAW]),
    ],
    ids=["frames", "sequence", "codecs"],
)
def test_refuses_a_hello_that_is_not_alone(extra: pb.DeviceMessage) -> None:
    message = greeting()
    message.MergeFrom(extra)
    with pytest.raises(errors.MessageError, match="expected one alone"):
        check_hello(message, DIGEST)


# ---- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.ChecksumError("m"), "checksum"),
        (errors.SequenceError("m"), "sequence"),
        (errors.CodecError("m"), "codec"),
        (errors.PayloadError("m"), "payload"),
        (errors.OverloadError("m"), "overloaded"),
    ],
)
def test_a_refusal_names_the_reason(error: Exception, reason: str) -> None:
    reply = refusal(5, error)

    assert (reply.sequence, reason_name(reply.error.reason), reply.error.message) == (5, reason, "m")


def test_a_refusal_for_a_bug_tells_its_type_only() -> None:
    reply = refusal(5, KeyError("/etc/secret"))

    assert reason_name(reply.error.reason) == "internal"
    assert reply.error.message == "internal error (KeyError)"


def test_a_reason_from_a_newer_server_is_unknown() -> None:
    assert reason_name(99) == "unknown"
