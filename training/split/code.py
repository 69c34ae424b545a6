"""The code that is sent in place of the tensor at a cut: few symbols of 8 bits, for the tail's answer.

    device   activation -> features, and from them the early exit's logits
             activation -> linear transform, corrected by the features -> symbols
    server   symbols -> the transform's inverse and what a network adds -> activation, as far as the tail's
             answer depends on it

A symbol is a whole number, -128 … 127, as the byte 0 … 255 with zero point 128.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from offramp.training.models.bottleneck import Density
from offramp.training.split.layout import Layout
from offramp.training.split.transform import LARGEST, Fitted, Inverse, Transform, blocks_of
from offramp.training.split.transform import fit as fit_transform

ZERO_POINT = 128
LOW, HIGH = -128.0, 127.0
SIDE = 8
"""The code's longer side is at most this: the map is halved until it is."""
WIDTHS = (160, 128, 96, 64, 48, 32, 24, 16)
_EXIT_WIDTH = 256
_DECODER_WIDTHS = (256, 192, 128, 96, 64)
_DECODER_LEAST = 48
_CHANNELS = (8, 128)
_BITS_A_SYMBOL = 0.7
"""What a symbol costs where a code has enough channels: those that carry little cost next to nothing."""
_LITTLE = 0.05
"""Of its first weights, what the decoder's last layer keeps: at first the inverse transform decides."""


@dataclass(frozen=True)
class CodeShape:
    """Sizes of a code.

    channels: of the symbols.
    halvings: how often the map's sides are halved; a block of the transform has 2^halvings places a side.
    width: channels of the encoder's layers.
    """

    channels: int
    halvings: int
    width: int


