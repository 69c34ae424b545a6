"""Datagrams: one unsure image or its answer, in one packet that needs no connection. Pure functions.

Invariants (docs/reference/wire-format.md has the layout, byte by byte):
- A datagram says by itself which bundle it is for, in the first two bytes of its digest. Its checksum, or its
  authentication, covers the whole digest: of two bundles that begin alike, the wrong one never decodes it.
- Without a key it ends with a CRC-24 and finds errors of a link, not forgeries. With one it is AES-CCM
  (``seal.py``): payload and answer are hidden, and nobody without the key makes one that is taken.
- A payload's length is the datagram's less its overhead: no length field can be wrong.
- Reading ends with a value or one ``PeerError``, and takes no more than ``MOST_BYTES``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Protocol

from offramp.common.codec.activation import CodecId
from offramp.common.errors import (
    ChecksumError,
    CodecError,
    ConfigError,
    MessageError,
    MismatchError,
    PayloadError,
)

VERSION = 1
MOST_BYTES = 65_507
"""Of one datagram: what UDP carries at most."""
DIGEST_BYTES = 32
SHORT_DIGEST_BYTES = 2
CHECKSUM_BYTES = 3
TAG_BYTES = 8
OVERHEAD = 1 + SHORT_DIGEST_BYTES + 2 + CHECKSUM_BYTES
"""Bytes of a request beside its payload, without a key."""
SEALED_OVERHEAD = 1 + SHORT_DIGEST_BYTES + 2 + 4 + TAG_BYTES
"""The same with one: device and a longer sequence number, and the tag in place of the checksum."""
SEQUENCES = 1 << 16
SEALED_SEQUENCES = 1 << 32
DEVICES = 1 << 16
MOST_PART = 127

_CRC_START, _CRC_POLYNOMIAL = 0xB704CE, 0x864CFB
_CONFIDENCE = 255
_SHORT_CLASSES = 256
_FALLBACK = 0x80


class Kind(IntEnum):
    """What a datagram is: bits 3 and 2 of its first byte."""

    REQUEST = 0
    REPLY = 1
    FRAGMENT = 2
    """A piece of a request that is longer than the link takes (``fragments.py``)."""


class Form(IntEnum):
    """What a reply says: bits 1 and 0 of its first byte."""

    ANSWER = 0
    """Class and confidence, of the bundle's last part."""
    PART = 1
    """Class, confidence, and who answered."""
    ERROR = 2


class ReplyError(IntEnum):
    """Why there is no answer: below 16 the reasons of the stream (``offramp.v1.FrameError.Reason``)."""

    CHECKSUM = 1
    SEQUENCE = 2
    CODEC = 3
    PAYLOAD = 4
    OVERLOADED = 5
    INTERNAL = 6
    EXPIRED = 7
    UNAVAILABLE = 16
    """The gateway reached no server in time."""


class Seal(Protocol):
    """A device's key, as ``seal.DeviceKey`` has it. nonce: 13 bytes; data: authenticated, not hidden."""

    def close(self, nonce: bytes, plain: bytes, data: bytes) -> bytes:
        """The hidden bytes, as many as the plain ones, and then the tag."""

    def open(self, nonce: bytes, sealed: bytes, data: bytes) -> bytes:
        """The plain bytes. Raises AccessError for what this key did not seal."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a request shows before it is checked: whose key and which bundle it needs."""

    short_digest: bytes
    """The first two bytes of the bundle's digest."""
    sequence: int
    codec: int
    device: int | None
    """The device's number; None where the datagram has no authentication."""


@dataclass(frozen=True, slots=True)
class Request:
    """One coded activation."""

    sequence: int
    codec: CodecId
    payload: bytes
    device: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server says of one request."""

    sequence: int
    """The request's; the lower 16 bits of it where it is authenticated."""
    class_index: int = 0
    confidence: float = 0.0
    """0 … 1, in steps of 1/255."""
    part: int = 0
    """Number of the part whose exit answered, from 1; 0: the bundle's last."""
    fallback: bool = False
    """That part was unsure, and answered because the one behind it did not."""
    error: int = 0
    """A ``ReplyError``, or a number that this release does not know; 0: there is an answer."""


def crc24(data: bytes, start: int = _CRC_START) -> int:
    """CRC-24 of RFC 9580 (OpenPGP), from this start value."""
    table, crc = _crc_table(), start
    for byte in data:
        crc = (crc << 8 & 0xFFFFFF) ^ table[crc >> 16 ^ byte]
    return crc


@cache
def _crc_table() -> list[int]:
    table = []
    for first in range(256):
        crc = first << 16
        for _ in range(8):
            crc = crc << 1 ^ (_CRC_POLYNOMIAL if crc & 0x800000 else 0)
        table.append(crc & 0xFFFFFF)
    return table


def error_name(error: int) -> str:
    """A reply's error as logs and metric labels name it: ``payload``, …; ``unknown`` else."""
    return ReplyError(error).name.lower() if error in set(ReplyError) else "unknown"


