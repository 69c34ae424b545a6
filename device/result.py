"""What a caller gets: one result for each image, and a correction where the server answered too late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from offramp.device.inquiry import Settled
    from offramp.device.ledger import Cost

Source = Literal["early_exit", "server", "fallback"]
"""Who answered: the early exit, the server, or the early exit because the server did not."""


@dataclass(frozen=True, slots=True)
class Result:
    """The one answer to one image. Byte figures are 0 for an image that was not sent."""

    label: str
    class_index: int
    confidence: float
    """Probability of the class, by whoever answered: one exit, or both (``common/part/answer.py``)."""
    source: Source
    latency_seconds: float
    """From handing the image in to its answer; of a file, without its decoding."""
    payload_bytes: int
    """The coded activation and the picture, each time that they were sent."""
    message_bytes: float
    """Share of the serialized protobuf messages, both directions."""
    wire_bytes: float
    """The same with gRPC prefix and HTTP/2 DATA header."""
    reason: str | None
    """Why a ``fallback`` is one."""
    sends: int = 0
    """How often the activation was sent: more than once where a stream broke."""
    picture_bytes: int = 0
    """What of the payload was its picture; 0 where none was sent."""
    threshold: float | None = None
    """T_c that decided, where it is steered."""
    decode_seconds: float = 0.0
    """From a picture's bytes, or the caller's own kind of picture, to the head's input."""
    unknown: bool = False
    """Whether the image is unlike all that the bundle knows (``common/part/unknown.py``); its label stays."""
    part: int = 1
    """Number of the part whose exit had the last word: 1 for the device's own, 2 for the server's, …"""
    cut_short: bool = False
    """Whether that part was unsure, and answered because the one behind it did not."""
    server: str = ""
    """HOST:PORT of the server that was asked and answered; empty where none did."""

    @property
    def by(self) -> str:
        """The part of a chain that answered, and whether the one behind it did not, as a person reads it."""
        return f"part {self.part}" + (", short" if self.cut_short else "")

    @classmethod
    def of(
        cls, label: str, settled: Settled, cost: Cost, latency: float, threshold: float | None, unknown: bool
    ) -> Self:
        """The result of an image that is settled, latency seconds after it was handed in."""
        return cls(
            label=label,
            class_index=settled.verdict.class_index,
            confidence=settled.verdict.confidence,
            source=settled.source,
            latency_seconds=latency,
            payload_bytes=cost.payload,
            message_bytes=cost.message,
            wire_bytes=cost.wire,
            reason=settled.reason,
            sends=cost.sends,
            picture_bytes=cost.picture,
            threshold=threshold,
            decode_seconds=cost.decode_seconds,
            unknown=unknown,
            part=settled.part,
            cut_short=settled.cut_short,
            server=settled.server,
        )


@dataclass(frozen=True, slots=True)
class Correction:
    """The server's answer to an image that was a ``fallback`` already: too late, or out of the spool."""

    index: int
    """The image's place in the input, as it was handed in."""
    name: str
    label: str
    class_index: int
    confidence: float
    spooled: bool
    """Whether it comes out of the spool; it may then be of an earlier run."""
