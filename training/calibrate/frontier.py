"""Operating points: which are tried, and which of many are worth having."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = tuple(step / 100 for step in range(101))
"""Of a confidence, those that are tried."""


def frontier(sent: NDArray[np.number], right: NDArray[np.number]) -> NDArray[np.intp]:
    """Numbers of the points that no other beats in mean bytes and in accuracy, by bytes; of equals the first.

    Args:
        sent: what each point sends, [P].
        right: how often each is right, not below 0, [P].
    """
    order = np.lexsort((-right, sent))
    best = np.maximum.accumulate(np.concatenate([[-1.0], right[order]]))[:-1]
    return np.asarray(order[right[order] > best])
