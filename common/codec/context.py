"""rANS whose frequencies follow what has been coded: the model, and the reference coder in plain Python.

A narrow code of a few levels has structure that tables by channel cannot see: neighbours in space and other
channels at the same place say much about a symbol. Here its distribution is log-linear in them:

    logit(k) = base(k) + k · m + |k| · s        k = symbol − its channel's mode, from −reach to reach

with m and s a sum over the symbols around it that are coded already: all channels at the left, upper,
upper left and upper right place, and the channels before it at its own place. Each adds its distance from its
mode, up to ±2, by one weight, and the size of that by another; m and s have weights of their own, and a share
for the row and for the column. What is farther from its mode than ``reach`` is an escape and 8 bits.
docs/reference/codec.md has the layout; ``common/codec/kernel/context.c`` is the compiled twin, byte for byte.

Rules this module keeps:
- Integers only: logits are in 1/32 of a bit, and so the same on every CPU.
- Symbols are coded place by place, row by row, all channels at a place together; on one lane.
- Classes are k = 0, −1, 1, −2, 2 … and the escape.
- Frequencies are shares of 2^14, of less for the last symbols: an encoder begins with those, and its first
  step costs as many bits as there are slots, whatever the symbol.
- Every activation can be coded, there is one way to write it, and a decoder takes no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from offramp.common.codec.ans import StateReader, StateWriter
from offramp.common.errors import CodebookError, PayloadError

BITS, LAST_BITS, LITERAL_BITS = 14, 8, 8
MAX_REACH = 15
MAX_CHANNELS = 256
MAX_WORK = 1 << 26
"""Most steps for one activation (`work`): tens of milliseconds."""
NEAR = 2
"""How far from its mode a symbol is still distinguished by those after it."""
AROUND = 4
"""Places whose symbols are looked at beside a symbol's own."""

# 2^16 · 2^(−i/32).
# fmt: off
_POWERS = (
    65536, 64132, 62757, 61413, 60097, 58809, 57549, 56316,
    55109, 53928, 52773, 51642, 50535, 49452, 48393, 47356,
    46341, 45348, 44376, 43425, 42495, 41584, 40693, 39821,
    38968, 38133, 37316, 36516, 35734, 34968, 34219, 33486,
)
# fmt: on


