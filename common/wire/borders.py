"""Where a datagram ends on a byte stream: COBS on a serial line, two bytes of length in a pipe. No I/O here.

COBS (Cheshire and Baker, 1999) writes a datagram without a zero byte, one byte longer for each 254, so that a
zero byte can end it: a receiver that comes late, or lost bytes, is right again with the next zero.
"""

from __future__ import annotations

from offramp.common.errors import ConfigError, MessageError
from offramp.common.wire.datagram import MOST_BYTES

_BLOCK = 254
_CODED_MOST = MOST_BYTES + MOST_BYTES // _BLOCK + 1
LENGTH_BYTES = 2
LENGTH_MOST = (1 << 16) - 1


def to_cobs(datagram: bytes) -> bytes:
    """A datagram for a serial line, with the zero byte behind it."""
    coded = bytearray()
    for run in datagram.split(b"\0"):
        while len(run) >= _BLOCK:
            coded += b"\xff" + run[:_BLOCK]
            run = run[_BLOCK:]
        coded += bytes([len(run) + 1]) + run
    return bytes(coded) + b"\0"


def from_cobs(coded: bytes) -> bytes:
    """What stands before a zero byte. Raises MessageError."""
    data = bytearray()
    place = 0
    while place < len(coded):
        code = coded[place]
        block = coded[place + 1 : place + code]
        if not code or len(block) != code - 1 or 0 in block:
            raise MessageError(f"{len(coded)} bytes of a serial line that are not COBS")
        data += block
        place += code
        if code <= _BLOCK and place < len(coded):
            data.append(0)
    return bytes(data)


def with_length(datagram: bytes) -> bytes:
    """A datagram for a pipe, with its length before it. Raises ConfigError."""
    if not 0 < len(datagram) <= LENGTH_MOST:
        raise ConfigError(f"a datagram of {len(datagram)} bytes, expected 1 … {LENGTH_MOST}")
    return len(datagram).to_bytes(LENGTH_BYTES, "little") + datagram


class CobsReader:
    """Takes a serial line's bytes as they come; what is between two zeros is one datagram."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._skips = False
        self.bad = 0
        """Pieces so far that were not COBS, or too long."""

    def feed(self, data: bytes) -> list[bytes]:
        """The datagrams that end in these bytes."""
        found = []
        *ended, rest = data.split(b"\0")
        for piece in ended:
            self._hold(piece)
            held, skipped = bytes(self._held), self._skips
            self._held.clear()
            self._skips = False
            if skipped:
                self.bad += 1
            elif held:
                try:
                    found.append(from_cobs(held))
                except MessageError:
                    self.bad += 1
        self._hold(rest)
        return found

    def _hold(self, piece: bytes) -> None:
        if len(self._held) + len(piece) > _CODED_MOST:
            self._skips = True
            self._held.clear()
        elif not self._skips:
            self._held += piece


class LengthReader:
    """Takes a pipe's bytes as they come: a length of two bytes, little-endian, and so many bytes."""

    def __init__(self) -> None:
        self._held = bytearray()
        self.error: MessageError | None = None
        """A length of 0: no way leads back to a datagram's beginning, and nothing more is read."""

    def feed(self, data: bytes) -> list[bytes]:
        """The datagrams that end in these bytes."""
        if self.error is not None:
            return []
        self._held += data
        found = []
        place = 0
        while len(self._held) - place >= LENGTH_BYTES:
            start = place + LENGTH_BYTES
            length = int.from_bytes(self._held[place:start], "little")
            if not length:
                self.error = MessageError(f"a length of 0 before a datagram, expected 1 … {LENGTH_MOST}")
                break
            if len(self._held) - start < length:
                break
            found.append(bytes(self._held[start : start + length]))
            place = start + length
        del self._held[:place]
        return found
