"""What one stream holds on the server, and what it did wrong: counts, and their limits.

A frame is taken, then it is answered, refused or dropped; one that is not taken is refused. An answer or a
refusal is a reply, which waits until it is written.
"""

from __future__ import annotations

from offramp.common.errors import MessageError, OverloadError
from offramp.v1 import inference_pb2 as pb

REPLIES_WAITING = 1024
"""Replies of one stream that may wait to be written before it is read further."""
BAD_FRAMES = (
    pb.FrameError.REASON_CHECKSUM,
    pb.FrameError.REASON_SEQUENCE,
    pb.FrameError.REASON_CODEC,
    pb.FrameError.REASON_PAYLOAD,
)
"""What a correct device never sends; overload and lateness are not counted against it."""


class Account:
    """The counts of one stream. frames_in_flight: most frames without a reply; strikes: most bad frames."""

    __slots__ = ("_frames_in_flight", "_most_strikes", "replies", "strikes", "taken", "unanswered")

    def __init__(self, frames_in_flight: int, strikes: int) -> None:
        self._frames_in_flight = frames_in_flight
        self._most_strikes = strikes
        self.taken = 0
        """Frames that were taken so far."""
        self.unanswered = 0
        """Frames that were taken and have no reply yet."""
        self.replies = 0
        """Replies that wait to be written."""
        self.strikes = 0
        """Bad frames so far."""

    def take(self) -> None:
        """Take one more frame. Raises OverloadError where the stream has as many as it may."""
        if self.unanswered >= self._frames_in_flight:
            raise OverloadError(
                f"{self._frames_in_flight} frames of this stream are unanswered, the most that may"
            )
        self.taken += 1
        self.unanswered += 1

    def drop(self, count: int = 1) -> None:
        """Frames that were taken get no reply, or one that ``refuse`` counts."""
        self.unanswered -= count

    def answer(self) -> None:
        """A frame that was taken has its answer."""
        self.unanswered -= 1
        self.replies += 1

    def refuse(self, reason: pb.FrameError.Reason) -> None:
        """A frame that is not taken, or no longer, is refused."""
        self.strikes += reason in BAD_FRAMES
        self.replies += 1

    def write(self, count: int) -> None:
        """So many replies are being written."""
        self.replies -= count

    @property
    def is_full(self) -> bool:
        """Whether the device has to take replies before it is read further: they would pile up here."""
        return self.replies > REPLIES_WAITING

    def check_strikes(self) -> None:
        """Raises MessageError where there were too many bad frames."""
        if self.strikes >= self._most_strikes:
            raise MessageError(f"{self.strikes} bad frames on this stream")
