"""The price of symbols in given tables is what the coders write, give or take states and padding."""

from __future__ import annotations

import numpy as np
import pytest

from offramp.bench.activations import Synthetic
from offramp.bench.overhead import frame_bits, token_prices
from offramp.common.codec.activation import make_coder
from offramp.common.codec.huffman import coded_bits
from offramp.training.calibrate.codebook import huffman_tables, rans_tables, symbol_counts
from offramp.training.calibrate.rans_tables import table_bits, token_counts

SHAPE = (6, 8, 8)


@pytest.mark.parametrize("bits", [0.3, 2.5])
def test_huffman_pads_each_frame_to_a_byte_and_adds_nothing_else(bits: float) -> None:
    source = Synthetic(SHAPE, bits, "different")
    book = huffman_tables(source.frames(32, 0), [0, 1, 2, 0, 1, 2])
    frames = source.frames(8, 1)
    coder = make_coder(SHAPE, book, 1)

    price = frame_bits(book, frames)

    assert price.sum() == coded_bits(book, symbol_counts(frames))
    assert [len(coder.encode(frame.tobytes())) for frame in frames] == [-(-int(b) // 8) for b in price]


@pytest.mark.parametrize("bits", [0.3, 2.5])
def test_rans_stays_within_two_bytes_of_its_tables_cross_entropy(bits: float) -> None:
    source = Synthetic(SHAPE, bits, "different")
    tables = rans_tables(source.frames(64, 0))
    frames = source.frames(32, 1)
    coder = make_coder(SHAPE, tables, 1)

    extra = [
        len(coder.encode(f.tobytes())) - b / 8
        for f, b in zip(frames, frame_bits(tables, frames), strict=True)
    ]

    assert max(extra) < 3 and 0 <= np.mean(extra) < 2


def test_some_channels_alone_are_part_of_the_whole() -> None:
    frames = Synthetic(SHAPE, 1.0, "different").frames(8, 0)
    tables = rans_tables(frames)

    parts = sum(frame_bits(tables, frames, [channel]) for channel in range(SHAPE[0]))

    assert np.allclose(parts, frame_bits(tables, frames))


def test_token_prices_are_those_of_calibration() -> None:
    frames = Synthetic((1, 16, 16), 0.5, "alike").frames(32, 0)
    table = rans_tables(frames).tables[0]
    counts = token_counts(np.ascontiguousarray(frames[:, 0]).reshape(32, -1), table.runs, table.mode)
    used = np.flatnonzero(counts)

    assert counts[used] @ token_prices(table)[used] == pytest.approx(table_bits(table, counts))
