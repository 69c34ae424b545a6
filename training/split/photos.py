"""Photos as tensors for training: normalised, augmented, and through a network in batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.training.data.datasets import Labelled, cropped, pasted
from offramp.training.split.preprocessing import Preprocessing

BATCH = 64
_TIMED = 32
_AREA = 0.5
"""The least share of a photo that a random crop keeps."""


class Normalise:
    """uint8 [N, C, …] to the float32 numbers that a model expects: (x / 255 - mean) / std.

    mean, std: of each channel, or one for all.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean, self.std = mean, std
        self._scale = torch.tensor([1 / (255 * each) for each in std])
        self._shift = torch.tensor([-a / b for a, b in zip(mean, std, strict=True)])

    @classmethod
    def of(cls, expects: Preprocessing) -> Normalise:
        """What a model's makers state."""
        return cls(expects.mean, expects.std)

    def __call__(self, images: Tensor) -> Tensor:
        sides = (1, -1, *[1] * (images.ndim - 2))
        x = images.float() * self._scale.reshape(sides) + self._shift.reshape(sides)
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    def augmented(self, x: Tensor, *, flip: bool, mix: bool, generator: torch.Generator) -> Tensor:
        """Normalised inputs, each changed at random as photos may be: see `augmented`."""
        return augmented(x, flip=flip, mix=mix, generator=generator)


def augmented(x: Tensor, *, flip: bool, mix: bool, generator: torch.Generator) -> Tensor:
    """Normalised photos [N, 3, H, W], each cropped at random and, with ``flip``, half of them mirrored.

    mix: half of the batches get a part of the photo before each (CutMix); only for labels of a teacher.
    """
    if flip:
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    x = cropped(x, area=_AREA, generator=generator)
    if mix and torch.rand((), generator=generator) < 0.5:
        x = pasted(x, generator=generator)
    return x.contiguous(memory_format=torch.channels_last)


def fast() -> AbstractContextManager[object]:
    """bfloat16 where this CPU multiplies it faster, else float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=_has_bfloat16())


def _has_bfloat16() -> bool:
    """Whether the CPU has matrix instructions for it; elsewhere it is slower than float32."""
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(asked and asked())


def batches(images: NDArray[np.uint8]) -> Iterator[Tensor]:
    """uint8 [N, 3, H, W] in parts."""
    for start in range(0, len(images), BATCH):
        yield torch.from_numpy(images[start : start + BATCH])


@torch.inference_mode()
def answers(network: Callable[[Tensor], Tensor], data: Labelled, normalise: Normalise) -> NDArray[np.float32]:
    """Logits, float32 [N, K], of a network in evaluation; float32 arithmetic."""
    found = [network(normalise(images)).float() for images in batches(data.images)]
    return torch.cat(found).numpy()


def seconds_a_photo(whole: Callable[[Tensor], Tensor], data: Labelled, normalise: Normalise) -> float:
    """What the unsplit model takes for a photo here, in batches, float32."""
    images = normalise(torch.from_numpy(data.images[:_TIMED]))
    seconds = 0.0
    with torch.inference_mode():
        for _ in range(2):
            # The first warms caches up.
            began = time.perf_counter()
            whole(images)
            seconds = time.perf_counter() - began
    return seconds / len(images)
