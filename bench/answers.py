"""What a bundle's graphs answer for many images at once, in this process."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offramp.common.part.answer import Replies
from offramp.common.part.engine import Engine

_BATCH = 64


def head_answers(engine: Engine, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Each image's symbols and the early exit's probabilities.

    images: uint8 [N, 3, H, W]. Returns uint8 [N, C, h, w] and float32 [N, K].
    """
    symbols, probabilities = zip(*(engine.head(batch) for batch in _batches(images)), strict=True)
    return np.concatenate(symbols), np.concatenate(probabilities)


def tail_answers(engine: Engine, symbols: NDArray[np.uint8]) -> Replies:
    """The tail's answers for symbols, uint8 [N, C, h, w]."""
    return Replies.of(np.concatenate([engine.tail(batch) for batch in _batches(symbols)]))


def whole_answers(engine: Engine, images: NDArray[np.uint8]) -> Replies:
    """Head and tail one after the other, for images, uint8 [N, 3, H, W]."""
    return tail_answers(engine, head_answers(engine, images)[0])


def _batches(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Parts that the graphs take at a time: with all images at once, activations fill the memory."""
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
