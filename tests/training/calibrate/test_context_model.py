"""Fitting a context model: what it learns, and that its price is what the coder writes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from offramp.training.calibrate.codebook import payload_bytes
from offramp.training.calibrate.context_model import context_bits, fit_context

Images = NDArray[np.uint8]


def smooth(images: int, seed: int) -> Images:
    """Symbols of a few levels that follow their neighbours and other channels, uint8 [N, 3, 6, 6]."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, (images, 1, 8, 8))
    moved = [np.roll(noise, (dy, dx), (2, 3)) for dy in range(3) for dx in range(3)]
    low = np.sum(moved, axis=0) / 3
    planes = np.concatenate([low, -low, low + rng.normal(0, 0.5, low.shape)], axis=1)[:, :, 1:7, 1:7]
    return np.asarray(100 + np.rint(planes), np.uint8)


def entropy_bytes(symbols: Images) -> float:
    """Of one distribution for each channel, an image."""
    total = 0.0
    for channel in range(symbols.shape[1]):
        counts = np.unique(symbols[:, channel], return_counts=True)[1]
        total += float((counts * np.log2(counts.sum() / counts)).sum())
    return total / 8 / len(symbols)


@pytest.fixture(scope="module")
def symbols() -> tuple[Images, Images]:
    return smooth(300, 0), smooth(100, 1)


def test_it_costs_far_less_than_a_distribution_for_each_channel(symbols: tuple[Images, Images]) -> None:
    model = fit_context(symbols[0])
    assert payload_bytes(model, 1, symbols[1]).mean() < 0.75 * entropy_bytes(symbols[1])


def test_the_price_is_what_the_coder_writes(symbols: tuple[Images, Images]) -> None:
    model = fit_context(symbols[0])
    bits = context_bits(model, symbols[1])

    assert bits.shape == (100, 3)
    overhead = payload_bytes(model, 1, symbols[1]) - bits.sum(axis=1) / 8
    assert overhead.min() > -0.2
    assert overhead.max() < 2.5


def test_the_same_symbols_give_the_same_model(symbols: tuple[Images, Images]) -> None:
    assert fit_context(symbols[0][:40]).to_bytes() == fit_context(symbols[0][:40]).to_bytes()


@pytest.mark.parametrize(("far", "reach"), [(1, 1), (4, 4), (15, 15), (90, 15)])
def test_the_reach_is_as_far_as_symbols_go(far: int, reach: int) -> None:
    rng = np.random.default_rng(0)
    symbols = (128 + rng.choice([0, 0, 0, far, -far], (20, 1, 4, 4))).astype(np.uint8)
    model = fit_context(symbols)

    assert model.reach == reach
    assert model.mode.tolist() == [128]
    assert payload_bytes(model, 1, symbols).max() <= 16


def test_a_constant_costs_next_to_nothing() -> None:
    symbols = np.full((8, 2, 5, 5), 3, np.uint8)
    assert payload_bytes(fit_context(symbols), 1, symbols).max() <= 1
