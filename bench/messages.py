"""How many bytes a payload takes on its way, in the envelope that every contender of a comparison gets."""

from __future__ import annotations

from functools import cache

from offramp.common.codec.activation import CodecId
from offramp.common.wire.frame import Frame, FrameWriter


@cache
def framed_bytes(payload: int) -> int:
    """Bytes of a protobuf message that holds one frame with a payload of so many bytes."""
    return len(FrameWriter().pack([Frame(1, CodecId.BUNDLE, bytes(payload))]))
