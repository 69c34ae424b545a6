"""Where in one static block of memory each buffer lies: those that are not needed at one time share bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 8


@dataclass(frozen=True)
class Buffer:
    """Memory that is needed from one step to another, both included."""

    name: str
    bytes: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether there is a step in which both are needed."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Arena:
    """Where each buffer begins, and the bytes of all."""

    places: dict[str, int]
    bytes: int


def plan(buffers: Sequence[Buffer]) -> Arena:
    """A place for each, the largest first, each as low as those placed before leave room."""
    placed: list[tuple[int, Buffer]] = []
    for buffer in sorted(buffers, key=lambda each: (-each.bytes, each.first, each.name)):
        at = 0
        for start, other in sorted((place for place in placed if place[1].meets(buffer)), key=lambda p: p[0]):
            if at + buffer.bytes <= start:
                break
            at = max(at, -(-(start + other.bytes) // ALIGNMENT) * ALIGNMENT)
        placed.append((at, buffer))
    size = max((at + buffer.bytes for at, buffer in placed), default=0)
    return Arena({buffer.name: at for at, buffer in placed}, -(-size // ALIGNMENT) * ALIGNMENT)


def bound(buffers: Sequence[Buffer]) -> tuple[int, list[Buffer]]:
    """The most bytes that are needed at one step, and the buffers of that step: no plan takes less."""
    steps = {buffer.first for buffer in buffers}
    held = ((sum(b.bytes for b in buffers if b.first <= step <= b.last), step) for step in steps)
    size, at = max(held, default=(0, 0))
    return size, [b for b in buffers if b.first <= at <= b.last]
