"""The unsplit classifier as a bundle: what crosses at the cut is sent as it is, at 8 bits a value.

A server answers pictures with it (``cloud-server --pictures``), and a comparison needs it: a pair whose code
is narrow answers a picture no better than its code allows.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from offramp.common.errors import ConfigError
from offramp.training.split.code import Code, Features
from offramp.training.split.layout import Layout

STEPS = 20.0
"""Symbols in a channel's deviation: 8 bits reach 6.4 deviations to either side."""


class _Map(nn.Module):
    """[N, *layout.shape] to a map [N, C, H, W], ``factor`` for its channels' deviation."""

    def __init__(self, features: Features, factor: float = 1.0) -> None:
        super().__init__()
        self.layout, self.factor = features.layout, factor
        self.register_buffer("mean", features.mean.clone())
        self.register_buffer("std", features.std.clone())

    def forward(self, x: Tensor) -> Tensor:
        found = (self.layout.to_map(x) - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        return found if self.factor == 1 else found * self.factor


class _Back(nn.Module):
    """Symbols, float32 [N, C, H, W], to what the tail takes."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.layout = features.layout
        self.register_buffer("mean", features.mean.clone())
        self.register_buffer("std", features.std.clone() / STEPS)

    def forward(self, symbols: Tensor) -> Tensor:
        return self.layout.from_map(symbols * cast(Tensor, self.std) + cast(Tensor, self.mean))


class WholeCode(nn.Module):
    """A code that learns nothing and loses only the rounding; the early exit is that of a fitted `Code`.

    Raises ConfigError for tokens with a class token, which a map has no place for.
    """

    def __init__(self, fitted: Code) -> None:
        super().__init__()
        self.layout: Layout = fitted.layout
        if self.layout.extra:
            raise ConfigError(
                "--whole: a class token crosses at the cut; expected a map, or tokens without one"
            )
        self.symbols_shape = self.layout.map_shape
        self.features = _Map(fitted.features)
        self.transform = _Map(fitted.features, STEPS)
        self.correction = None
        self.exit = nn.Sequential(fitted.features.layers, fitted.exit)
        self.decoder = _Back(fitted.features)
        self.eval()

    def encode(self, x: Tensor, features: Tensor) -> Tensor:
        """As `Code.encode`."""
        found: Tensor = self.transform(x)
        return found
