"""What a payload must take, given its tables: the yardstick for what a coder adds to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from offramp.common.codebook import Codebook
from offramp.common.codec import Symbols, Tables
from offramp.common.rans import SYMBOLS, TOTAL, Kind, RansTable
from offramp.training.rans_tables import token_counts


def frame_bits(tables: Tables, frames: Symbols, channels: Sequence[int] | None = None) -> NDArray[np.float64]:
    """Bits of each activation, uint8 [N, C, H, W], in these tables: Huffman's codes, or rANS's cross-entropy.

    Lengths of lanes, states and padding are not among them. channels: count these only. Returns [N].
    """
    bits = np.zeros(len(frames))
    for channel in range(frames.shape[1]) if channels is None else channels:
        index = int(tables.table_of_channel[channel])
        planes = np.ascontiguousarray(frames[:, channel]).reshape(len(frames), -1)
        if isinstance(tables, Codebook):
            bits += tables.lengths[index][planes].sum(axis=1, dtype=np.int64)
            continue
        table = tables.tables[index]
        price = token_prices(table)
        for number, plane in enumerate(planes):
            counts = token_counts(plane[None], table.runs, table.mode)
            used = np.flatnonzero(counts)
            bits[number] += counts[used] @ price[used]
    return bits


def token_prices(table: RansTable) -> NDArray[np.float64]:
    """Bits of each token in the order of ``token_counts``, [runs · 256 + 1]; infinite for one without."""
    price = np.full((table.runs, SYMBOLS), np.inf)
    full = np.inf
    for token in table.tokens:
        bits = float(np.log2(TOTAL / token.frequency))
        if token.kind is Kind.ESCAPE:
            price[token.run] = bits + 8
        elif token.kind is Kind.FULL:
            full = bits
    for token in table.tokens:
        if token.kind is Kind.SYMBOL:
            price[token.run, token.symbol] = np.log2(TOTAL / token.frequency)
    return np.append(price.reshape(-1), full)
