"""Activations to measure coders on: what a bundle's head makes of pictures, and synthetic ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offramp.common.bundle.load import Bundle
from offramp.common.codec.activation import Shape, Symbols
from offramp.common.codec.huffman import SYMBOLS
from offramp.common.errors import DataError
from offramp.common.part.engine import Engine
from offramp.device.sources.source import Source

Variant = Literal["alike", "different"]
"""Whether a synthetic activation's channels have one distribution, or each a mean and scale of its own."""
SCALE_SPREAD = 0.7
"""Standard deviation of the logarithm of a channel's scale, where channels are different."""


def bundle_activations(bundle: Bundle, images: Path, tick: Callable[[], object] = lambda: None) -> Symbols:
    """Symbols of a folder's inputs, uint8 [N, C, H, W]. Raises ConfigError, DataError or BundleError."""
    engine = Engine(bundle)
    found = []
    for item in Source([images], bundle.manifest.input):
        if isinstance(item.image, DataError):
            raise item.image
        found.append(engine.head(item.image[None])[0])
        tick()
    if len(found) < 2:
        raise DataError(f"{images}: has {len(found)} inputs, expected two at least: tables need their own")
    return np.concatenate(found)


@dataclass(frozen=True)
class Synthetic:
    """A source of activations: independent symbols of a discretised Laplace distribution in each channel.

    bits: mean entropy of a symbol, given its channel. The scale that has it is found by bisection.
    """

    shape: Shape
    bits: float
    variant: Variant
    seed: int = 0

    def channel_probabilities(self) -> NDArray[np.float64]:
        """Probability of each symbol in each channel, [C, 256]."""
        channels = self.shape[0]
        rng = np.random.default_rng((self.seed, channels))
        means = np.full(channels, 128)
        spread = np.ones(channels)
        if self.variant == "different":
            means = rng.integers(64, 193, channels)
            spread = np.exp(rng.normal(0, SCALE_SPREAD, channels))
        low, high = 1e-3, 1e3
        for _ in range(60):
            scale = float(np.sqrt(low * high))
            probabilities = _laplace(means, scale * spread)
            if _mean_entropy(probabilities) < self.bits:
                low = scale
            else:
                high = scale
        return probabilities

    def frames(self, count: int, stream: int) -> Symbols:
        """Activations, uint8 [count, C, H, W]; each ``stream`` is independent of the others."""
        _, height, width = self.shape
        rng = np.random.default_rng((self.seed, stream, int(self.bits * 1000), *self.shape))
        symbols = np.empty((count, *self.shape), np.uint8)
        for channel, cumulative in enumerate(self.channel_probabilities().cumsum(axis=1)):
            drawn = np.searchsorted(cumulative, rng.random(count * height * width), side="right")
            symbols[:, channel] = drawn.clip(0, SYMBOLS - 1).reshape(count, height, width)
        return symbols


def _laplace(means: NDArray[np.int64], scales: NDArray[np.float64]) -> NDArray[np.float64]:
    distance = np.abs(np.arange(SYMBOLS) - means[:, None]) / scales[:, None]
    weights = np.exp(-distance)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _mean_entropy(probabilities: NDArray[np.float64]) -> float:
    seen = np.where(probabilities > 0, probabilities, 1.0)
    return float(-(seen * np.log2(seen)).sum(axis=1).mean())
