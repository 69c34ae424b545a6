"""Labelled images in three disjoint parts, and how pixels become the numbers that the network sees.

    train        gradient steps
    validation   choosing epochs, thresholds, quantization ranges and codebooks
    test         reported figures, nothing else

`sources` reads a `Source`, all of its images in memory; `split` takes the parts.
"""

from __future__ import annotations

import csv
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from offramp.common import cpus
from offramp.common.errors import ConfigError, DataError

# Real value of a pixel p: (p - PIXEL_ZERO) * PIXEL_SCALE. One scale and zero point that uint8 holds exactly,
# so that a quantized graph takes the pixels as they are. It spans [-2, 1.98], about what per-channel
# normalisation gives.
PIXEL_SCALE = 1 / 64
PIXEL_ZERO = 128

# Of a crop: the longer side over the shorter one.
_LONGEST = 4 / 3


@dataclass(frozen=True)
class Labelled:
    """uint8 images [N, 3, H, W] (RGB) and int64 labels [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64]) -> Labelled:
        """The images and labels at these positions."""
        return Labelled(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Source:
    """Everything that a source has: names of classes by label, and a test part where it keeps one apart."""

    name: str
    classes: tuple[str, ...]
    everything: Labelled
    """All images but those of ``test``."""
    test: Labelled | None = None


@dataclass(frozen=True)
class Dataset:
    """A source after the split; ``sha256`` identifies all of its images and labels, in the source's order."""

    name: str
    classes: tuple[str, ...]
    train: Labelled
    validation: Labelled
    test: Labelled
    sha256: str


