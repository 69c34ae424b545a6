"""Synthetic activations have the entropy that was asked for; real ones come from the head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from offramp.bench.activations import Synthetic, Variant, bundle_activations
from offramp.common.bundle.load import Bundle
from offramp.common.codec.huffman import entropy_bits
from offramp.common.errors import ConfigError, DataError
from offramp.common.part.engine import Engine
from offramp.device.sources.item import Item
from offramp.device.sources.source import Source
from offramp.training.calibrate.codebook import symbol_counts


@pytest.mark.parametrize("variant", ["alike", "different"])
@pytest.mark.parametrize("bits", [0.3, 1.0, 2.5, 5.0])
def test_a_synthetic_source_has_the_entropy_that_was_asked_for(bits: float, variant: Variant) -> None:
    source = Synthetic((8, 16, 16), bits, variant, seed=5)
    probabilities = source.channel_probabilities()
    exact = -np.where(probabilities > 0, probabilities * np.log2(np.maximum(probabilities, 1e-300)), 0)

    assert exact.sum(axis=1).mean() == pytest.approx(bits, abs=1e-6)
    symbols = source.frames(64, 0)
    assert entropy_bits(symbol_counts(symbols)) / symbols.size == pytest.approx(bits, rel=0.03)


def test_channels_are_alike_or_different() -> None:
    alike = Synthetic((8, 4, 4), 2.5, "alike").channel_probabilities()
    different = Synthetic((8, 4, 4), 2.5, "different").channel_probabilities()

    assert np.ptp(alike, axis=0).max() == 0
    assert len({int(row.argmax()) for row in different}) > 4


def test_frames_are_seeded_and_streams_are_independent() -> None:
    source = Synthetic((4, 8, 8), 2.5, "different")

    assert np.array_equal(source.frames(3, 0), source.frames(3, 0))
    assert not np.array_equal(source.frames(3, 0), source.frames(3, 1))


def test_a_bundle_s_activations_are_its_head_s_symbols_in_order(toy_bundle: Bundle, toy_images: Path) -> None:
    symbols = bundle_activations(toy_bundle, toy_images)

    assert symbols.shape == (40, *toy_bundle.manifest.activation.shape) and symbols.dtype == np.uint8
    items: list[Item] = list(Source([toy_images], toy_bundle.manifest.preprocessing))
    image = items[17].image
    assert not isinstance(image, DataError)
    assert np.array_equal(symbols[17], Engine(toy_bundle).head(image[None])[0][0])


def test_pictures_that_cannot_be_used_are_an_error(toy_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a file or a folder"):
        bundle_activations(toy_bundle, tmp_path / "none")
    with pytest.raises(DataError, match="has 0 inputs"):
        bundle_activations(toy_bundle, tmp_path)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png"):
        bundle_activations(toy_bundle, tmp_path)
