"""What a device asks of its link: of a stream (``link.py``), or of datagrams (``datagram_link.py``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from offramp.common.codec.activation import CodecId
from offramp.common.errors import OfframpError
from offramp.link.outcome import Answer, Cause, Outcome, Refusal
from offramp.link.wire_bytes import WireBytes


class ByteTotal(Protocol):
    """Counts what was sent and received."""

    def total(self) -> WireBytes | None:
        """So far; None where it is unknown."""


class Offloader(Protocol):
    """Gives each frame one outcome, within the timeout. ``Link`` says what the arguments are."""

    failure: OfframpError | None

    @property
    def wire(self) -> ByteTotal:
        """Its byte counts."""

    def offload(
        self,
        codec: CodecId,
        payload: bytes,
        done: Callable[[Outcome], None],
        *,
        late: Callable[[Answer], None] | None = None,
        background: bool = False,
        behind: bool = False,
        deadline: float | None = None,
        trace: bytes = b"",
    ) -> None:
        """One frame."""

    def wait_idle(self) -> None:
        """Wait until every frame has its outcome."""

    def late_replies_due(self) -> bool:
        """Whether a frame that has its outcome may still be answered."""

    def close(self, wait: bool = True) -> None:
        """Give outstanding frames their outcome, and end."""


class NoServer:
    """Where none is named: each frame is turned away at once. For devices that only encode and resolve."""

    failure: OfframpError | None = None

    @property
    def wire(self) -> ByteTotal:
        """Counts nothing."""
        return self

    def total(self) -> WireBytes | None:
        """None was sent."""
        return WireBytes(0, 0)

    def offload(self, codec: CodecId, payload: bytes, done: Callable[[Outcome], None], **_: object) -> None:
        """Its outcome is that there is no server."""
        done(Refusal("no server is named", Cause.UNAVAILABLE))

    def wait_idle(self) -> None:
        """Nothing is under way."""

    def late_replies_due(self) -> bool:
        """Never."""
        return False

    def close(self, wait: bool = True) -> None:
        """Nothing is open."""