def kind_of(data: bytes) -> Kind:
    """What a datagram is. Raises MessageError or MismatchError."""
    if not data or len(data) > MOST_BYTES:
        raise MessageError(f"a datagram of {len(data)} bytes, expected 1 … {MOST_BYTES}")
    version, kind = data[0] >> 5, data[0] >> 2 & 3
    if version != VERSION:
        raise MismatchError(f"a datagram of version {version}, expected {VERSION}")
    if kind > max(Kind):
        raise MessageError(f"a datagram of kind {kind}, expected 0 … {max(Kind)}")
    return Kind(kind)


def read_head(data: bytes) -> Head:
    """What a request shows before it is checked. Raises MessageError, MismatchError or PayloadError."""
    _expect(Kind.REQUEST, data)
    sealed = is_sealed(data)
    overhead = SEALED_OVERHEAD if sealed else OVERHEAD
    if len(data) <= overhead:
        raise PayloadError(f"a request of {len(data)} bytes, expected over {overhead}")
    device = int.from_bytes(data[3:5], "little") if sealed else None
    sequence = int.from_bytes(data[5:9] if sealed else data[3:5], "little")
    return Head(data[1:3], sequence, data[0] & 3, device)


def is_sealed(data: bytes) -> bool:
    """Whether a datagram, at least a byte of it, is authenticated."""
    return bool(data[0] & 0x10)


def reply_sequence(data: bytes) -> int:
    """Which request a reply answers, the lower 16 bits, before it is checked. Raises as ``read_reply``."""
    _expect(Kind.REPLY, data)
    if len(data) < 3:
        raise MessageError(f"a reply of {len(data)} bytes, expected at least 3")
    return int.from_bytes(data[1:3], "little")


