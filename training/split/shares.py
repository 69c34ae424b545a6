"""How a run's minutes are shared out: what comes after training is estimated first, training has the rest."""

from __future__ import annotations

import time
from dataclasses import dataclass

from offramp.training.data.datasets import Dataset
from offramp.training.split.build import CALIBRATION, TABLES
from offramp.training.split.rivals import FORMATS, MOST
from offramp.training.split.work import Clock

CLASSIFIER, CACHE = 0.43, 0.61
"""Where classifier and cached activations end, of the time for training; the code has the rest."""
LEAST, MOST_AFTER = 0.05, 0.5
"""Of all the time, for what comes after training."""
_FIXED_SECONDS = 40.0
"""Export, code tables and the rest, of processor time: measured with a network of 0.3 M weights."""
_MARGIN = 1.3
_QUANTIZED = 12 * CALIBRATION
"""Photos that quantization runs through a half, about."""
_PICTURE_SECONDS = 6e-8
"""To encode and decode a picture, for each of its pixels, about."""


@dataclass(frozen=True)
class Shares:
    """Shares of a clock's time at which a stage ends."""

    classifier: float
    cache: float
    code: float


def shares(clock: Clock, after: float) -> Shares:
    """The shares, from now on; after: seconds that quantization and report take."""
    total = clock.seconds
    if total is None:
        return Shares(1.0, 1.0, 1.0)
    code = 1 - min(MOST_AFTER, max(LEAST, after / total))
    begin = min(clock.spent / total, code)
    return Shares(begin + CLASSIFIER * (code - begin), begin + CACHE * (code - begin), code)


def slowness(clock: Clock) -> float:
    """Seconds for each second of processor time so far, 1 … 20: over 1 where others use the machine."""
    return min(20.0, max(1.0, clock.spent / max(1.0, time.process_time())))


def seconds_after(data: Dataset, each: float, *, models: int = 1, slow: float = 1.0) -> float:
    """What quantization, measuring and the report take, about.

    each: `photos.seconds_a_photo` of the unsplit model; models: that answer pictures; slow: `slowness`.
    """
    train, validation, test = (len(part) for part in (data.train, data.validation, data.test))
    compared = len(FORMATS) * min(MOST, test)
    photos = models * compared + 3 * test + validation + min(TABLES, train) + _QUANTIZED
    height, width = (int(side) for side in data.test.images.shape[2:])
    return slow * _FIXED_SECONDS + _MARGIN * (photos * each + compared * height * width * _PICTURE_SECONDS)
