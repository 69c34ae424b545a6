"""Ways to have images classified, with what each sends and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offramp.bench.answers import head_answers, whole_answers
from offramp.bench.labels import open_picture
from offramp.common.bundle.load import Bundle
from offramp.common.inputs.pictures import to_input
from offramp.common.part.answer import Replies
from offramp.common.part.engine import Engine
from offramp.common.wire.picture import decode_picture, encode_picture

QUALITIES = (5, 10, 20, 30, 50, 75, 90)
EARLY_EXIT, WHOLE_HERE = "early exit alone", "whole model on the device"


@dataclass
class Way:
    """One way to have images classified, and what the graphs say it answers."""

    name: str
    kind: str
    """``offramp``, ``device`` (nothing is sent) or ``rival``."""
    sent: NDArray[np.bool_]
    """Which images go to the server, [N]."""
    best: NDArray[np.int64]
    """The class that each gets, [N]."""
    flags: list[str] = field(default_factory=list)


def thresholds_of(bundle: Bundle) -> list[float]:
    """T_c of the bundle, that of its best measured accuracy (the lowest such), and 1."""
    points = bundle.manifest.figures.thresholds
    best = max(points, key=lambda point: (point.accuracy, -point.threshold)).threshold if points else 0.9
    return sorted({bundle.manifest.threshold, best, 1.0})


def ways_of(
    bundle: Bundle, paths: Sequence[Path], truth: Sequence[int], thresholds: Sequence[float]
) -> list[Way]:
    """All ways, with what each sends and answers, by running the graphs here."""
    engine = Engine(bundle)
    preprocessing = bundle.manifest.preprocessing
    pixels = np.stack([to_input(open_picture(path), preprocessing) for path in paths])
    _, early = head_answers(engine, pixels)
    confidence, exits = early.max(axis=1), early.argmax(axis=1)
    answered = whole_answers(engine, pixels)
    whole, rule = answered.best, bundle.manifest.sent_answer
    every, none = np.ones(len(paths), bool), np.zeros(len(paths), bool)
    ways = [
        Way(
            f"Offramp, T_c = {t:g}",
            "offramp",
            confidence <= t,
            np.where(confidence <= t, answered.answers(early, rule), exits),
            [f"{t!r}"],
        )
        for t in thresholds
    ]
    ways.append(Way("raw INT8 activation", "rival", every, whole, ["--send", "activation"]))
    quality, pictured = _least_quality(engine, pixels, np.array(truth), whole)
    flags = ["--send", "picture", "--quality", str(quality)]
    ways.append(Way(f"WebP {quality}", "rival", every, pictured.best, flags))
    own = bundle.manifest.threshold
    unsure = confidence <= own
    ways.append(
        Way(
            f"early exit + WebP {quality}, T_c = {own:g}",
            "rival",
            unsure,
            np.where(unsure, pictured.answers(early, rule), exits),
            [*flags, "--threshold", repr(own)],
        )
    )
    ways.append(Way(EARLY_EXIT, "device", none, exits, ["0"]))
    ways.append(Way(WHOLE_HERE, "device", none, whole, ["--send", "nothing"]))
    return ways


def _least_quality(
    engine: Engine, pixels: NDArray[np.uint8], truth: NDArray[np.int64], whole: NDArray[np.int64]
) -> tuple[int, Replies]:
    """The lowest WebP quality at which the whole model is as accurate as on the images; else the highest."""
    _, height, width = pixels[0].shape
    for quality in QUALITIES:
        coded = [decode_picture(encode_picture(image, quality), height, width) for image in pixels]
        answered = whole_answers(engine, np.stack(coded))
        if (answered.best == truth).mean() >= (whole == truth).mean():
            break
    return quality, answered
