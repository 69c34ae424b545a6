"""The head as a list of layers on rows of bytes: what the C program runs, and nothing of ONNX.

Activations are uint8 in height, width, channel order. Every number here is the one that the C code uses:
``scale`` is the float32 that ONNX Runtime multiplies a sum with (docs/reference/microcontroller.md has the
arithmetic).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Kind(Enum):
    """What a layer does; the value is its name in C."""

    CONV = "CONV"
    DEPTHWISE = "DEPTHWISE"
    ADD = "ADD"
    CHANNELS_FIRST = "CHANNELS_FIRST"
    """The symbols in the order that the codec takes."""
    LOOKUP = "LOOKUP"
    """Each byte to another, by a table for all channels or one for each."""
    REAL = "REAL"
    """Each byte to a float32, in the same way."""
    REAL_CONV = "REAL_CONV"
    REAL_DEPTHWISE = "REAL_DEPTHWISE"
    """Of float32, to float32 or to bytes."""
    MEAN = "MEAN"
    """Of all places of a channel."""
    LOGITS = "LOGITS"
    """A whole tensor to one float32 a class."""


CONVOLUTIONS = (Kind.CONV, Kind.DEPTHWISE, Kind.REAL_CONV, Kind.REAL_DEPTHWISE)
WHOLE = (Kind.MEAN, Kind.LOGITS)
"""They need all rows of their input at once."""


@dataclass(frozen=True)
class Tensor:
    """An activation: its name in the graph, its sides, and what its bytes mean."""

    name: str
    channels: int
    height: int
    width: int
    scale: float = 1.0
    zero: int = 0
    real: bool = False
    """float32 in the place of bytes."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.channels * self.width * (4 if self.real else 1)

    @property
    def whole_bytes(self) -> int:
        """Bytes of all rows."""
        return self.row_bytes * self.height


def _nothing() -> NDArray[Any]:
    return np.empty(0, np.float32)


@dataclass(frozen=True)
class Layer:
    """One step of the head. ``inputs`` and ``output`` name tensors.

    weights: int8, [O, kh, kw, I] of a convolution, [kh, kw, C] of a depthwise one, [K, H, W, C] of the
    logits. bias: int32 [O]; what the input's zero point adds is in it, but for a depthwise one. scale:
    float32 [O], of an addition the two ratios and the fixed part.
    """

    kind: Kind
    name: str
    inputs: tuple[str, ...]
    output: str
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    """Above and to the left."""
    weights: NDArray[Any] = field(default_factory=_nothing, repr=False)
    bias: NDArray[Any] = field(default_factory=_nothing, repr=False)
    scale: NDArray[Any] = field(default_factory=_nothing, repr=False)
    chunk: int = 0
    """Channels that a real convolution sums up before it adds the sums."""
    levels: NDArray[Any] = field(default_factory=_nothing, repr=False)
    """Of a real convolution whose input is bytes: what each is, float32 [256, 1 or I]."""

    @property
    def flash_bytes(self) -> int:
        """Bytes of its constants."""
        return int(self.weights.nbytes + self.bias.nbytes + self.scale.nbytes + self.levels.nbytes)

    def rows(self, row: int, height: int) -> range:
        """The rows of its input, of so many, that one row of its output needs."""
        first = row * self.stride[0] - self.pad[0]
        return range(max(first, 0), min(first + self.kernel[0], height))


@dataclass(frozen=True)
class Network:
    """The head: tensors by name, and layers in an order in which they can run.

    The first tensor is the picture, ``symbols`` the last but the logits of the early exit.
    """

    tensors: dict[str, Tensor]
    layers: tuple[Layer, ...]
    image: str
    symbols: str
    classes: int

    def macs(self, layer: Layer) -> int:
        """Multiplications of one layer."""
        if layer.kind is Kind.LOGITS:
            return int(layer.weights.size)
        if layer.kind not in CONVOLUTIONS:
            return 0
        out = self.tensors[layer.output]
        return int(out.height * out.width * layer.weights.size)