def to_float(images: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] to the float32 numbers that the network sees (`PIXEL_SCALE`, `PIXEL_ZERO`)."""
    return (images.float() - PIXEL_ZERO) * PIXEL_SCALE


def to_pixels(images: Tensor) -> Tensor:
    """`to_float` undone, float32 [N, 3, H, W] to uint8; what lies between two values is rounded."""
    return (images / PIXEL_SCALE + PIXEL_ZERO).round().clamp(0, 255).to(torch.uint8)


def augment(images: Tensor, *, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Move each image by up to ``shift`` pixels each way, its edges repeated, and mirror half of them if
    ``flip``.

    uint8 [N, 3, H, W] to the same shape, on the same device; draws from ``generator`` only, on its device.
    """
    count, _, height, width = images.shape
    device, drawn = images.device, generator.device
    moved = torch.randint(-shift, shift + 1, (2, count, 1), generator=generator, device=drawn)
    dy, dx = moved.to(device)
    rows = (torch.arange(height, device=device) + dy).clamp_(0, height - 1)
    columns = (torch.arange(width, device=device) + dx).clamp_(0, width - 1)
    if flip:
        mirrored = (torch.rand(count, 1, generator=generator, device=drawn) < 0.5).to(device)
        columns = torch.where(mirrored, columns.flip(1), columns)
    item = torch.arange(count, device=device)[:, None, None]
    # Indexing with the channel axis in the middle puts it last.
    return images[item, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cropped(images: Tensor, *, area: float, generator: torch.Generator) -> Tensor:
    """A part of each image, of random place, shape (3:4 … 4:3) and area (``area`` … 1), over the whole frame.

    float [N, C, H, W] to the same shape, on the same device; draws from ``generator`` only, on its device.
    """
    count, device = len(images), images.device
    drawn = torch.rand(4, count, generator=generator, device=generator.device).to(device)
    share = area + (1 - area) * drawn[0]
    ratio = (_LONGEST ** (2 * drawn[1] - 1)).sqrt()
    sides = torch.stack([share.sqrt() * ratio, share.sqrt() / ratio]).clamp_(max=1)
    middles = (2 * drawn[2:] - 1) * (1 - sides)
    lines = torch.zeros(count, 2, 3, device=device)
    lines[:, 0, 0], lines[:, 1, 1] = sides
    lines[:, :, 2] = middles.T
    grid = functional.affine_grid(lines, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def pasted(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Over each image a part of the one before it, in its place (CutMix, Yun et al. 2019).

    The part has the image's shape, a random middle and a random share, 0 … 1, of its area; what of it lies
    outside is cut off.

    float [N, C, H, W] to the same shape, on the same device; draws from ``generator`` only, on its device.
    """
    count, _, height, width = images.shape
    share, *middle = torch.rand(3, count, generator=generator, device=generator.device).to(images.device)
    rows, columns = (
        (((torch.arange(length, device=images.device) + 0.5) / length) - at[:, None]).abs()
        < share.sqrt()[:, None] / 2
        for length, at in zip((height, width), middle, strict=True)
    )
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], images.roll(1, 0), images)


def recompressed(images: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """What WebP of a quality, 0 … 100, leaves of each image, uint8 [N, 3, H, W]."""
    found = np.empty_like(images)

    def one(number: int) -> None:
        image = np.ascontiguousarray(images[number].transpose(1, 2, 0))
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "WEBP", quality=quality)
        with Image.open(buffer) as picture:
            found[number] = np.asarray(picture.convert("RGB"), np.uint8).transpose(2, 0, 1)

    # Both codecs let go of the interpreter's lock.
    with ThreadPoolExecutor(cpus.available()) as pool:
        for _ in pool.map(one, range(len(images))):
            pass
    return found


def split(source: Source, *, validation: float, test: float | None = None, seed: int) -> Dataset:
    """A source in three parts, by class: each part has the same share of every class, up to rounding.

    Args:
        source: what to split. A test part of its own stays as it is.
        validation: share of the images for validation.
        test: share of the images for test; None for a source with a test part of its own.
        seed: decides which images; the same seed gives the same split everywhere.

    Raises:
        ConfigError: shares that leave nothing to train on.
        DataError: a class with too few images to be in every part.
    """
    if validation + (test or 0) >= 1:
        raise ConfigError(f"validation {validation} and test {test} leave no images to train on")
    everything = source.everything
    rng = np.random.default_rng(seed)
    parts: tuple[list[NDArray[np.int64]], ...] = ([], [], [])
    for label, class_name in enumerate(source.classes):
        members = rng.permutation(np.flatnonzero(everything.labels == label))
        n_test, n_validation = (int(np.ceil(len(members) * share)) for share in (test or 0, validation))
        cuts = np.split(members, [n_test, n_test + n_validation])
        if any(len(cut) == 0 for cut in (cuts if source.test is None else cuts[1:])):
            wanted = "train, validation and test" if source.test is None else "train and validation"
            raise DataError(f"class {class_name!r} has {len(members)} images: too few for {wanted}")
        for part, cut in zip(parts, cuts, strict=True):
            part.append(cut)
    test_part, validation_part, train_part = (
        everything.take(np.sort(np.concatenate(part))) for part in parts
    )
    digest = hashlib.sha256()
    for part_of in (everything, *([] if source.test is None else [source.test])):
        digest.update(part_of.images.tobytes() + part_of.labels.astype("<i8").tobytes())
    return Dataset(
        source.name,
        source.classes,
        train_part,
        validation_part,
        test_part if source.test is None else source.test,
        digest.hexdigest(),
    )


def write_images(part: Labelled, classes: tuple[str, ...], folder: Path) -> None:
    """Write PNG files, grey where all three channels agree, and ``labels.csv`` with ``file,label`` rows."""
    folder.mkdir(parents=True, exist_ok=True)
    width = len(str(len(part) - 1))
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["file", "label"])
        for number, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
            name = f"{number:0{width}}.png"
            grey = bool((image == image[:1]).all())
            pixels = image[0] if grey else np.ascontiguousarray(image.transpose(1, 2, 0))
            Image.fromarray(pixels).save(folder / name, optimize=True)
            rows.writerow([name, classes[label]])
