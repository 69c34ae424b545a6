"""Post-training quantization (Sec. V-D1): a trained split model and calibration images in, integers out.

Activations are uint8 with one scale and zero point per tensor, weights int8 with one scale per output channel and
no zero point, biases int32. Batch norm is folded into the convolution before it, and a ReLU is the lower end of
the range that uint8 can hold: neither exists any more in the quantized model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from offramp.common.errors import DataError
from offramp.training.models import ConvUnit, Flow, SplitModel
from torch import Tensor, nn

_BATCH = 128
# Each range is chosen among these fractions of the observed one (see `_choose_range`).
_SHRINK = np.linspace(1.0, 0.5, 26)
_SAMPLE = 1 << 16


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
        return np.clip(codes, 0, 255).astype(np.uint8)

    def dequantize(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The real numbers (float32) that uint8 codes stand for; shape is kept."""
        return (codes.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)


# Pixels go into the first convolution as they are: 0..255 stands for [-2, 1.984], so that the head's input needs no
# float arithmetic on the device. The float model is trained on exactly these numbers (see `data.to_float`).
IMAGE = Affine(scale=1 / 64, zero_point=128)


@dataclass(frozen=True)
class QuantLayer:
    """A convolution or linear layer in integers.

    ``weight`` int8 [C_out, C_in / groups, k, k] or [C_out, C_in], ``weight_scale`` float32 [C_out], ``bias`` int32
    [C_out] in units of input scale times weight scale. ``output`` is None where the result stays float32 (logits).
    """

    weight: NDArray[np.int8]
    weight_scale: NDArray[np.float32]
    bias: NDArray[np.int32]
    input: Affine
    output: Affine | None
    stride: int = 1
    groups: int = 1


@dataclass(frozen=True)
class QuantBlock:
    """A sub-block in integers: its layer, if it has one, and the code of its sum, if it closes a residual block."""

    name: str
    layer: QuantLayer | None
    opens: bool
    sum: Affine | None


@dataclass(frozen=True)
class QuantModel:
    """A split model in integers, ready for export.

    ``symbols`` is the code of all that travels; ``exit_channels`` of its channels feed the early exit, the others
    are the open residual branch. ``exit_linear`` is float32 (weight [K, D], bias [K]); ``pooled`` is the code of the
    average that feeds ``classifier``.
    """

    blocks: tuple[QuantBlock, ...]
    top: tuple[QuantLayer, ...]
    pooled: Affine
    classifier: QuantLayer
    exit_linear: tuple[NDArray[np.float32], NDArray[np.float32]]
    exit_number: int
    exit_channels: int
    symbols: Affine
    split_shape: tuple[int, int, int]
    input_shape: tuple[int, int, int]
    classes: int


class _Observed:
    """The values of one tensor over the calibration images: range, and an evenly spaced sample."""

    def __init__(self) -> None:
        self.low, self.high = 0.0, 0.0
        self.samples: list[NDArray[np.float32]] = []

    def add(self, x: Tensor) -> None:
        flat = x.detach().flatten()
        self.low = min(self.low, float(flat.min()))
        self.high = max(self.high, float(flat.max()))
        self.samples.append(flat[:: max(1, flat.numel() // _SAMPLE)].numpy())

    def affine(self) -> Affine:
        return _choose_range(self.low, self.high, np.concatenate(self.samples))


def _choose_range(low: float, high: float, sample: NDArray[np.float32]) -> Affine:
    """The shrunk range with the smallest mean squared rounding-plus-clipping error on the sample."""
    best, best_error = Affine.covering(low, high), float("inf")
    for shrink in _SHRINK:
        code = Affine.covering(low * shrink, high * shrink)
        error = float(np.square(sample - code.dequantize(code.quantize(sample))).mean())
        if error < best_error:
            best, best_error = code, error
    return best


def quantize(model: SplitModel, images: Tensor) -> QuantModel:
    """Quantize a trained model.

    Args:
        model: float32, put in eval mode.
        images: calibration images, float32 [N, 3, H, W], never test images.

    Raises:
        DataError: if there are no calibration images.
    """
    if len(images) == 0:
        raise DataError("quantization needs at least one calibration image")
    model.eval()
    observed = _observe(model, images)
    blocks, symbols = [], Affine(1.0, 0)
    incoming, pending = IMAGE, None
    split_parts: list[_Observed] = []
    raise NotImplementedError
