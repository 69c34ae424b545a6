"""Lanes: one activation coded as several byte strings, so that decoding is not one serial chain.

A lane is a run of whole channels; lanes differ by one channel at most. A payload is the lengths of all
lanes but the last, little-endian, and then the lanes. A length has 2 bytes where the activation has fewer
than 65,536 symbols, else 4. One lane has no length, and costs nothing.
"""

from __future__ import annotations

from itertools import pairwise

from offramp.common.errors import PayloadError

MAX_LANES = 8


def lane_channels(channels: int, lanes: int) -> list[range]:
    """The channels of each lane."""
    bounds = [channels * lane // lanes for lane in range(lanes + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]


def length_bytes(symbols: int) -> int:
    """Size of one lane's stored length, for an activation of this many symbols."""
    return 2 if symbols < 65_536 else 4


def join_lanes(lanes: list[bytes], symbols: int) -> bytes:
    """One payload of these lanes."""
    width = length_bytes(symbols)
    # A length that does not fit belongs to a payload longer than the raw one, which is not sent.
    lengths = [(len(lane) % (1 << 8 * width)).to_bytes(width, "little") for lane in lanes[:-1]]
    return b"".join(lengths + lanes)


def split_lanes(payload: bytes, lanes: int, symbols: int) -> list[bytes]:
    """The lanes of a payload.

    Raises PayloadError where it is shorter than its lengths say, or longer than the raw symbols: no coder
    reads that far.
    """
    if len(payload) > symbols:
        raise PayloadError(f"the payload of {len(payload)} bytes is longer than its {symbols} symbols")
    width = length_bytes(symbols)
    start = width * (lanes - 1)
    parts = []
    for lane in range(lanes):
        stop = len(payload)
        if lane < lanes - 1:
            stop = start + int.from_bytes(payload[width * lane : width * (lane + 1)], "little")
        if not start <= stop <= len(payload):
            raise PayloadError(f"the payload of {len(payload)} bytes ends within lane {lane} of {lanes}")
        parts.append(payload[start:stop])
        start = stop
    return parts
