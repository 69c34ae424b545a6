"""What carries datagrams to a gateway and its replies back: UDP (``udp.py``) or a broker (``mqtt.py``)."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Protocol

from offramp.link.wire_bytes import WireBytes

Received = Callable[[bytes, bytes | None], None]
"""Called, on any thread, with a reply and what it says of its request; None where the carrier cannot say."""


class Carrier(Protocol):
    """One way to a gateway. It loses, doubles and reorders what it likes."""

    target: str
    """What messages call it."""
    tries: int
    """How often one request is worth sending within its time."""

    def open(self, received: Received, seconds: float) -> None:
        """Start, within so many seconds. Raises OfframpError; it may be called again then."""

    def send(self, datagram: bytes, seconds: float) -> str | None:
        """Send one request, of no more use after so many seconds; why it cannot be, or None."""

    def envelope(self, datagram: bytes) -> int:
        """Bytes that the carrier's own protocol puts around this request."""

    def total(self) -> WireBytes | None:
        """What it has sent and received so far; None where it is unknown."""

    def close(self) -> None:
        """Stop; nothing is received any more."""


def correlation_of(datagram: bytes) -> bytes:
    """What a reply by a broker has to show: CRC-32 of its request, so that none of another run fits."""
    return zlib.crc32(datagram).to_bytes(4, "little")
