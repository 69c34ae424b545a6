"""A split model in integers: what `quantize` makes and `export` writes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.training.data.datasets import PIXEL_SCALE, PIXEL_ZERO
from offramp.training.models.bottleneck import ZERO_POINT


@dataclass(frozen=True)
class Affine:
    """uint8 code q stands for the real number (q - zero_point) * scale."""

    scale: float
    zero_point: int

    @classmethod
    def covering(cls, low: float, high: float) -> Affine:
        """The finest code that holds [low, high] and, exactly, 0."""
        low, high = min(low, 0.0), max(high, 0.0)
        # Held in float32 because the graphs are: every later product of scales then matches theirs.
        scale = float(np.float32(max(high - low, 1e-6) / 255.0))
        return cls(scale, int(np.clip(round(-low / scale), 0, 255)))

    def quantize(self, x: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Round half to even and saturate, as ONNX QuantizeLinear does; shape is kept."""
        codes = np.rint(x / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(codes, 0, 255), np.uint8)

    def dequantize(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The real numbers (float32) that uint8 codes stand for; shape is kept."""
        centred = codes.astype(np.float32) - np.float32(self.zero_point)
        return np.asarray(centred * np.float32(self.scale), np.float32)


# Pixels go into the first convolution as they are, so that the head needs no float arithmetic at its input.
IMAGE = Affine(PIXEL_SCALE, PIXEL_ZERO)
# A bottleneck's code is whole numbers.
WHOLE = Affine(1.0, ZERO_POINT)


@dataclass(frozen=True)
class QuantLayer:
    """A convolution or linear layer in integers.

    ``weight`` int8 [C_out, C_in / groups, k, k] or [C_out, C_in], ``weight_scale`` float32 [C_out], ``bias``
    int32 [C_out] in units of input scale times weight scale. ``output`` is None where the result stays
    float32 (logits). ``relu``: the code of the output goes below 0, so the ReLU has to be computed.
    """

    weight: NDArray[np.int8]
    weight_scale: NDArray[np.float32]
    bias: NDArray[np.int32]
    input: Affine
    output: Affine | None
    stride: int = 1
    padding: int = 0
    groups: int = 1
    relu: bool = False


@dataclass(frozen=True)
class QuantAdd:
    """The add that closes a residual block: the open branch goes through ``shortcut``, if there is one.

    ``relu`` as in `QuantLayer`.
    """

    shortcut: QuantLayer | None
    relu: bool


@dataclass(frozen=True)
class QuantPool:
    """Max pooling of codes as they are: its output has its input's code."""

    kernel: int


@dataclass(frozen=True)
class QuantShuffle:
    """Depth to space of codes as they are."""

    factor: int


@dataclass(frozen=True)
class QuantBlock:
    """A sub-block in integers."""

    name: str
    layer: QuantLayer | QuantAdd | QuantPool | QuantShuffle
    opens: bool
    output: Affine


@dataclass(frozen=True)
class QuantModel:
    """A split model in integers, ready for export.

    ``symbols`` is the code of the transmitted activation, ``step`` its step as a multiple of the finest one
    that holds the range, ``cut`` the number of blocks on the device, ``seen`` the one whose output the early
    exit sees. ``exit_convolutions`` are the early exit's own, ``exit_pool`` is its average pool as the
    depthwise convolution that it equals. ``pooled`` is the code of the average that feeds ``classifier``.
    """

    blocks: tuple[QuantBlock, ...]
    top: tuple[QuantLayer, ...]
    pooled: Affine
    classifier: QuantLayer
    exit_convolutions: tuple[QuantLayer, ...]
    exit_pool: QuantLayer
    exit_linear: QuantLayer
    exit_number: int
    seen: int
    cut: int
    symbols: Affine
    step: float
    exit_shape: tuple[int, int, int]
    split_shape: tuple[int, int, int]
    input_shape: tuple[int, int, int]
    classes: int
