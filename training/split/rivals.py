"""What the same photos cost as pictures: WebP and JPEG to the unsplit model, also behind the early exit."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from offramp.training.calibrate.frontier import THRESHOLDS
from offramp.training.calibrate.measure import Answers
from offramp.training.data.datasets import Labelled
from offramp.training.split.photos import Normalise, answers

FORMATS: tuple[tuple[str, int], ...] = (
    *(("WebP", quality) for quality in (1, 5, 10, 20, 35, 50, 75, 90)),
    *(("JPEG", quality) for quality in (5, 10, 20, 50, 75)),
)
MOST = 1000
"""Photos of the test part on which pictures are compared."""


@dataclass(frozen=True)
class Point:
    """One way to run: its name, mean bytes of a photo over all photos, and the share that is right."""

    name: str
    bytes_mean: float
    accuracy: float


@dataclass(frozen=True)
class Comparison:
    """All points, measured on the same photos.

    ours: at every T_c; pictures: every photo sent; hybrids: those that the early exit is unsure of sent.
    """

    photos: int
    ours: tuple[Point, ...]
    pictures: tuple[Point, ...]
    hybrids: tuple[Point, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def coded(images: NDArray[np.uint8], name: str, quality: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Bytes of each photo, uint8 [N, 3, H, W], as such a file, int64 [N], and what it decodes to."""
    sizes, decoded = np.empty(len(images), np.int64), np.empty_like(images)
    for number, image in enumerate(images):
        buffer = io.BytesIO()
        options = {"method": 6} if name == "WebP" else {"optimize": True}
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        picture.save(buffer, name, quality=quality, **options)
        sizes[number] = buffer.tell()
        with Image.open(buffer) as read:
            decoded[number] = np.asarray(read.convert("RGB"), np.uint8).transpose(2, 0, 1)
    return sizes, decoded


def compare(
    whole: Callable[[Tensor], Tensor],
    normalise: Normalise,
    test: Labelled,
    seen: Answers,
    payloads: NDArray[np.int64],
    *,
    formats: Sequence[tuple[str, int]] = FORMATS,
    tick: Callable[[], object] = lambda: None,
) -> Comparison:
    """Measure pictures and the pair on at most `MOST` of the test photos.

    Args:
        whole: the unsplit model, in evaluation; it was not trained on such pictures.
        seen: the pair's answers to all test photos; payloads: bytes of each, int64 [N].
        tick: called after each format.
    """
    index = np.arange(0, len(test), -(-len(test) // MOST))
    part, seen, payloads = test.take(index), seen.take(index), payloads[index]
    exits = [seen.exits(at) for at in THRESHOLDS]
    ours = tuple(
        Point(f"T_c = {at:g}", float(np.where(out, 0, payloads).mean()), seen.accuracy(at))
        for at, out in zip(THRESHOLDS, exits, strict=True)
    )
    pictures, hybrids = [], []
    for name, quality in formats:
        sizes, decoded = coded(part.images, name, quality)
        found = answers(whole, Labelled(decoded, part.labels), normalise)
        right = found.argmax(axis=1) == part.labels
        label = f"{name} {quality}"
        pictures.append(Point(label, float(sizes.mean()), float(right.mean())))
        if name == "WebP":
            hybrids += [
                Point(
                    f"early exit at T_c = {at:g}, then {label}",
                    float(np.where(out, 0, sizes).mean()),
                    float(np.where(out, seen.early_right, right).mean()),
                )
                for at, out in zip(THRESHOLDS, exits, strict=True)
            ]
        tick()
    return Comparison(len(part), ours, tuple(pictures), tuple(hybrids))


def cheapest(points: Sequence[Point], accuracy: float) -> Point | None:
    """The point of fewest bytes with at least this accuracy; None where there is none."""
    enough = [each for each in points if each.accuracy >= accuracy - 1e-12]
    return min(enough, key=lambda each: each.bytes_mean) if enough else None


@torch.inference_mode()
def unsplit(whole: Callable[[Tensor], Tensor], data: Labelled, normalise: Normalise) -> NDArray[np.float32]:
    """Logits of the unsplit model, float32 [N, K]."""
    return answers(whole, data, normalise)
