"""What the same photos cost as pictures: WebP and JPEG to the unsplit model, also behind the early exit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from offramp.common.inputs.formats import Format, jpeg, sent, webp
from offramp.training.calibrate.frontier import THRESHOLDS
from offramp.training.calibrate.measure import Answers
from offramp.training.data.datasets import Labelled
from offramp.training.split.photos import Normalise, answers

FORMATS = (*map(webp, (1, 5, 10, 20, 35, 50, 75, 90)), *map(jpeg, (5, 10, 20, 50, 75)))
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


def compare(
    whole: Callable[[Tensor], Tensor],
    normalise: Normalise,
    test: Labelled,
    seen: Answers,
    payloads: NDArray[np.int64],
    *,
    formats: Sequence[Format] = FORMATS,
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
    for form in formats:
        sizes, decoded = sent(form, part.images)
        found = answers(whole, Labelled(decoded, part.labels), normalise)
        right = found.argmax(axis=1) == part.labels
        pictures.append(Point(form.name, float(sizes.mean()), float(right.mean())))
        if form.pillow == "WEBP":
            hybrids += [
                Point(
                    f"early exit at T_c = {at:g}, then {form.name}",
                    float(np.where(out, 0, sizes).mean()),
                    float(np.where(out, seen.early_right, right).mean()),
                )
                for at, out in zip(THRESHOLDS, exits, strict=True)
            ]
        tick()
    return Comparison(len(part), ours, tuple(pictures), tuple(hybrids))


def cheapest(points: Sequence[Point], accuracy: float) -> Point | None:
    """The point of fewest bytes with at least this accuracy; None if no point has it."""
    enough = [each for each in points if each.accuracy >= accuracy - 1e-12]
    return min(enough, key=lambda each: each.bytes_mean) if enough else None