def choose_shape(layout: Layout, *, target: float, most_macs: float) -> CodeShape:
    """A code for about ``target`` bytes whose encoder and exit need at most ``most_macs``, if one can."""
    source, height, width = layout.map_shape
    halvings = 0
    while max(height, width) > SIDE and source * 4 ** (halvings + 1) <= LARGEST:
        height, width, halvings = -(-height // 2), -(-width // 2), halvings + 1
    wanted = target * 8 / _BITS_A_SYMBOL / (height * width)
    least, most = _CHANNELS
    channels = min(most, max(least, 4 * round(wanted / 4)), source * 4**halvings)
    for wide in WIDTHS:
        shape = CodeShape(channels, halvings, wide)
        if encoder_macs(layout, shape) <= most_macs:
            break
    return shape


def encoder_macs(layout: Layout, shape: CodeShape) -> int:
    """Multiply-accumulates of encoder and early exit for one input, without the exit's last layer."""
    source, height, width = layout.map_shape
    wide = shape.width
    high, across = (blocks_of(side, shape.halvings)[0] for side in (height, width))
    total: int = high * across * source * 4**shape.halvings * shape.channels
    for step in range(max(1, shape.halvings)):
        if step < shape.halvings:
            height, width = -(-height // 2), -(-width // 2)
        total += height * width * wide * (9 * (source if step == 0 else wide) + 10 * wide)
    total += height * width * wide * shape.channels
    if max(height, width) > SIDE // 2:
        height, width = -(-height // 2), -(-width // 2)
    return total + 9 * height * width * wide * exit_width(wide)


def exit_width(width: int) -> int:
    """Channels of the exit, behind features of so many."""
    return min(_EXIT_WIDTH, 2 * width)


def _unit(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, *, relu: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(c_out, momentum=0.05),
        nn.ReLU() if relu else nn.Identity(),
    )


class _Residual(nn.Module):
    """Begins as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = _unit(width, width, 1, relu=False)
        self.body = nn.Sequential(_unit(width, width), last)
        nn.init.zeros_(cast(nn.BatchNorm2d, last[1]).weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class Features(nn.Module):
    """What encoder and early exit have in common: [N, *layout.shape] to [N, width, h, w].

    mean, std: of each channel of the map, float32 [C].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layout: Layout, shape: CodeShape, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.layout = layout
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1).clone())
        self.register_buffer("std", std.reshape(1, -1, 1, 1).clone())
        channels, wide = layout.map_shape[0], shape.width
        self.extra = nn.Conv2d(channels, wide, 1) if layout.extra else None
        layers: list[nn.Module] = []
        for step in range(max(1, shape.halvings)):
            stride = 2 if step < shape.halvings else 1
            layers += [_unit(channels if step == 0 else wide, wide, 3, stride), _Residual(wide)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers((self.layout.to_map(x) - self.mean) / self.std)
        if self.extra is not None:
            found = torch.relu(found + self.extra((self.layout.extra_of(x) - self.mean) / self.std))
        return found


class EarlyExit(nn.Module):
    """[N, width, h, w] to logits [N, K]."""

    def __init__(self, width: int, side: int, classes: int) -> None:
        super().__init__()
        wide = exit_width(width)
        self.unit = _unit(width, wide, 3, 2 if side > SIDE // 2 else 1)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(wide, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.dropout(self.unit(x).mean((2, 3))))
        return logits


class Decoder(nn.Module):
    """Symbols, float32 [N, c, h, w], to what the tail takes, [N, *layout.shape].

    ``normalised`` gives the map [N, C, H, W] in units of its channels' deviation, for the loss.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layout: Layout, shape: CodeShape, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.layout = layout
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1).clone())
        self.register_buffer("std", std.reshape(1, -1, 1, 1).clone())
        channels = layout.map_shape[0]
        widest = min(_DECODER_WIDTHS[0], max(_DECODER_LEAST, 4 * channels))
        wide = widest
        first: list[nn.Module] = [_unit(shape.channels, wide), _Residual(wide)]
        layers: list[nn.Module] = []
        for step in range(max(1, shape.halvings)):
            narrower = min(widest, _DECODER_WIDTHS[min(step + 1, len(_DECODER_WIDTHS) - 1)])
            if step < shape.halvings:
                layers += [_unit(wide, 4 * narrower, 1), nn.PixelShuffle(2)]
            else:
                layers.append(_unit(wide, narrower))
            layers.append(_Residual(narrower))
            wide = narrower
        self.first = nn.Sequential(*first)
        self.layers = nn.Sequential(*layers, nn.Conv2d(wide, channels, 3, 1, 1))
        with torch.no_grad():
            cast(nn.Conv2d, self.layers[-1]).weight.mul_(_LITTLE)
            cast(Tensor, cast(nn.Conv2d, self.layers[-1]).bias).zero_()
        self.extra = nn.Conv2d(widest, channels, 1) if layout.extra else None
        self.inverse = Inverse(layout, shape.channels, shape.halvings)

    def forward(self, symbols: Tensor) -> Tensor:
        return self.finish(*self.normalised(symbols))

    def normalised(self, symbols: Tensor) -> tuple[Tensor, Tensor | None]:
        """The map and the class token [N, C, 1, 1], both in units of the channels' deviation."""
        _, height, width = self.layout.map_shape
        hidden = self.first(symbols)
        found = self.inverse(symbols) + self.layers(hidden)[:, :, :height, :width]
        return found, None if self.extra is None else self.extra(hidden.mean((2, 3), keepdim=True))

    def finish(self, found: Tensor, extra: Tensor | None) -> Tensor:
        """From those units to what the tail takes."""
        token = None if extra is None else extra * self.std + self.mean
        return self.layout.from_map(found * self.std + self.mean, token)


class Code(nn.Module):
    """All that is learned at a cut.

    Args:
        layout: of the tensor that crosses.
        shape: of the code.
        classes: K.
        mean, std: of each channel of the tensor's map, float32 [C].
    """

    def __init__(self, layout: Layout, shape: CodeShape, classes: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        height, width = (blocks_of(side, shape.halvings)[0] for side in layout.map_shape[1:])
        self.layout, self.shape = layout, shape
        self.symbols_shape = (shape.channels, height, width)
        self.features = Features(layout, shape, mean, std)
        self.transform = Transform(
            layout, shape.channels, shape.halvings, self.features.mean, self.features.std
        )
        self.correction = nn.Conv2d(shape.width, shape.channels, 1)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(cast(Tensor, self.correction.bias))
        self.exit = EarlyExit(shape.width, max(height, width), classes)
        self.decoder = Decoder(layout, shape, mean, std)
        self.density = Density(self.symbols_shape)

    def encode(self, x: Tensor, features: Tensor) -> Tensor:
        """The code, float32 [N, c, h, w], not yet rounded, of [N, *layout.shape] and its features."""
        found: Tensor = self.transform(x) + self.correction(features)
        return found

    def begin(self, tail: nn.Module, activations: Tensor, *, target: float, seed: int) -> Fitted:
        """Set the transform by what the tail depends on, and the density by its coefficients.

        activations: float32 [M, *layout.shape]; target: bytes of a photo's symbols.
        """
        found = fit_transform(
            self.transform, self.decoder.inverse, tail, activations, target=target, seed=seed
        )
        self.density.begin(found.deviation)
        return found

    def bits(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Bits of an image's symbols, a mean over the batch, twice: with the gradient of ``code``, float32
        [N, c, h, w] before rounding, and with the density's."""
        symbols = rounded(code)
        noisy = code + (torch.rand_like(code) - 0.5)
        rate = self.density.bits(noisy, symbols, learn=False).sum()
        return rate, self.density.bits(noisy, symbols, learn=True).sum()

    @torch.no_grad()
    def coded_bits(self, code: Tensor) -> float:
        """Bits of an image's symbols as a coder with this density has them, a mean over the batch. Those of
        `bits` are more, twice as many where most symbols are 0: noise makes two values of each."""
        symbols = rounded(code)
        return float(self.density.bits(symbols, symbols, learn=True).sum())


def rounded(code: Tensor) -> Tensor:
    """The symbols as numbers; the gradient passes as if nothing was rounded."""
    return code + (code.clamp(LOW, HIGH).round() - code).detach()
