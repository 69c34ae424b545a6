"""The codebook of a bundle: counted on calibration symbols, its layout chosen by the bytes that it takes."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offramp.common.codebook import SYMBOLS, Codebook, build_codebook
from offramp.common.codec import ActivationCodec, HuffmanCodec

Layout = Literal["tensor", "channel"]
LAYOUTS: tuple[Layout, ...] = ("tensor", "channel")


def symbol_counts(symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each channel takes each value: uint8 [N, C, H, W] to int64 [C, 256]."""
    channels = symbols.shape[1]
    own_range = np.arange(channels, dtype=np.int64)[:, None, None] * SYMBOLS
    counts = np.bincount((symbols + own_range).ravel(), minlength=channels * SYMBOLS)
    return counts.astype(np.int64).reshape(channels, SYMBOLS)


def payload_bytes(codebook: Codebook, symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Bytes of each image's payload as the shipped codec writes it: uint8 [N, C, H, W] to int64 [N]."""
    _, channels, height, width = symbols.shape
    shape = (channels, height, width)
    codec = ActivationCodec(shape, HuffmanCodec(shape, codebook))
    return np.array([len(codec.encode(image)[1]) for image in symbols], dtype=np.int64)


def choose_codebook(calibration: NDArray[np.uint8], others: NDArray[np.uint8]) -> tuple[Codebook, Layout]:
    """One table for the tensor (Sec. III-C) or one per channel, whichever codes unseen images in fewer bytes.

    Args:
        calibration: symbols, uint8 [N, C, H, W], that both candidates are counted on.
        others: symbols of other images, uint8 [M, C, H, W], on which they compete. Many small tables can fit
            the images that they were counted on too well; these show it. May be empty: then ``calibration``
            decides.

    Returns:
        The winning layout, counted anew on all of the symbols, and its name.
    """
    arena = others if len(others) else calibration
    counts = symbol_counts(calibration)
    sizes = {layout: int(payload_bytes(build_codebook(counts, layout), arena).sum()) for layout in LAYOUTS}
    layout = min(LAYOUTS, key=lambda name: sizes[name])
    return build_codebook(counts + symbol_counts(others), layout), layout
