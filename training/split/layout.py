"""What crosses at a cut, as a map [C, H, W] and back: convolutional maps, channels last, tokens, vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.common.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """How the tensor at a cut is laid out.

    shape: of the tensor, without the batch.
    kind: ``map`` [C, H, W], ``last`` [H, W, C], ``tokens`` [T, C] or ``vector`` [C].
    extra: tokens before the square of patches: 1 where there is a class token.
    """

    shape: tuple[int, ...]
    kind: str
    extra: int = 0

    @classmethod
    def of(cls, shape: tuple[int, ...], name: str = "the cut") -> Layout:
        """The layout of a tensor of this shape. Raises ConfigError for one that is not a map or a square."""
        if len(shape) == 1:
            return cls(shape, "vector")
        if len(shape) == 2:
            tokens, channels = shape
            for extra in (0, 1):
                if (side := math.isqrt(max(0, tokens - extra))) and side**2 == tokens - extra:
                    return cls(shape, "tokens", extra)
            raise ConfigError(
                f"{name}: {tokens} tokens of {channels} values cross there; expected a square number of "
                "tokens, with or without a class token"
            )
        if len(shape) == 3:
            last = shape[0] == shape[1] and shape[1] != shape[2]
            return cls(shape, "last" if last else "map")
        raise ConfigError(
            f"{name}: a tensor of shape {'×'.join(map(str, shape))} crosses there; expected a map C×H×W, "
            "tokens T×C or a vector"
        )

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the map, without extra tokens."""
        if self.kind == "vector":
            return self.shape[0], 1, 1
        if self.kind == "tokens":
            side = math.isqrt(self.shape[0] - self.extra)
            return self.shape[1], side, side
        if self.kind == "last":
            return self.shape[2], self.shape[0], self.shape[1]
        return self.shape[0], self.shape[1], self.shape[2]

    def to_map(self, x: Tensor) -> Tensor:
        """[N, *shape] to [N, C, H, W]."""
        channels, height, width = self.map_shape
        if self.kind == "tokens":
            patches = x[:, self.extra :] if self.extra else x
            return patches.transpose(1, 2).reshape(-1, channels, height, width)
        if self.kind == "last":
            return x.permute(0, 3, 1, 2)
        return x.reshape(-1, channels, height, width) if self.kind == "vector" else x

    def extra_of(self, x: Tensor) -> Tensor:
        """The class token of [N, T, C], [N, C, 1, 1]."""
        return x[:, :1].reshape(-1, self.shape[1], 1, 1)

    def from_map(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """`to_map` undone, with the class token [N, C, 1, 1] where there is one."""
        channels, height, width = self.map_shape
        if self.kind == "tokens":
            patches = x.reshape(-1, channels, height * width).transpose(1, 2)
            if extra is None:
                return patches
            return torch.cat([extra.reshape(-1, 1, channels), patches], dim=1)
        if self.kind == "last":
            return x.permute(0, 2, 3, 1)
        return x.reshape(-1, channels) if self.kind == "vector" else x
