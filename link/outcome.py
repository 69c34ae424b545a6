"""What becomes of a frame: the server's answer, or the reason why there is no answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """Why a frame has no answer."""

    TIMEOUT = "timeout"
    """No reply within its deadline."""
    REFUSED = "refused"
    """The server answered with an error, or with nonsense."""
    UNAVAILABLE = "unavailable"
    """No stream to the server, or it broke too often."""
    BREAKER = "breaker"
    """Turned away: the link had failed, and the next probe was not due."""
    WINDOW = "window"
    """The window stayed full."""
    CLOSED = "closed"
    """The link was closed."""
    PICTURE = "picture"
    """A picture, to a server that takes no pictures, or none of this size."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's answer to one frame. Byte figures count both directions, and each time it was sent."""

    class_index: int
    probability: float
    server_seconds: float | None
    """From reading the frame to sending its reply; None if another reply of its message says it."""
    message_bytes: float
    """The frame's share of the serialized messages that carried it and its reply."""
    wire_bytes: float
    """The same with gRPC prefix and HTTP/2 DATA header; not the connection's control traffic."""
    sends: int = 1
    """How often it was sent."""
    part: int = 2
    """Number of the part that answered, from 1."""
    server: str = ""
    """HOST:PORT that was asked."""
    fallback: bool = False
    """Whether that part was unsure, and the one behind it did not answer."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a frame has no answer."""

    reason: str
    cause: Cause
    sends: int = 0
    """How often its bytes had gone out."""

    @property
    def final(self) -> bool:
        """Whether it is pointless to send the same bytes again: the server had them and refused them."""
        return self.cause is Cause.REFUSED


Outcome = Answer | Refusal
