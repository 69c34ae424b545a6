"""Datagrams: their overhead to the byte, and what damage, strangers and other bundles get."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.common.codec.activation import CodecId
from offramp.common.errors import (
    AccessError,
    ChecksumError,
    CodecError,
    ConfigError,
    MessageError,
    MismatchError,
    PayloadError,
    PeerError,
)
from offramp.common.wire.datagram import (
    MOST_BYTES,
    Datagrams,
    Kind,
    Reply,
    ReplyError,
    error_name,
    kind_of,
    read_head,
    reply_sequence,
)
from offramp.common.wire.frame import reason_name
from offramp.common.wire.seal import DeviceKey

DIGEST = bytes(range(32))
OTHER = DIGEST[:31] + b"\xff"
KEY, WRONG = DeviceKey(bytes(16)), DeviceKey(bytes(15) + b"\1")
OURS = Datagrams(DIGEST, 10, 3)

payloads = st.binary(min_size=1, max_size=200)


@pytest.mark.parametrize("size", [1, 35, 43, 200])
def test_overhead(size: int) -> None:
    plain = OURS.request(1, CodecId.BUNDLE, bytes(size))
    sealed = OURS.request(1, CodecId.BUNDLE, bytes(size), 7, KEY)

    assert len(plain) - size == 8
    assert len(sealed) - size == 17 <= 8 + 12


@pytest.mark.parametrize(
    ("classes", "reply", "plain"),
    [
        (10, Reply(1, 9, 1.0), 8),
        (256, Reply(1, 255, 0.5), 8),
        (257, Reply(1, 256, 0.5), 9),
        (10, Reply(1, 3, 0.5, part=2), 9),
        (10, Reply(1, 3, 0.5, part=3), 8),
        (10, Reply(1, error=ReplyError.PAYLOAD), 7),
    ],
)
def test_replies_are_small(classes: int, reply: Reply, plain: int) -> None:
    datagrams = Datagrams(DIGEST, classes, 3)
    assert len(datagrams.reply(reply)) == plain
    assert len(datagrams.reply(reply, 7, KEY)) == plain + 7


@settings(max_examples=60)
@given(payloads, st.integers(0, 65_535), st.sampled_from(CodecId), st.booleans())
def test_what_goes_in_comes_out(payload: bytes, sequence: int, codec: CodecId, sealed: bool) -> None:
    key, device = (KEY, 513) if sealed else (None, None)
    data = OURS.request(sequence, codec, payload, device, key)
    read = OURS.read_request(data, key)
    assert (read.sequence, read.codec, read.payload, read.device) == (sequence, codec, payload, device)
    assert read_head(data).device == device


def test_a_sealed_payload_does_not_show() -> None:
    assert b"secret words" not in OURS.request(1, 0, b"secret words", 7, KEY)
    replies = {OURS.reply(Reply(1, 3, 0.5), 7, KEY, bytes([salt, 0])) for salt in range(8)}
    assert len({reply[5:] for reply in replies}) == 8


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_every_flipped_bit_is_found(key: DeviceKey | None) -> None:
    """Of request and reply: one error, never another value."""
    device = None if key is None else 7
    request = OURS.request(300, 0, b"payload", device, key)
    reply = OURS.reply(Reply(300, 3, 0.5), device, key)
    for data, read in (
        (request, lambda data: OURS.read_request(data, key)),
        (reply, lambda data: OURS.read_reply(data, 300, device, key)),
    ):
        read(data)
        for bit in range(8 * len(data)):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(PeerError):
                read(bytes(damaged))


def test_another_bundle_with_the_same_first_bytes_is_found() -> None:
    theirs = Datagrams(OTHER, 10)
    assert theirs.short_digest == OURS.short_digest
    with pytest.raises(ChecksumError):
        OURS.read_request(theirs.request(1, 0, b"payload"))
    with pytest.raises(AccessError):
        OURS.read_request(theirs.request(1, 0, b"payload", 7, KEY), KEY)
    with pytest.raises(ChecksumError):
        OURS.read_reply(theirs.reply(Reply(1, 3, 0.5)))


def test_a_forgery_is_found() -> None:
    """With another key, as another device, under another number, and as a reply of another request."""
    good = OURS.request(5, 0, b"payload", 7, KEY)
    with pytest.raises(AccessError, match="did not seal"):
        OURS.read_request(OURS.request(5, 0, b"payload", 7, WRONG), KEY)
    for place in (3, 5):
        moved = bytearray(good)
        moved[place] += 1
        with pytest.raises(AccessError):
            OURS.read_request(bytes(moved), KEY)
    reply = OURS.reply(Reply(5, 3, 0.5), 7, KEY)
    assert OURS.read_reply(reply, 5, 7, KEY).class_index == 3
    for sequence, device in ((5 + 65_536, 7), (5, 8)):
        with pytest.raises(AccessError):
            OURS.read_reply(reply, sequence, device, KEY)
    with pytest.raises(MessageError, match="without authentication, expected the other"):
        OURS.read_reply(OURS.reply(Reply(5, 3, 0.5)), 5, 7, KEY)


def test_each_malformed_datagram_has_its_error() -> None:
    good = OURS.request(1, 0, b"payload")
    cases: list[tuple[bytes, type[PeerError], str]] = [
        (b"", MessageError, "a datagram of 0 bytes"),
        (bytes(MOST_BYTES + 1), MessageError, "65508 bytes"),
        (b"\x00" + good[1:], MismatchError, "of version 0, expected 1"),
        (b"\x2c" + good[1:], MessageError, "of kind 3, expected 0 … 2"),
        (b"\x24" + good[1:], MessageError, "that is a reply, expected a request"),
        (good[:8], PayloadError, "a request of 8 bytes, expected over 8"),
        (OURS.request(1, 0, b"x", 7, KEY)[:17], PayloadError, "of 17 bytes, expected over 17"),
        (good[:1] + b"\xaa\xaa" + good[3:], MismatchError, "for bundle aaaa…, expected 000102"),
        (b"\x23" + good[1:], CodecError, "codec 3 in request 1, expected 0 … 2"),
        (good[:-1], ChecksumError, "checksum"),
        (OURS.request(1, 0, b"x", 7, KEY), MessageError, "expected one without a key"),
    ]
    for data, kind, words in cases:
        with pytest.raises(kind, match=words):
            OURS.read_request(data)


def test_each_malformed_reply_has_its_error() -> None:
    def sealed(body: bytes) -> bytes:
        return body + OURS._crc(body)

    cases: list[tuple[bytes, str]] = [
        (b"\x24\x00", "a reply of 2 bytes"),
        (b"\x24\x00\x00", "a datagram of 3 bytes, expected at least 6"),
        (b"\x34\x00\x00\x00", "with authentication, expected the other"),
        (sealed(b"\x27\0\0\1"), "of form 3, expected 0 … 2"),
        (sealed(b"\x24\0\0\1"), "with 1 bytes of answer, expected 2"),
        (sealed(b"\x24\0\0\x0a\x01"), "with class 10, expected one below 10"),
        (sealed(b"\x25\0\0\1\1\4"), "of part 4, expected 1 … 3"),
        (sealed(b"\x25\0\0\1\1\x80"), "of part 0"),
        (sealed(b"\x26\0\0\0"), "error 0, expected 1 … 255"),
    ]
    for data, words in cases:
        with pytest.raises(MessageError, match=words):
            OURS.read_reply(data)
    with pytest.raises(MessageError, match="of 12 bytes, expected at least 13"):
        OURS.read_reply(b"\x34" + bytes(11), 0, 7, KEY)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
@settings(max_examples=400)
@given(st.binary(max_size=80), st.sampled_from([b"", b"\x20\0\1", b"\x30\0\1", b"\x24", b"\x34", b"\x28"]))
def test_hostile_bytes_get_one_error(key: DeviceKey | None, data: bytes, first: bytes) -> None:
    for read in (
        lambda: kind_of(first + data),
        lambda: read_head(first + data),
        lambda: reply_sequence(first + data),
        lambda: OURS.read_request(first + data, key),
        lambda: OURS.read_reply(first + data, 1, 7, key),
    ):
        try:
            read()
        except PeerError as error:
            assert (
                ("\n" not in str(error) and "expected" in str(error))
                or "checksum" in str(error)
                or "seal" in str(error)
            )


def test_what_no_datagram_can_say() -> None:
    for arguments, words in (
        ((65_536, 0, b"x"), "sequence number 65536, expected 0 … 65535"),
        ((1 << 32, 0, b"x", 1, KEY), "sequence number 4294967296"),
        ((1, 0, b"x", 65_536, KEY), "device 65536"),
        ((1, 0, b"x", None, KEY), "without its device's number"),
        ((1, 3, b"x"), "codec 3"),
        ((1, 0, b""), "with 0 bytes"),
        ((1, 1, bytes(65_500)), "65508 bytes, expected at most 65507"),
    ):
        with pytest.raises(ConfigError, match=words):
            OURS.request(*arguments)
    for reply, words in (
        (Reply(1, 10, 0.5), "class 10"),
        (Reply(1, 1, 1.5), "confidence of 1.5"),
        (Reply(1, error=256), "error 256"),
        (Reply(1, 1, 0.5, part=128), "part 128"),
    ):
        with pytest.raises(ConfigError, match=words):
            OURS.reply(reply)
    with pytest.raises(ConfigError, match="digest of 3 bytes"):
        Datagrams(b"abc", 10)


def test_errors_below_16_are_those_of_the_stream() -> None:
    for error in ReplyError:
        if error < 16:
            assert error_name(error) == reason_name(error)
    assert error_name(77) == "unknown"
    assert kind_of(OURS.request(1, 0, b"x")) is Kind.REQUEST
