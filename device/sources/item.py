"""One image on its way to the head, or the error in its place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.common.errors import DataError

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Item:
    """One image, uint8 [3, H, W] as the head takes it, or the error in its place."""

    name: str
    image: Pixels | DataError
    decode_seconds: float = 0.0
    """From its bytes to the head's input."""
