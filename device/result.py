"""What a caller gets: one result for each image, and a correction where the server answered too late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
