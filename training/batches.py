"""The training images as batches: shuffled, augmented, and this process's share of each.

On a GPU the images lie in its memory, where all of that happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from offramp.training import processes
from offramp.training.data.datasets import augment, cropped, pasted, recompressed, to_float
from offramp.training.data.recipe import DataRecipe
from offramp.training.stages.stage import StageRecipe


class Batches:
    """Batches of one stage.

    Args:
        images: uint8 [N, 3, H, W], on the device.
        labels: int64 [N], on the device.
        settings: the stage's.
        data: how far images are shifted, and whether they are mirrored.
        size: images in a batch, of all processes together.
        generator: the only source of random numbers, the same in all processes.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        settings: StageRecipe,
        data: DataRecipe,
        size: int,
        generator: torch.Generator,
    ) -> None:
        self._images, self._labels = images, labels
        self._settings, self._data, self._size = settings, data, size
        self.generator = generator
        self.steps = max(1, min(len(labels), settings.images or len(labels)) // size)
        """In an epoch."""

    @cached_property
    def _seen(self) -> Tensor:
        """The N labelled images in V versions, uint8 [V · N, 3, H, W], all of a version together.

        Made at the first step: a stage that its checkpoint has done needs none.
        """
        qualities = self._settings.qualities()
        if not qualities:
            return self._images
        pictures = self._images.cpu().numpy()
        versions = (torch.from_numpy(recompressed(pictures, quality)) for quality in qualities)
        return torch.cat([self._images, *(one.to(self._images.device) for one in versions)])

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """float32 images [n, 3, h, w] and labels [n] of each step of an epoch, from 0."""
        generator, data, size = self.generator, self._data, self._size
        order = torch.randperm(len(self._labels), generator=generator, device=generator.device)
        versions = len(self._seen) // len(self._labels)
        for step in range(self.steps):
            index = order[step * size : (step + 1) * size]
            at = index
            if versions > 1:
                version = torch.randint(versions, index.shape, generator=generator, device=generator.device)
                at = index + version * len(self._labels)
            batch = augment(self._seen[at], shift=data.shift, flip=data.flip, generator=generator)
            images = self._framed(prepared(batch, self._images.device), number)
            yield images, processes.own(self._labels[index])

    def _framed(self, images: Tensor, epoch: int) -> Tensor:
        settings = self._settings
        if settings.crop < 1:
            images = cropped(images, area=settings.crop, generator=self.generator)
        # Each process has as many of them as it would have of a batch of its share's size.
        many = processes.count()
        if unlabelled := many * settings.unlabelled(len(images) // many):
            over = pasted(images[:unlabelled], generator=self.generator)
            images = torch.cat([over, images[unlabelled:]])
        images = processes.own(images)
        if side := settings.side(epoch):
            images = nn.functional.interpolate(images, size=side, mode="area")
        return images.contiguous(memory_format=torch.channels_last)


def prepared(images: Tensor, device: torch.device) -> Tensor:
    """uint8 images [N, 3, H, W] as networks take them, float32 on a device."""
    return to_float(images.to(device)).contiguous(memory_format=torch.channels_last)
