"""What a payload must take, given its tables: the yardstick for what a coder adds to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from offramp.common.codec.activation import Symbols, Tables
from offramp.common.codec.context import ContextModel
from offramp.common.codec.huffman import Codebook
from offramp.common.codec.rans import SYMBOLS, TOTAL, Kind, RansTable
from offramp.common.codec.run_huffman import RunTables, fold, lane_segments
from offramp.training.calibrate.context_model import context_bits
from offramp.training.calibrate.rans_tables import token_counts
from offramp.training.calibrate.run_huffman_tables import token_bits


def frame_bits(tables: Tables, frames: Symbols, channels: Sequence[int] | None = None) -> NDArray[np.float64]:
    """Bits of each activation, uint8 [N, C, H, W], in these tables: Huffman's codes, or rANS's cross-entropy.

    Lengths of lanes, states and padding are not among them. channels: count these only. Returns [N].
    """
    if isinstance(tables, ContextModel):
        bits_of = context_bits(tables, frames)
        return np.asarray(bits_of[:, slice(None) if channels is None else list(channels)].sum(axis=1))
    if isinstance(tables, RunTables):
        return _run_huffman_bits(tables, frames, channels)
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


def channel_bits(tables: Tables, frames: Symbols) -> NDArray[np.float64]:
    """Bits of each channel, [C], over all activations, uint8 [N, C, H, W], as `frame_bits` counts them."""
    if isinstance(tables, ContextModel):
        # Counted for all channels at once: one alone would take as long.
        return np.asarray(context_bits(tables, frames).sum(axis=0))
    return np.array([frame_bits(tables, frames, [channel]).sum() for channel in range(frames.shape[1])])


def _run_huffman_bits(
    tables: RunTables, frames: Symbols, channels: Sequence[int] | None
) -> NDArray[np.float64]:
    """As in one lane of these channels: a run may pass from one to the next."""
    bits = np.zeros(len(frames))
    for segment in lane_segments(tables.table_of_channel.tolist(), 1)[0]:
        members = [c for c in segment.channels if channels is None or c in channels]
        if not members:
            continue
        planes = frames[:, members].reshape(len(frames), len(members), -1)
        folded = fold(planes, tables.mode_of_channel[members][:, None]).reshape(len(frames), -1)
        table = tables.tables[segment.table]
        price = token_bits(table)
        for number, plane in enumerate(folded):
            bits[number] += token_counts(plane[None], table.runs, 0) @ price
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
