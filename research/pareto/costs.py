"""The least bytes at an accuracy, with intervals.

The bootstrap is by hand: all contenders are resampled by the same images, and each resampling takes a
contender's own cheapest point, for which scipy.stats.bootstrap has no form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from research.pareto.points import (
    Points,
)

_RESAMPLED = 500


@dataclass(frozen=True)
class Costs:
    """Mean bytes an image at each wanted accuracy: of the data, and of each resampling."""

    value: NDArray[np.float64]
    resampled: NDArray[np.float64]
    """[resamplings, accuracies]; infinite where no point reaches the accuracy."""
    best: list[str | None]
    """Which point it was."""


def costs(points: Points, accuracies: Sequence[float], *, seed: int = 0) -> Costs:
    """The fewest mean bytes at each accuracy, with the bootstrap over images."""
    count = points.sent.shape[1]
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(count, np.full(count, 1 / count), _RESAMPLED).astype(np.float32) / count
    weights = np.concatenate([np.full((1, count), 1 / count, np.float32), weights])
    mean_sent, mean_right = weights @ points.sent.T, weights @ points.right.T
    found = np.empty((len(weights), len(accuracies)))
    best: list[str | None] = []
    for number, wanted in enumerate(accuracies):
        # Means in float32 are off by less than one image in a thousand sets.
        reached = np.where(mean_right >= wanted - 1e-6, mean_sent, np.inf)
        found[:, number] = reached.min(axis=1)
        first = int(reached[0].argmin())
        best.append(points.names[first] if np.isfinite(reached[0, first]) else None)
    return Costs(found[0], found[1:], best)
