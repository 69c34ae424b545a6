"""Whether an input is unlike anything that a bundle knows, by its code and the early exit's confidence.

    feature     mean and deviation of each channel's symbols, 2C numbers
    distance    mean over features of ((feature − centre of the answered class) / deviation)²
    score       distance + 2 · (1 − confidence)
    unknown     score > threshold

It takes what the head has computed anyway. It sees what changes the channels' statistics: other surfaces,
noise, blank or broken pictures. A thing of an unknown class that looks like a known one passes.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from offramp.common.bundle.load import Bundle
from offramp.common.bundle.unknown import Unknown

DOUBT = 2.0
"""What no confidence at all counts for; known inputs are at a distance of about 1."""


def features(symbols: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean and deviation of each channel, float64 [N, 2C], of symbols uint8 [N, C, …]."""
    places = symbols.reshape(*symbols.shape[:2], -1)
    count = places.shape[2]
    # Whole numbers add up exactly, whatever the order: device and calibration agree.
    mean = places.sum(axis=2, dtype=np.int64) / count
    wide = places.astype(np.int64)
    square = np.einsum("ncp,ncp->nc", wide, wide) / count
    return np.concatenate([mean, np.sqrt(np.maximum(square - mean * mean, 0))], axis=1)


class UnknownScore:
    """A bundle's score."""

    def __init__(self, unknown: Unknown) -> None:
        self._centres = np.array(unknown.centres)
        self._deviations = np.array(unknown.deviations)
        self._threshold = unknown.threshold

    @classmethod
    def of(cls, bundle: Bundle) -> Self | None:
        """A bundle's own; None where it has none."""
        unknown = bundle.manifest.unknown
        return None if unknown is None else cls(unknown)

    def scores(self, symbols: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
        """Of each input, float64 [N]; higher is stranger.

        symbols: its code, uint8 [N, C, …]. probabilities: its early exit's, float32 [N, K].
        """
        best = probabilities.argmax(axis=1)
        own = self._centres[best] if len(self._centres) > 1 else self._centres
        away = (features(symbols) - own) / self._deviations
        return np.asarray((away * away).mean(axis=1) + DOUBT * (1 - probabilities.max(axis=1)))

    def are_unknown(
        self, symbols: NDArray[np.uint8], probabilities: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Which inputs are unknown, bool [N]; as ``scores``."""
        return self.scores(symbols, probabilities) > self._threshold
