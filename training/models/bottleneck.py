"""A rate-trained split: a narrow, strided code in place of the activation, and what it costs to send.

The paper makes the activation at the split cheap and sends it whole. Here a small encoder behind the early
exit writes it as a few channels at a coarser resolution, the server's decoder reads them back, and both are
trained with the symbols that travel: rounded forward, the identity backward. What is charged is an estimate
of the bits that a shipped coder takes for them: static tables for each channel, or the context coder.

    activation -> encoder -> Rounding -> symbols ~~> decoder -> activation, for the rest of the network
                     \\-> Density -> bits

The density is a mixture of logistics for each channel, integrated over each symbol's unit interval (Ballé et
al., "Variational image compression with a scale hyperprior", 2018, put a scale mixture in the same place).
With a context it is moved and widened by what the context coder tells a symbol from (`common.context`).
Uniform noise stands for rounding where bits are estimated, which gives the estimate a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from offramp.common.codec.context import AROUND, NEAR
from offramp.common.errors import ConfigError
from offramp.training import processes
from offramp.training.models.layers import ConvUnit, Shuffle, SubBlock

ZERO_POINT = 128
"""Symbol of 0: a byte holds -128 … 127."""

_COMPONENTS = 3
_SPREAD = 2.0
_LEAST_DEVIATION = 0.1
_SMALLEST = 2.0**-24


@dataclass(frozen=True)
class BottleneckShape:
    """Channels and stride of the code, the width of its decoder and of its encoder's first layer, and what
    each further layer of the encoder multiplies it by."""

    channels: int
    stride: int
    width: int
    growth: int = 1


class Rounding(nn.Module):
    """Real numbers to the symbols that travel and back: rounded to whole numbers and held in a byte's range.

    float32 [N, C, H, W] to the same; backward it is the identity inside the range.
    """

    def forward(self, x: Tensor) -> Tensor:
        inside = x.clamp(-ZERO_POINT, 255 - ZERO_POINT)
        return inside + (inside.round() - inside).detach()


class Context(nn.Module):
    """How far a channel's distribution moves and widens at each place, from the symbols coded before it.

    Linear in the distances from the channels' means and in their sizes, at the places and in the order of
    `common.context`, and in a share for the row and the column.

    Args:
        shape: (C, H, W) of the code.
    """

    earlier: Tensor

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.weight = nn.Parameter(torch.zeros(2 * channels, 2 * (AROUND + 1) * channels))
        self.row = nn.Parameter(torch.zeros(2, channels, height, 1))
        self.column = nn.Parameter(torch.zeros(2, channels, 1, width))
        earlier = torch.ones(channels, AROUND + 1, channels)
        earlier[:, AROUND] = earlier[:, AROUND].tril(-1)
        # Both of the move and of the widening, and of the distances and of their sizes.
        self.register_buffer("earlier", earlier.flatten(1).repeat(2, 2), persistent=False)

    def forward(self, distance: Tensor, *, learn: bool) -> tuple[Tensor, Tensor]:
        """The move, in symbols, and the logarithm of the widening, each [N, C, H, W] as ``distance`` is.

        distance: of the symbols themselves from their channels' means. learn: as in `Density.bits`.
        """
        parameters: tuple[Tensor, ...] = (self.weight, self.row, self.column)
        if not learn:
            parameters = tuple(one.detach() for one in parameters)
        weight, row, column = parameters
        height, width = distance.shape[2:]
        near = distance.clamp(-NEAR, NEAR)
        padded = nn.functional.pad(near, (1, 1, 1, 0))
        around = [
            padded[:, :, 1:, :width],
            padded[:, :, :height, 1 : width + 1],
            padded[:, :, :height, :width],
            padded[:, :, :height, 2:],
            near,
        ]
        seen = torch.cat([*around, *(one.abs() for one in around)], dim=1)
        kernel = (weight * self.earlier)[..., None, None]
        moved, widened = nn.functional.conv2d(seen, kernel).chunk(2, dim=1)
        return moved + row[0] + column[0], widened + row[1] + column[1]


class Density(nn.Module):
    """How probable each symbol is in each channel: a mixture of logistics, learned as the code changes.

    Args:
        shape: (C, H, W) of the code.
        context: whether the symbols that are coded before it move and widen a symbol's distribution.
    """

    def __init__(self, shape: tuple[int, int, int], *, context: bool = False) -> None:
        super().__init__()
        channels = shape[0]
        self.weight = nn.Parameter(torch.zeros(channels, _COMPONENTS))
        means = torch.linspace(-_SPREAD, _SPREAD, _COMPONENTS)
        self.mean = nn.Parameter(means.repeat(channels, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, _COMPONENTS))
        self.context = Context(shape) if context else None

    def begin(self, deviation: Tensor) -> None:
        """Begin with symbols around 0 that have such deviations, float32 [C]."""
        own = deviation.clamp_min(_LEAST_DEVIATION)[:, None]
        with torch.no_grad():
            self.mean.copy_(torch.linspace(-1, 1, _COMPONENTS) * own)
            self.log_scale.copy_((own / 2).log().expand_as(self.log_scale))
            # The middle one has most of it.
            self.weight.copy_((-_SPREAD * torch.linspace(-1, 1, _COMPONENTS).abs()).expand_as(self.weight))

    def bits(self, x: Tensor, symbols: Tensor, *, learn: bool) -> Tensor:
        """Bits of each channel of an image, [C], a mean over the images of float32 [N, C, H, W].

        Args:
            x: what is coded, the symbols or with noise in the place of their rounding.
            symbols: the symbols themselves, which a decoder knows of those before.
            learn: the gradient is the density's own; otherwise it is that of ``x`` and ``symbols``.
        """
        parameters: tuple[Tensor, ...] = (self.weight, self.mean, self.log_scale)
        if learn:
            x, symbols = x.detach(), symbols.detach()
        else:
            parameters = tuple(one.detach() for one in parameters)
        weight, mean, log_scale = parameters
        share = torch.softmax(weight, dim=1)
        log_scale = log_scale[..., None]
        if self.context is not None:
            centre = (share * mean).sum(dim=1).detach()[:, None, None]
            moved, widened = self.context(symbols - centre, learn=learn)
            x = x - moved
            log_scale = log_scale + _by_channel(widened)
        at = _by_channel(x)
        scale = log_scale.clamp(-6.0, 6.0).exp()
        upper = torch.sigmoid((at + 0.5 - mean[..., None]) / scale)
        lower = torch.sigmoid((at - 0.5 - mean[..., None]) / scale)
        probability = (share[..., None] * (upper - lower)).sum(dim=1)
        return -probability.clamp_min(_SMALLEST).log2().sum(dim=1) / len(x)


def _by_channel(x: Tensor) -> Tensor:
    """[N, C, H, W] to [C, 1, N · H · W]."""
    return x.transpose(0, 1).flatten(1)[:, None]


class Bottleneck(nn.Module):
    """Encoder for the device, decoder for the server, and the density of what is sent between them.

    Args:
        shape: (C, H, W) of the activation at the split; H and W multiples of the stride.
        code: what it becomes: (channels, H / stride, W / stride).
        context: whether it is charged as by the context coder, not as by tables for each channel.

    Raises:
        ConfigError: sides that the stride does not divide.
    """

    def __init__(self, shape: tuple[int, int, int], code: BottleneckShape, *, context: bool = False) -> None:
        super().__init__()
        channels, height, width = shape
        if height % code.stride or width % code.stride:
            raise ConfigError(f"a stride of {code.stride} does not divide a {height}x{width} activation")
        wide, steps = code.width, code.stride.bit_length() - 1
        widths = [channels] + [wide * code.growth**n for n in range(max(1, steps))]
        encoder = [
            SubBlock(f"encoder{n}", ConvUnit(a, b, 3, stride=2 if n <= steps else 1))
            for n, (a, b) in enumerate(pairwise(widths), 1)
        ]
        encoder.append(SubBlock("encoder.symbols", ConvUnit(widths[-1], code.channels, 1, relu=False)))
        # The last convolution works at half of the sides: there it sees more, for as much arithmetic.
        last = min(code.stride, 2)
        first = code.stride // last
        decoder = [SubBlock("decoder1", ConvUnit(code.channels, 2 * wide, 3))]
        for name, unit, factor in (
            ("decoder2", ConvUnit(2 * wide, wide * first**2, 1), first),
            ("decoder3", ConvUnit(wide, channels * last**2, 3, relu=False), last),
        ):
            decoder.append(SubBlock(name, unit))
            if factor > 1:
                decoder.append(SubBlock(f"{name}.shuffle", Shuffle(factor)))
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        self.shape = (code.channels, height // code.stride, width // code.stride)
        self.rounding, self.density = Rounding(), Density(self.shape, context=context)
        self.hidden_shape = (widths[-1], *self.shape[1:])
        # Whole numbers are the symbols: a deviation of 1 would leave next to nothing but zeros at first.
        symbols = encoder[-1].unit
        assert isinstance(symbols, ConvUnit)
        nn.init.constant_(symbols.norm.weight, _SPREAD)

    def blocks(self) -> tuple[list[SubBlock], list[SubBlock]]:
        """The encoder's sub-blocks and the decoder's."""
        encoder, decoder = (
            [block for block in part if isinstance(block, SubBlock)] for part in (self.encoder, self.decoder)
        )
        return encoder, decoder

    def bits(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Bits of an activation, a mean over a batch, twice: with the gradient of ``code`` and the density's.

        code: the encoder's float32 [N, C, H, W], not yet rounded; in training, noise takes rounding's place.
        """
        symbols = self.rounding(code)
        x = code + (processes.uniform_like(code) - 0.5) if self.training else symbols
        rate, fit = (self.density.bits(x, symbols, learn=learn).sum() for learn in (False, True))
        return rate, fit