@dataclass(frozen=True)
class ContextModel:
    """What a bundle stores of it. Raises CodebookError if a rule is broken.

    shape: (C, H, W). mode: uint8 [C]. base: int16 [C, 2 · reach + 2], of each class.
    rows: int8 [C, H, 2], columns: int8 [C, W, 2]: for m and s. weights: int8 [C, 2, 2, 5 · C]: of m and s,
    for the distance and the size of it, of the channels at the four places around and at this one; 0 for
    those at this place that come later.
    """

    shape: tuple[int, int, int]
    mode: NDArray[np.uint8]
    base: NDArray[np.int16]
    rows: NDArray[np.int8]
    columns: NDArray[np.int8]
    weights: NDArray[np.int8]

    def __post_init__(self) -> None:
        channels = self.shape[0]
        if channels > MAX_CHANNELS or work(self.shape) > MAX_WORK:
            raise CodebookError(
                f"an activation of shape {self.shape} takes {work(self.shape):,} steps, expected at most"
                f" {MAX_WORK:,}, and {MAX_CHANNELS} channels"
            )
        reach = self.reach
        wanted = _layout(self.shape, reach)
        for name, (dtype, sides) in wanted.items():
            found = getattr(self, name)
            if found.dtype != dtype or found.shape != sides:
                raise CodebookError(f"{name} is {found.dtype} {found.shape}, expected {dtype} {sides}")
        if not 1 <= reach <= MAX_REACH:
            raise CodebookError(f"a reach of {reach}, expected 1 … {MAX_REACH}")
        for channel in range(channels):
            if self.weights[channel, :, :, AROUND * channels + channel :].any():
                raise CodebookError(f"channel {channel} has a weight for a symbol that is coded after it")

    @property
    def reach(self) -> int:
        """Farthest from the mode without an escape."""
        return int(self.base.shape[-1]) // 2 - 1

    @property
    def stored_bytes(self) -> int:
        """Bytes that the model takes on the device."""
        return len(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The model as stored in a bundle; ``from_bytes`` reads it."""
        parts = (getattr(self, name).tobytes() for name in _layout(self.shape, self.reach))
        return bytes([self.reach]) + b"".join(parts)

    @staticmethod
    def from_bytes(data: bytes, shape: tuple[int, int, int]) -> ContextModel:
        """Read what ``to_bytes`` wrote. Raises CodebookError for anything else."""
        reach = data[0] if data else 0
        if not 1 <= reach <= MAX_REACH:
            raise CodebookError(f"the context model has a reach of {reach}, expected 1 … {MAX_REACH}")
        expected = 1 + stored(shape, reach)
        if len(data) != expected:
            raise CodebookError(
                f"the context model has {len(data):,} bytes, expected {expected:,} for an activation of shape"
                f" {shape} and a reach of {reach}"
            )
        parts, at = {}, 1
        for name, (dtype, sides) in _layout(shape, reach).items():
            parts[name] = np.frombuffer(data, dtype, int(np.prod(sides)), at).reshape(sides)
            at += parts[name].nbytes
        return ContextModel(shape, **parts)


def work(shape: tuple[int, int, int]) -> int:
    """What coding one activation takes: multiplications, and 64 steps for each symbol's frequencies."""
    channels, height, width = shape
    return channels * height * width * (4 * (AROUND + 1) * channels + 64)


def stored(shape: tuple[int, int, int], reach: int) -> int:
    """Bytes of a model behind its reach."""
    return sum(int(np.prod(sides)) * dtype.itemsize for dtype, sides in _layout(shape, reach).values())


def _layout(
    shape: tuple[int, int, int], reach: int
) -> dict[str, tuple[np.dtype[np.generic], tuple[int, ...]]]:
    channels, height, width = shape
    byte = np.dtype(np.int8)
    return {
        "mode": (np.dtype(np.uint8), (channels,)),
        "base": (np.dtype("<i2"), (channels, 2 * reach + 2)),
        "rows": (byte, (channels, height, 2)),
        "columns": (byte, (channels, width, 2)),
        "weights": (byte, (channels, 2, 2, (AROUND + 1) * channels)),
    }


def class_of(k: int, reach: int) -> int:
    """The class of a symbol that is k from its mode."""
    return 2 * abs(k) - (k < 0) if abs(k) <= reach else 2 * reach + 1


def bits_at(left: int) -> int:
    """Bits of the slots of a symbol with so many behind it."""
    return min(BITS, LAST_BITS + left // 2)


def frequencies(logits: list[int], bits: int) -> list[int]:
    """Slots of 2^bits for logits in 1/32 of a bit, at least 1 each; the likeliest takes the rest."""
    top = max(logits)
    sizes = [_POWERS[(top - each) & 31] >> ((top - each) >> 5) for each in logits]
    total, free = sum(sizes), (1 << bits) - len(logits)
    found = [1 + size * free // total for size in sizes]
    found[logits.index(top)] += (1 << bits) - sum(found)
    return found


@dataclass(frozen=True)
class ContextCoder:
    """Codes activations of the model's shape, in Python: the reference."""

    model: ContextModel

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.model.shape

    def encode(self, symbols: bytes, /) -> bytes:
        """The payload of C·H·W symbols."""
        model, reach = self.model, self.model.reach
        planes = np.frombuffer(symbols, np.uint8).reshape(self.shape)
        steps: list[tuple[int, int, int]] = []
        around = _Neighbours(model)
        for left, channel, row, column in around.places():
            bits = bits_at(left)
            symbol = int(planes[channel, row, column])
            slots = frequencies(around.logits(channel, row, column), bits)
            k = symbol - int(model.mode[channel])
            index = class_of(k, reach)
            steps.append((slots[index], sum(slots[:index]), bits))
            if abs(k) > reach:
                steps.append((1, symbol, LITERAL_BITS))
            around.add(channel, row, column, k)
        writer = StateWriter()
        for step in reversed(steps):
            writer.put(*step)
        return writer.to_bytes()

    def decode(self, payload: bytes, /) -> bytes:
        """The symbols of a payload. Raises PayloadError for one that ``encode`` does not write."""
        model, reach = self.model, self.model.reach
        planes = np.empty(self.shape, np.uint8)
        if len(payload) > planes.size:
            raise PayloadError(
                f"the payload of {len(payload)} bytes is longer than its {planes.size} symbols"
            )
        reader = StateReader(payload)
        around = _Neighbours(model)
        for left, channel, row, column in around.places():
            bits = bits_at(left)
            slots = frequencies(around.logits(channel, row, column), bits)
            index, offset = 0, reader.slot(bits)
            while offset >= slots[index]:
                offset -= slots[index]
                index += 1
            reader.advance(slots[index], offset, bits)
            mode = int(model.mode[channel])
            symbol = mode + (index // 2 if index % 2 == 0 else -(index + 1) // 2)
            if index > 2 * reach:
                symbol = reader.slot(LITERAL_BITS)
                reader.advance(1, 0, LITERAL_BITS)
                if abs(symbol - mode) <= reach:
                    raise PayloadError(f"the payload escapes symbol {symbol}, which needs no escape")
            elif not 0 <= symbol <= 255:
                raise PayloadError(f"the payload has a symbol {symbol}, expected 0 … 255")
            planes[channel, row, column] = symbol
            around.add(channel, row, column, symbol - mode)
        reader.finish()
        return planes.tobytes()


class _Neighbours:
    """The distances of all symbols so far, and what they say of the next one."""

    def __init__(self, model: ContextModel) -> None:
        self.model = model
        channels, height, width = model.shape
        # A row above and a column on each side, all at their modes.
        self._near = np.zeros((height + 1, width + 2, channels), np.int64)

    @cached_property
    def _weights(self) -> NDArray[np.int64]:
        return self.model.weights.astype(np.int64)

    def places(self) -> Iterator[tuple[int, int, int, int]]:
        """(symbols left behind it, channel, row, column) in the order of coding."""
        channels, height, width = self.model.shape
        left = channels * height * width
        for row in range(height):
            for column in range(width):
                for channel in range(channels):
                    left -= 1
                    yield left, channel, row, column

    def add(self, channel: int, row: int, column: int, k: int) -> None:
        """The symbol at a place is k from its mode."""
        self._near[row + 1, column + 1, channel] = min(max(k, -NEAR), NEAR)

    def logits(self, channel: int, row: int, column: int) -> list[int]:
        """Of each class at a place, in 1/32 of a bit."""
        model, near = self.model, self._near
        around = np.concatenate(
            [
                near[row + 1, column],
                near[row, column + 1],
                near[row, column],
                near[row, column + 2],
                near[row + 1, column + 1],
            ]
        )
        of_distance, of_size = (
            self._weights[channel, :, 0] @ around,
            self._weights[channel, :, 1] @ abs(around),
        )
        m, s = (
            int(of_distance[i] + of_size[i])
            + int(model.rows[channel, row, i])
            + int(model.columns[channel, column, i])
            for i in range(2)
        )
        base, reach = model.base[channel].tolist(), model.reach
        logits = [base[0]]
        for k in range(1, reach + 1):
            logits += [base[2 * k - 1] - k * m + k * s, base[2 * k] + k * m + k * s]
        return [*logits, base[-1] + (reach + 1) * s]
