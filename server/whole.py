"""The whole model in the place of a tail: what answers pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offramp.common.part.engine import Engine


class WholeModel:
    """A bundle's head and tail, one after the other; its early exit is not used."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def tail(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Images, uint8 [N, 3, H, W] → class probabilities, float32 [N, K]; see ``batch.Tail``."""
        symbols, _ = self._engine.head(images)
        return self._engine.tail(symbols)
