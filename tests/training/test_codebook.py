import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from offramp.training.codebook import choose_codebook, payload_bytes, symbol_counts


@given(seed=st.integers(0, 1000), images=st.integers(0, 4), channels=st.integers(1, 5))
def test_counts(seed: int, images: int, channels: int) -> None:
    symbols = np.random.default_rng(seed).integers(0, 256, (images, channels, 3, 2), dtype=np.uint8)
    counts = symbol_counts(symbols)
    assert counts.shape == (channels, 256)
    assert counts.dtype == np.int64
    for channel in range(channels):
        assert np.array_equal(counts[channel], np.bincount(symbols[:, channel].ravel(), minlength=256))


def test_channels_that_differ_get_their_own_tables() -> None:
    rng = np.random.default_rng(0)
    own = rng.integers(0, 3, (20, 4, 8, 8)) + np.array([10, 80, 150, 220])[None, :, None, None]
    symbols = own.astype(np.uint8)
    codebook, layout = choose_codebook(symbols[:5], symbols[5:])
    assert layout == "channel"
    assert codebook.channels == 4
    # Three symbols a channel cost about 5/3 bits each, and never as much as 2.5.
    assert payload_bytes(codebook, symbols).max() < 4 * 64 * 2.5 / 8


def test_channels_that_are_alike_share_a_table() -> None:
    symbols = np.random.default_rng(1).normal(128, 40, (40, 64, 2, 2)).clip(0, 255).astype(np.uint8)
    codebook, layout = choose_codebook(symbols[:2], symbols[2:])
    assert layout == "tensor"
    assert len(codebook.lengths) == 1


def test_without_other_images_calibration_decides() -> None:
    symbols = np.full((2, 3, 4, 4), 9, np.uint8)
    codebook, _ = choose_codebook(symbols, symbols[:0])
    assert payload_bytes(codebook, symbols).tolist() == [6, 6]
