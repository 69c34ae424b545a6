"""The state of asymmetric numeral systems (Duda, 2013) as bytes: what rANS with any model of symbols writes.

A coder is a 32-bit state and 16-bit little-endian words, in the order in which they are read. It starts with
its state, big-endian and without leading zeros: 3 bytes if its length is odd, 4 if it is even, all of it if
that is no more than 4. The encoder starts from state 1, not from the interval's lower bound: words are only
written once the state has grown into the interval, so that a lane costs its information and the byte it is
rounded up to. The decoder, in reverse, reads no more words once the lane is used up, and must end in state 1.
"""

from __future__ import annotations

from offramp.common.errors import PayloadError

LOWER = 1 << 16


class StateWriter:
    """Codes steps last to first."""

    def __init__(self) -> None:
        self._state, self._words = 1, bytearray()

    def put(self, frequency: int, start: int, bits: int) -> None:
        """The step before all that were put: so many slots of 2^bits, at most 2^16, and the first one."""
        if self._state >> 16 >= frequency << 16 - bits:
            # Big-endian, as the words are turned round at last.
            self._words += (self._state & 0xFFFF).to_bytes(2, "big")
            self._state >>= 16
        self._state = (self._state // frequency << bits) + self._state % frequency + start

    def to_bytes(self) -> bytes:
        """The lane."""
        size = (self._state.bit_length() + 7) // 8
        return self._state.to_bytes(size, "big") + bytes(reversed(self._words))


class StateReader:
    """Reads what a writer wrote. Raises PayloadError for what no writer writes."""

    def __init__(self, lane: bytes) -> None:
        if not lane:
            raise PayloadError("a lane of the payload is empty")
        size = len(lane) if len(lane) <= 4 else 4 - len(lane) % 2
        self._at = 0
        self._state = int.from_bytes(lane[:size], "big")
        self._words = lane[size:]
        if not lane[0] or (len(lane) > 4 and self._state < LOWER):
            raise PayloadError("a lane of the payload starts with a state that no encoder writes")

    def slot(self, bits: int) -> int:
        """Which of 2^bits slots the next step is in."""
        return self._state & (1 << bits) - 1

    def advance(self, frequency: int, offset: int, bits: int) -> None:
        """Go past a step of so many slots of 2^bits, which was in the one ``offset`` behind the first."""
        self._state = frequency * (self._state >> bits) + offset
        if self._state < LOWER and self._at < len(self._words):
            word = int.from_bytes(self._words[self._at : self._at + 2], "little")
            self._state = self._state << 16 | word
            self._at += 2
            if self._state < LOWER:
                raise PayloadError("the payload has a word that no encoder writes")

    def finish(self) -> None:
        """Call it after the last step."""
        if self._at < len(self._words):
            raise PayloadError(f"a lane of the payload has {len(self._words) - self._at} bytes left over")
        if self._state != 1:
            raise PayloadError("a lane of the payload ends in a state that no encoder starts from")
