"""A bundle's score for unknown inputs (``common/part/unknown.py``), fitted to inputs that it knows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from offramp.common.bundle.unknown import NUMBERS, Unknown
from offramp.common.errors import DataError
from offramp.common.part.engine import softmax
from offramp.common.part.unknown import UnknownScore, features
from offramp.training.calibrate.measure import Answers

FALSE_ALARMS = 0.05
"""Share of known inputs that may be called unknown, where nobody says another."""
FITTED = 2000
"""Known inputs that centres and deviations are measured on, at most."""
LEAST_DEVIATION = 0.05
"""In symbols: a channel that never changes would make any change count for everything."""
_FEW = 5
"""Inputs of a class below which its centre is that of all."""


def fit_unknown(known: Answers, held_out: Answers, false_alarms: float = FALSE_ALARMS) -> Unknown:
    """Centres and deviations of known inputs, and a threshold on others of them.

    Args:
        known: of known inputs; training images will do. Their labels are not used.
        held_out: of others, such as validation images, which choose the threshold.
        false_alarms: share of known inputs beyond the threshold.

    Raises DataError for too few inputs.
    """
    if len(known) < 2:
        raise DataError(f"{len(known)} images to measure, expected 2 at least")
    found, classes = features(known.symbols), known.early.argmax(axis=1)
    count, everything = known.early.shape[1], found.mean(axis=0)
    if count * len(everything) > NUMBERS:
        centres, own = everything[None], np.zeros(len(found), np.int64)
    else:
        members = [found[classes == number] for number in range(count)]
        centres = np.stack([each.mean(axis=0) if len(each) >= _FEW else everything for each in members])
        own = classes
    deviations = np.maximum((found - centres[own]).std(axis=0), LEAST_DEVIATION)
    # What is stored is what the threshold is chosen with.
    fitted = Unknown(
        centres=[_short(centre) for centre in centres],
        deviations=_short(deviations),
        threshold=0.0,
        false_alarms=false_alarms,
    )
    return with_threshold(fitted, held_out)


def unknown_or_none(known: Answers, held_out: Answers) -> Unknown | None:
    """What `offramp split` writes by itself: None where too few images are held out to choose by."""
    try:
        return fit_unknown(known, held_out)
    except DataError:
        return None


def with_threshold(unknown: Unknown, held_out: Answers) -> Unknown:
    """The same with the threshold that these known inputs choose. Raises DataError for too few of them."""
    least = math.ceil(2 / unknown.false_alarms)
    if len(held_out) < least:
        raise DataError(
            f"{len(held_out)} images choose the threshold for {unknown.false_alarms:g} false alarms, "
            f"expected {least} at least"
        )
    scores = np.sort(scores_of(unknown, held_out))
    beyond = round(unknown.false_alarms * len(scores))
    between = (scores[-beyond - 1] + scores[-beyond]) / 2
    return unknown.model_copy(update={"threshold": float(f"{between:.6g}")})


def scores_of(unknown: Unknown, answers: Answers) -> NDArray[np.float64]:
    """The score of each input, float64 [N], as the device computes it."""
    return UnknownScore(unknown).scores(answers.symbols, softmax(answers.early, answers.temperature))


def false_alarms_of(unknown: Unknown, answers: Answers) -> int:
    """How many of these inputs, which are known, it calls unknown."""
    return int((scores_of(unknown, answers) > unknown.threshold).sum())


def _short(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
