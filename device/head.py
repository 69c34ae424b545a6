"""The head and the decision at its early exit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offramp.common.part.engine import Engine
from offramp.common.part.unknown import UnknownScore


class EarlyExit(NamedTuple):
    """What the device knows of one image by itself."""

    symbols: NDArray[np.uint8]
    """The activation at the split, uint8 [C, H, W] or any other shape."""
    class_index: int
    confidence: float
    """Softmax probability of that class."""
    probabilities: NDArray[np.float32]
    """Of all classes, float32 [K]."""
    unknown: bool = False
    """Whether it is unlike all that the bundle knows."""

    def is_confident(self, threshold: float) -> bool:
        """Whether the image takes the early exit: its confidence exceeds T_c (Sec. III-B).

        T_c = 1 is exceeded by nothing, T_c = 0 by everything.
        """
        return self.confidence > threshold


def run_head(engine: Engine, image: NDArray[Any], score: UnknownScore | None = None) -> EarlyExit:
    """One input, as the head takes it, through the head and its early exit; score: for unknown ones."""
    symbols, probabilities = engine.head(image[None])
    best = int(probabilities[0].argmax())
    unknown = score is not None and bool(score.are_unknown(symbols, probabilities)[0])
    return EarlyExit(symbols[0], best, float(probabilities[0, best]), probabilities[0], unknown)
