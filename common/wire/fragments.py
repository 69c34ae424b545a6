"""Requests longer than a link's packets, in pieces; pure functions of bytes, and of a clock that comes in.

A piece has three bytes and a part of the datagram: the first byte of its kind, an id, its number with the top
bit set in the last one. All pieces but the last have the same length. A piece has no checksum: that of the
whole finds a wrong one. What waits for its missing pieces is bounded in number, bytes and time.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from offramp.common.errors import ConfigError, MessageError
from offramp.common.wire.datagram import MOST_BYTES, VERSION, Kind, is_sealed, kind_of

PIECE_OVERHEAD = 3
MOST_PIECES = 128
_LAST = 0x80
_FIRST_BYTE = VERSION << 5 | Kind.FRAGMENT << 2


def fragment(datagram: bytes, size: int, number: int | None = None) -> list[bytes]:
    """A datagram as packets of at most so many bytes: itself if it fits, else its pieces.

    number: what tells its pieces from others'; None: the lowest byte of its sequence number. Raises
    ConfigError if 128 pieces do not hold it.
    """
    if len(datagram) <= size:
        return [datagram]
    step = size - PIECE_OVERHEAD
    count = -(-len(datagram) // step) if step > 0 else MOST_PIECES + 1
    if count > MOST_PIECES:
        raise ConfigError(
            f"a datagram of {len(datagram)} bytes for packets of {size}, expected at most "
            f"{MOST_PIECES} pieces of {max(step, 0)} bytes"
        )
    if number is None:
        number = datagram[5 if is_sealed(datagram) else 3]
    pieces = []
    for index in range(count):
        last = _LAST if index == count - 1 else 0
        part = datagram[index * step : (index + 1) * step]
        pieces.append(bytes([_FIRST_BYTE, number & 0xFF, index | last]) + part)
    return pieces


@dataclass(slots=True)
class _Open:
    """One datagram whose pieces are still coming."""

    since: float
    step: int = 0
    """Length of all pieces but the last, once one of them is here."""
    count: int = 0
    """Number of pieces, once the last one is here."""
    size: int = 0
    pieces: dict[int, bytes] = field(default_factory=dict)


class Assembler:
    """Puts pieces together again, of many senders.

    seconds: how long a datagram waits for its missing pieces. most: how many of them wait, and how many bytes
    of all; beyond that the oldest is given up.
    """

    def __init__(self, seconds: float = 60.0, most: int = 1024, most_bytes: int = 4 << 20) -> None:
        self._seconds = seconds
        self._most = most
        self._most_bytes = most_bytes
        self._open: dict[tuple[Hashable, int], _Open] = {}
        self._bytes = 0
        self.given_up = 0
        """Datagrams so far whose pieces did not all come."""

    @property
    def waiting_bytes(self) -> int:
        """What incomplete datagrams take."""
        return self._bytes

    def add(self, sender: Hashable, data: bytes, now: float) -> bytes | None:
        """One piece; the whole datagram with the last of them, else None. Raises MessageError.

        sender: who sent it, as the link says; now: seconds.
        """
        if kind_of(data) is not Kind.FRAGMENT or data[0] != _FIRST_BYTE:
            raise MessageError(
                f"a datagram that begins with {data[0]:02x}, expected a fragment's {_FIRST_BYTE:02x}"
            )
        if len(data) <= PIECE_OVERHEAD:
            raise MessageError(f"a fragment of {len(data)} bytes, expected over {PIECE_OVERHEAD}")
        self.expire(now)
        key, index, last = (sender, data[1]), data[2] & ~_LAST, bool(data[2] & _LAST)
        piece = data[PIECE_OVERHEAD:]
        waiting = self._open.get(key)
        if waiting is not None and waiting.pieces.get(index) == piece:
            return None  # the link doubled it
        if waiting is not None and not _fits(waiting, index, last, len(piece)):
            self._give_up(key)  # the next datagram under this id
            waiting = None
        if waiting is None:
            waiting = self._open[key] = _Open(now)
        waiting.pieces[index] = piece
        waiting.size += len(piece)
        self._bytes += len(piece)
        if last:
            waiting.count = index + 1
        else:
            waiting.step = len(piece)
        if waiting.size > MOST_BYTES:
            self._give_up(key)
            raise MessageError(f"fragments of over {MOST_BYTES} bytes, expected at most that")
        if len(waiting.pieces) == waiting.count:
            self._drop(key)
            return b"".join(waiting.pieces[number] for number in range(waiting.count))
        while len(self._open) > self._most or self._bytes > self._most_bytes:
            self._give_up(next(iter(self._open)))
        return None

    def expire(self, now: float) -> None:
        """Give up what has waited too long."""
        while self._open:
            key, oldest = next(iter(self._open.items()))
            if now - oldest.since <= self._seconds:
                return
            self._give_up(key)

    def _give_up(self, key: tuple[Hashable, int]) -> None:
        self._drop(key)
        self.given_up += 1

    def _drop(self, key: tuple[Hashable, int]) -> None:
        self._bytes -= self._open.pop(key).size


def _fits(waiting: _Open, index: int, last: bool, size: int) -> bool:
    """Whether a piece can be one of the datagram whose others are here."""
    if index in waiting.pieces:
        return False
    if last:
        return (
            not waiting.count and index > max(waiting.pieces) and (not waiting.step or size <= waiting.step)
        )
    if waiting.count and (index >= waiting.count or size < len(waiting.pieces[waiting.count - 1])):
        return False
    return not waiting.step or size == waiting.step
