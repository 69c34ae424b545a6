"""Transform coding of what crosses at a cut: blocks of its map as a few numbers each, and back.

    z = a block of the map, in units of its channels' deviation        2ʰ × 2ʰ places of all C channels
    y = q · Uᵀ W z      ẑ = W⁻¹ U y / q                                U: eigenvectors of W Cov(z) W

With W = 1 that is the Karhunen-Loève transform, which loses the least of the map. The tail's answer does not
depend on all of it alike: W² is its Fisher information, the mean of g gᵀ over gradients g of the logarithm of
an answer drawn by its probability, so that the transform loses the least of the *answer*. One step size for
all coefficients, as reverse water-filling has it (Cover & Thomas, Elements of Information Theory, 10.3.3).
Training goes on from there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from offramp.training.losses import entropy_bits
from offramp.training.split.layout import Layout

TEMPERATURE = 2.0
"""Of the answers whose information is measured, and of the loss that follows (`fit`)."""
_FLOOR = 0.03
"""Added to W², of its mean eigenvalue: what looked indifferent on a few hundred photos may not be."""
_GRADIENTS, _COLUMNS, _BATCH = 768, 40_000, 48
"""Photos whose gradients, and blocks whose covariance, are measured."""
_STEPS = (2.0**-8, 2.0**5)
"""Between which q is sought."""
LARGEST = 3072
"""Values of a block, at most: the eigenvectors of so many are a matter of seconds."""


def blocks_of(side: int, halvings: int) -> tuple[int, int]:
    """How many blocks cover a side, and the places before it that the first one has."""
    size = 2**halvings
    count = -(-side // size)
    return count, -(-(count * size - side) // 2)


class Transform(nn.Module):
    """[N, *layout.shape] to coefficients [N, c, h, w], not yet rounded.

    Args:
        layout: of the tensor.
        channels: c.
        halvings: a block has 2^halvings places a side.
        mean, std: of each channel of the map, float32 [1, C, 1, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layout: Layout, channels: int, halvings: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.layout, self.size = layout, 2**halvings
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        source, height, width = layout.map_shape
        (high, above), (wide, left) = blocks_of(height, halvings), blocks_of(width, halvings)
        self.places = (high, wide)
        self.linear = nn.Conv2d(source, channels, self.size, self.size, (above, left))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.linear((self.layout.to_map(x) - self.mean) / self.std)
        return found


class Inverse(nn.Module):
    """Coefficients [N, c, h, w] to the map [N, C, H, W] in units of its channels' deviation."""

    def __init__(self, layout: Layout, channels: int, halvings: int) -> None:
        super().__init__()
        source, self.height, self.width = layout.map_shape
        size = 2**halvings
        self.above, self.left = blocks_of(self.height, halvings)[1], blocks_of(self.width, halvings)[1]
        self.linear = nn.Conv2d(channels, source * size * size, 1)
        self.shuffle = nn.PixelShuffle(size) if size > 1 else nn.Identity()

    def forward(self, coefficients: Tensor) -> Tensor:
        found: Tensor = self.shuffle(self.linear(coefficients))
        return found[:, :, self.above : self.above + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Fitted:
    """What `fit` found.

    deviation: of each coefficient, in symbols, float32 [c]; bytes: of a photo's coefficients, by entropy.
    """

    deviation: Tensor
    bytes: float


def fit(
    transform: Transform, inverse: Inverse, tail: nn.Module, activations: Tensor, *, target: float, seed: int
) -> Fitted:
    """Set both from activations, float32 [M, *layout.shape], so that a photo takes about ``target`` bytes.

    tail: from the activation to logits, frozen.
    """
    layout, channels = transform.layout, transform.linear.out_channels
    normalised = (layout.to_map(activations) - transform.mean) / transform.std
    columns = _blocks(normalised, transform).permute(1, 0, 2).flatten(1)
    columns = columns[:, :: max(1, columns.shape[1] // _COLUMNS)]
    covariance = columns @ columns.T / columns.shape[1]
    values, vectors = torch.linalg.eigh(_information(transform, tail, activations, seed))
    root = values.clamp_min(1e-12).sqrt()
    weight, back = (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
    # Ascending: the last are those with the most.
    forward = torch.linalg.eigh(weight @ covariance @ weight)[1][:, -channels:].flip(1)
    # An eigenvector's sign is arbitrary: the largest entry's is positive.
    largest = forward.gather(0, forward.abs().argmax(0, keepdim=True))
    forward = forward * largest.sign()
    coefficients = (forward.T @ weight) @ columns
    places = math.prod(transform.places)
    step = _step(coefficients, target * 8 / places)
    size, source = transform.size, transform.linear.in_channels
    with torch.no_grad():
        transform.linear.weight.copy_((forward.T @ weight * step).reshape(channels, source, size, size))
        inverse.linear.weight.copy_((back @ forward / step)[:, :, None, None])
        for each in (transform, inverse):
            cast(Tensor, each.linear.bias).zero_()
    rounded = (step * coefficients).round()
    return Fitted((step * coefficients).std(1), _bits(rounded) * places / 8)


def _blocks(map_: Tensor, transform: Transform) -> Tensor:
    """[N, C, H, W] as [N, C · size², blocks], values in the order of the transform's weights."""
    size = transform.size
    high, wide = transform.places
    top, left = cast(tuple[int, int], transform.linear.padding)
    height, width = map_.shape[2:]
    bottom, right = high * size - height - top, wide * size - width - left
    padded = functional.pad(map_, (left, right, top, bottom))
    return functional.pixel_unshuffle(padded, size).flatten(2)


def _information(transform: Transform, tail: nn.Module, activations: Tensor, seed: int) -> Tensor:
    """W²: how much an answer says of each direction of a block, on average, with a mean eigenvalue of 1."""
    layout, generator = transform.layout, torch.Generator().manual_seed(seed)
    size = transform.linear.in_channels * transform.size**2
    found = torch.zeros(size, size)
    every = max(1, len(activations) // _GRADIENTS)
    for some in torch.split(activations[::every][:_GRADIENTS], _BATCH):
        crossing = some.clone().requires_grad_(True)
        logs = functional.log_softmax(tail(crossing).float() / TEMPERATURE, dim=1)
        drawn = torch.multinomial(logs.detach().exp(), 1, generator=generator)
        (gradient,) = torch.autograd.grad(logs.gather(1, drawn).sum(), crossing)
        columns = _blocks(layout.to_map(gradient) * transform.std, transform).permute(1, 0, 2).flatten(1)
        found += columns @ columns.T
    trace = float(found.trace())
    eye = torch.eye(size)
    return eye if not 0 < trace < math.inf else (found * (size / trace) + _FLOOR * eye) / (1 + _FLOOR)


def _step(coefficients: Tensor, bits: float) -> float:
    """The q at which rounded coefficients [c, M] have an entropy of so many bits a block, by bisection."""
    low, high = (math.log(each) for each in _STEPS)
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _bits((math.exp(middle) * coefficients).round()) < bits else (low, middle)
        )
    return math.exp(low)


def _bits(rounded: Tensor) -> float:
    """Entropy of a block's symbols, bits, each channel with a table of its own."""
    counts = (channel.unique(return_counts=True)[1].double() for channel in rounded)
    return sum(float(entropy_bits(each / each.sum())) for each in counts)
