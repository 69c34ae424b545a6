import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from offramp.common.codec.activation import Symbols
from offramp.common.errors import ConfigError, PayloadError
from research.codecs import csr

shapes = hnp.array_shapes(min_dims=3, max_dims=3, max_side=6)


@given(symbols=hnp.arrays(np.uint8, shapes, elements=st.integers(0, 4)), zero=st.integers(0, 4))
def test_round_trip_at_exactly_the_papers_size(symbols: Symbols, zero: int) -> None:
    payload = csr.encode(symbols, zero)
    nonzero = int((symbols != zero).sum())
    assert len(payload) == 2 * (len(symbols) + 1) + 3 * nonzero == csr.size(len(symbols), nonzero)
    assert csr.sizes(symbols[None], zero).tolist() == [len(payload)]
    assert np.array_equal(csr.decode(payload, symbols.shape, zero), symbols)


def test_more_symbols_than_a_pointer_can_count() -> None:
    symbols = np.full((96, 32, 32), 7, np.uint8)
    symbols[5, 3] = 0
    payload = csr.encode(symbols, 0)
    assert len(payload) == 2 * 97 + 3 * (96 * 1024 - 32)
    assert np.array_equal(csr.decode(payload, symbols.shape, 0), symbols)


def test_golden_bytes() -> None:
    symbols = np.array([[[9, 0], [0, 8]], [[0, 0], [7, 0]]], np.uint8)
    payload = csr.encode(symbols, 0)
    assert payload.hex(" ") == "00 00 02 00 03 00 00 00 03 00 02 00 09 08 07"


def test_the_papers_table_iii_is_reached() -> None:
    """No symbol of 24x32x32 is zero: 72.0 KB (Table III, lambda_e = 10)."""
    size = csr.size(24, 24 * 32 * 32)
    assert int(size * 10 / 1024 + 0.5) / 10 == 72.0


@given(payload=st.binary(max_size=64))
def test_other_bytes_are_refused(payload: bytes) -> None:
    shape = (2, 2, 3)
    try:
        symbols = csr.decode(payload, shape, 1)
    except PayloadError:
        return
    assert csr.encode(symbols, 1) == payload


def test_a_channel_too_long_for_its_columns() -> None:
    with pytest.raises(ConfigError, match="a channel of 65536 symbols is too long"):
        csr.encode(np.zeros((1, 256, 256), np.uint8), 0)
