"""A rate-trained split: a narrow, strided code in place of the activation, and what it costs to send.

The paper makes the activation at the split cheap and sends it whole. Here a small encoder behind the early
exit writes it as a few channels at a coarser resolution, the server's decoder reads them back, and both are
trained with the symbols that travel: rounded forward, the identity backward. What is charged is an estimate
of the bits that static tables for each channel, such as the shipped coder's, take for them.

    activation -> encoder -> Rounding -> symbols ~~> decoder -> activation, for the rest of the network
                     \\-> Density -> bits

The density is a mixture of logistics for each channel, integrated over each symbol's unit interval (Ballé et
al., "Variational image compression with a scale hyperprior", 2018, put a scale mixture in the same place).
Uniform noise stands for rounding where bits are estimated, which gives the estimate a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from offramp.common.errors import ConfigError
from offramp.training.models import ConvUnit, Shuffle, SubBlock

ZERO_POINT = 128
"""Symbol of 0: a byte holds -128 … 127."""

_COMPONENTS = 3
_SPREAD = 2.0
_SMALLEST = 2.0**-24


@dataclass(frozen=True)
class BottleneckShape:
    """Channels and stride of the code, and the widths of its encoder and decoder."""

    channels: int
    stride: int
    width: int


class Rounding(nn.Module):
    """Real numbers to the symbols that travel and back: rounded to whole numbers and held in a byte's range.

    float32 [N, C, H, W] to the same; backward it is the identity inside the range.
    """

    def forward(self, x: Tensor) -> Tensor:
        inside = x.clamp(-ZERO_POINT, 255 - ZERO_POINT)
        return inside + (inside.round() - inside).detach()


class Density(nn.Module):
    """How probable each symbol is in each channel: a mixture of logistics, learned as the code changes.

    Args:
        channels: C of the code.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, _COMPONENTS))
        means = torch.linspace(-_SPREAD, _SPREAD, _COMPONENTS)
        self.mean = nn.Parameter(means.repeat(channels, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, _COMPONENTS))

    def bits(self, x: Tensor, *, learn: bool) -> Tensor:
        """Bits of each channel of an image, [C], a mean over the images of float32 [N, C, H, W].

        learn: the gradient is the density's own; otherwise it is that of ``x``.
        """
        parameters: tuple[Tensor, ...] = (self.weight, self.mean, self.log_scale)
        if learn:
            x = x.detach()
        else:
            parameters = tuple(one.detach() for one in parameters)
        weight, mean, log_scale = parameters
        at = x.transpose(0, 1).flatten(1)[:, None]
        scale = log_scale.clamp(-6.0, 6.0).exp()[..., None]
        upper = torch.sigmoid((at + 0.5 - mean[..., None]) / scale)
        lower = torch.sigmoid((at - 0.5 - mean[..., None]) / scale)
        share = torch.softmax(weight, dim=1)[..., None]
        probability = (share * (upper - lower)).sum(dim=1)
        return -probability.clamp_min(_SMALLEST).log2().sum(dim=1) / len(x)


class Bottleneck(nn.Module):
    """Encoder for the device, decoder for the server, and the density of what travels between them.

    Args:
        shape: (C, H, W) of the activation at the split; H and W multiples of the stride.
        code: what it becomes: (channels, H / stride, W / stride).

    Raises:
        ConfigError: sides that the stride does not divide.
    """

    def __init__(self, shape: tuple[int, int, int], code: BottleneckShape) -> None:
        super().__init__()
        channels, height, width = shape
        if height % code.stride or width % code.stride:
            raise ConfigError(f"a stride of {code.stride} does not divide a {height}x{width} activation")
        wide, steps = code.width, code.stride.bit_length() - 1
        widths = [channels] + [wide] * max(1, steps)
        encoder = [
            SubBlock(f"encoder{n}", ConvUnit(a, b, 3, stride=2 if n <= steps else 1))
            for n, (a, b) in enumerate(pairwise(widths), 1)
        ]
        encoder.append(SubBlock("encoder.symbols", ConvUnit(wide, code.channels, 1, relu=False)))
        decoder = [
            SubBlock("decoder1", ConvUnit(code.channels, 2 * wide, 3)),
            SubBlock("decoder2", ConvUnit(2 * wide, wide * code.stride**2, 1)),
        ]
        if code.stride > 1:
            decoder.append(SubBlock("decoder.shuffle", Shuffle(code.stride)))
        decoder.append(SubBlock("decoder3", ConvUnit(wide, channels, 3, relu=False)))
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        self.rounding, self.density = Rounding(), Density(code.channels)
        self.shape = (code.channels, height // code.stride, width // code.stride)
        self.hidden_shape = (wide, *self.shape[1:])
        # Whole numbers are the symbols: a deviation of 1 would leave next to nothing but zeros at first.
        last = encoder[-1].unit
        assert isinstance(last, ConvUnit)
        nn.init.constant_(last.norm.weight, _SPREAD)

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
        x = code + (torch.rand_like(code) - 0.5) if self.training else self.rounding(code)
        return self.density.bits(x, learn=False).sum(), self.density.bits(x, learn=True).sum()
