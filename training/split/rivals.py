"""What the same photos cost as pictures: WebP and JPEG to the unsplit model, also behind the early exit.

A model that never saw a WebP of few bytes answers them worse than it could. For a fair comparison it is tuned
on such pictures first, and each format is answered by whichever of the two is right more often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offramp.common.inputs.formats import Format, jpeg, sent, webp
from offramp.training.calibrate.frontier import THRESHOLDS
from offramp.training.calibrate.measure import Answers
from offramp.training.data.datasets import Labelled
from offramp.training.split.capture import Captured
from offramp.training.split.classifier import BATCH, MOST_EPOCHS, Settings, tune
from offramp.training.split.photos import Normalise, answers
from offramp.training.split.work import Clock, Pace, Stage

_WEBP = (*map(webp, (1, 5, 10, 20, 35, 50, 75, 90)),)
FORMATS = (*_WEBP, *map(jpeg, (5, 10, 20, 50, 75)))
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
    tuned: epochs for which a copy of the unsplit model was tuned on WebP; 0: none was.
    """

    photos: int
    ours: tuple[Point, ...]
    pictures: tuple[Point, ...]
    hybrids: tuple[Point, ...]
    tuned: float = 0

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """The pair on at most `MOST` of the test inputs.

    part, seen: these inputs, and the pair's answers to them.
    ours: its points at every T_c; exits: which of the inputs exit early at each, bool [N].
    """

    part: Labelled
    seen: Answers
    ours: tuple[Point, ...]
    exits: tuple[NDArray[np.bool_], ...]

    @classmethod
    def of(cls, test: Labelled, seen: Answers, payloads: NDArray[np.int64]) -> Self:
        """Of all test inputs, the pair's answers, and bytes of each, int64 [N]."""
        index = np.arange(0, len(test), -(-len(test) // MOST))
        part, seen, payloads = test.take(index), seen.take(index), payloads[index]
        exits = tuple(seen.exits(at) for at in THRESHOLDS)
        ours = tuple(
            Point(f"T_c = {at:g}", float(np.where(out, 0, payloads).mean()), seen.accuracy(at))
            for at, out in zip(THRESHOLDS, exits, strict=True)
        )
        return cls(part, seen, ours, exits)

    def hybrids(self, name: str, sizes: NDArray[np.int64], right: NDArray[np.bool_]) -> list[Point]:
        """The same early exit at every T_c, then a format of these bytes, right where ``right`` says so."""
        return [
            Point(
                f"early exit at T_c = {at:g}, then {name}",
                float(np.where(out, 0, sizes).mean()),
                float(np.where(out, self.seen.early_right, right).mean()),
            )
            for at, out in zip(THRESHOLDS, self.exits, strict=True)
        ]


def compare(
    models: Sequence[Callable[[Tensor], Tensor]],
    normalise: Normalise,
    test: Labelled,
    seen: Answers,
    payloads: NDArray[np.int64],
    *,
    tuned: float = 0,
    formats: Sequence[Format] = FORMATS,
    tick: Callable[[], object] = lambda: None,
) -> Comparison:
    """Measure pictures and the pair on at most `MOST` of the test photos.

    Args:
        models: the unsplit model, in evaluation, and where there is one, its copy that was tuned on WebP.
        seen: the pair's answers to all test photos; payloads: bytes of each, int64 [N].
        tick: called after each format.
    """
    pair = Measured.of(test, seen, payloads)
    part = pair.part
    pictures, hybrids = [], []
    for form in formats:
        sizes, decoded = sent(form, part.images)
        coded = Labelled(decoded, part.labels)
        rights = [answers(each, coded, normalise).argmax(axis=1) == part.labels for each in models]
        right = max(rights, key=lambda each: int(each.sum()))
        pictures.append(Point(form.name, float(sizes.mean()), float(right.mean())))
        if form.pillow == "WEBP":
            hybrids += pair.hybrids(form.name, sizes, right)
        tick()
    return Comparison(len(part), pair.ours, tuple(pictures), tuple(hybrids), tuned)


def tune_on_pictures(
    module: nn.Module,
    captured: Captured,
    data: Labelled,
    normalise: Normalise,
    *,
    flip: bool,
    seed: int,
    stage: Stage,
    minutes: float,
    tick: Callable[[int, int, float | None], object] = lambda *_: None,
) -> float:
    """Tune a copy of the unsplit model on WebP of its training photos, every batch at another quality.

    ``module`` itself is changed; ``captured`` is its graph. Returns for how many epochs it was tuned.
    """

    def changed(images: NDArray[np.uint8], generator: torch.Generator) -> NDArray[np.uint8]:
        form = _WEBP[int(torch.randint(0, len(_WEBP), (), generator=generator))]
        return sent(form, images)[1]

    an_epoch = max(1, len(data) // BATCH)
    pace = Pace(None, MOST_EPOCHS * an_epoch)
    settings = Settings("keep", None, flip, seed)
    clock = Clock(60 * minutes)
    tune(
        module, captured, data, normalise, settings, stage, clock, pace, until=1.0, tick=tick, changed=changed
    )
    return pace.step / an_epoch


def cheapest(points: Sequence[Point], accuracy: float) -> Point | None:
    """The point of fewest bytes with at least this accuracy; None if no point has it."""
    enough = [each for each in points if each.accuracy >= accuracy - 1e-12]
    return min(enough, key=lambda each: each.bytes_mean) if enough else None