class Datagrams:
    """Writes and reads the datagrams of one bundle.

    digest: SHA-256 of its manifest. classes: how many it has. parts: how many, of which the last answers
    where a reply does not say another.
    """

    def __init__(self, digest: bytes, classes: int, parts: int = 2) -> None:
        if len(digest) != DIGEST_BYTES:
            raise ConfigError(f"a bundle digest of {len(digest)} bytes, expected {DIGEST_BYTES}")
        self._digest = digest
        self._classes = classes
        self._parts = parts
        self._class_bytes = 1 if classes <= _SHORT_CLASSES else 2
        self._start = crc24(digest)

    @property
    def short_digest(self) -> bytes:
        """The first two bytes of the digest, as requests have them."""
        return self._digest[:SHORT_DIGEST_BYTES]

    # --- requests ---

    def request(
        self, sequence: int, codec: int, payload: bytes, device: int | None = None, key: Seal | None = None
    ) -> bytes:
        """One request. device and key: both, or none.

        sequence: below 65,536, or 2^32 with a key, which must never see one number with two payloads. Raises
        ConfigError for what no datagram can say.
        """
        if not 0 <= codec <= CodecId.PICTURE or not payload:
            raise ConfigError(
                f"codec {codec} with {len(payload)} bytes, expected a codec of 0 … 2 and a payload"
            )
        first = bytes([VERSION << 5 | (key is not None) << 4 | Kind.REQUEST << 2 | codec]) + self.short_digest
        if key is None:
            _check_range("sequence number", sequence, SEQUENCES)
            data = first + sequence.to_bytes(2, "little") + payload
            data += self._crc(data)
        else:
            _check_range("sequence number", sequence, SEALED_SEQUENCES)
            number = _device(device)
            clear = first + number.to_bytes(2, "little") + sequence.to_bytes(4, "little")
            data = clear + key.close(_nonce(0, number, sequence), payload, self._digest + clear)
        if len(data) > MOST_BYTES:
            raise ConfigError(f"a datagram of {len(data)} bytes, expected at most {MOST_BYTES}")
        return data

    def read_request(self, data: bytes, key: Seal | None = None) -> Request:
        """One request. key: its device's, where it is authenticated.

        Raises MessageError, MismatchError, PayloadError, CodecError, ChecksumError, or AccessError for one
        that the key did not seal.
        """
        head = read_head(data)
        if head.short_digest != self.short_digest:
            raise MismatchError(
                f"a request for bundle {head.short_digest.hex()}…, expected {self._digest.hex()}"
            )
        if head.codec > CodecId.PICTURE:
            raise CodecError(f"codec {head.codec} in request {head.sequence}, expected 0 … {CodecId.PICTURE}")
        if head.device is None:
            payload = self._check(data)[5:]
        else:
            if key is None:
                raise MessageError("an authenticated request, expected one without a key")
            nonce = _nonce(0, head.device, head.sequence)
            payload = key.open(nonce, data[9:], self._digest + data[:9])
        return Request(head.sequence, CodecId(head.codec), payload, head.device)

    # --- replies ---

    def reply(
        self, reply: Reply, device: int | None = None, key: Seal | None = None, salt: bytes = b"\0\0"
    ) -> bytes:
        """One reply. device, key: those of an authenticated request, whose whole sequence number is given.

        salt: two random bytes: one request may get two replies, an error and later an answer. Raises
        ConfigError for what no datagram can say.
        """
        form, fields = self._fields(reply)
        first = bytes([VERSION << 5 | (key is not None) << 4 | Kind.REPLY << 2 | form])
        low = (reply.sequence % SEQUENCES).to_bytes(2, "little")
        if key is None:
            _check_range("sequence number", reply.sequence, SEQUENCES)
            data = first + low + fields
            return data + self._crc(data)
        _check_range("sequence number", reply.sequence, SEALED_SEQUENCES)
        clear = first + low + salt
        nonce = _nonce(1, _device(device), reply.sequence, salt)
        return clear + key.close(nonce, fields, self._digest + clear)

    def read_reply(
        self, data: bytes, sequence: int = 0, device: int | None = None, key: Seal | None = None
    ) -> Reply:
        """One reply. With a key: sequence is the whole number of the request, device the one that sent it.

        Raises MessageError, MismatchError, ChecksumError, or AccessError for one that the key did not seal.
        """
        low = reply_sequence(data)
        if is_sealed(data) != (key is not None):
            raise MessageError(
                f"a reply {'with' if key is None else 'without'} authentication, expected the other"
            )
        if key is None:
            fields = self._check(data)[3:]
        else:
            if len(data) < 5 + TAG_BYTES:
                raise MessageError(f"a reply of {len(data)} bytes, expected at least {5 + TAG_BYTES}")
            nonce = _nonce(1, _device(device), sequence, data[3:5])
            fields = key.open(nonce, data[5:], self._digest + data[:5])
        return self._read_fields(low, data[0] & 3, fields)

    def _fields(self, reply: Reply) -> tuple[Form, bytes]:
        if reply.error:
            _check_range("error", reply.error, 256)
            return Form.ERROR, bytes([reply.error])
        _check_range("class", reply.class_index, self._classes)
        if not 0 <= reply.confidence <= 1:
            raise ConfigError(f"a confidence of {reply.confidence}, expected 0 … 1")
        level = math.floor(reply.confidence * _CONFIDENCE + 0.5)
        said = reply.class_index.to_bytes(self._class_bytes, "little") + bytes([level])
        if not reply.fallback and reply.part in (0, self._parts):
            return Form.ANSWER, said
        part = reply.part or self._parts
        _check_range("part", part, MOST_PART + 1)
        return Form.PART, said + bytes([part | (_FALLBACK if reply.fallback else 0)])

    def _read_fields(self, sequence: int, form: int, fields: bytes) -> Reply:
        expected = {Form.ANSWER: self._class_bytes + 1, Form.PART: self._class_bytes + 2, Form.ERROR: 1}.get(
            Form(form) if form <= max(Form) else Form.ERROR
        )
        if form > max(Form):
            raise MessageError(f"a reply of form {form}, expected 0 … {max(Form)}")
        if len(fields) != expected:
            raise MessageError(f"a reply with {len(fields)} bytes of answer, expected {expected}")
        if form == Form.ERROR:
            if not fields[0]:
                raise MessageError("a reply with error 0, expected 1 … 255")
            return Reply(sequence, error=fields[0])
        index = int.from_bytes(fields[: self._class_bytes], "little")
        if index >= self._classes:
            raise MessageError(f"a reply with class {index}, expected one below {self._classes}")
        confidence = fields[self._class_bytes] / _CONFIDENCE
        who = fields[-1] if form == Form.PART else 0
        part = who & ~_FALLBACK
        if form == Form.PART and not 0 < part <= self._parts:
            raise MessageError(f"a reply of part {part}, expected 1 … {self._parts}")
        return Reply(sequence, index, confidence, part, bool(who & _FALLBACK))

    # --- the checksum ---

    def _crc(self, data: bytes) -> bytes:
        return crc24(data, self._start).to_bytes(CHECKSUM_BYTES, "big")

    def _check(self, data: bytes) -> bytes:
        """A datagram without its checksum. Raises ChecksumError, or MessageError if it is too short."""
        if len(data) < 3 + CHECKSUM_BYTES:
            raise MessageError(f"a datagram of {len(data)} bytes, expected at least {3 + CHECKSUM_BYTES}")
        body, found = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
        computed = self._crc(body)
        if found != computed:
            raise ChecksumError(f"checksum {found.hex()} in a datagram, computed {computed.hex()}")
        return body


def _nonce(direction: int, device: int, sequence: int, salt: bytes = b"\0\0") -> bytes:
    return (
        bytes([direction]) + device.to_bytes(2, "little") + sequence.to_bytes(4, "little") + salt + bytes(4)
    )


def _device(device: int | None) -> int:
    if device is None:
        raise ConfigError(f"a key without its device's number, expected one of 0 … {DEVICES - 1}")
    _check_range("device", device, DEVICES)
    return device


def _check_range(what: str, value: int, end: int) -> None:
    if not 0 <= value < end:
        raise ConfigError(f"{what} {value}, expected 0 … {end - 1}")


def _expect(kind: Kind, data: bytes) -> None:
    found = kind_of(data)
    if found is not kind:
        raise MessageError(f"a datagram that is a {found.name.lower()}, expected a {kind.name.lower()}")
