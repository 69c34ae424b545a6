"""Tables for Huffman codes over runs (``common/codec/run_huffman.py``) from calibration symbols."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from offramp.common.codec.huffman import SYMBOLS, package_merge
from offramp.common.codec.run_huffman import MAX_ORDER, MAX_RUNS, RunTable, literal_code
from offramp.training.calibrate.rans_tables import Counts, smooth, token_counts

RUNS = (1, 2, 4, 8, 16, 32, MAX_RUNS)
"""Numbers of runs that are tried for each table."""

TOKEN_PRICE, PLAIN_PRICE = 0.08, 0.02
"""Bits that one token less is worth, with runs and without: time goes by tokens."""

OWN_TOKEN = 2.0**-13
"""A run and symbol that are rarer than this among a table's tokens share an escape."""

LOOK_UP_BITS = 11
"""The compiled decoder looks up codes of up to so many bits, and works out longer ones."""

LONG_PRICE = 20.0
"""Bits that one longer code less is worth."""

_LITERAL_BITS = np.array(
    [[literal_code(max(1, symbol), order)[1] for symbol in range(SYMBOLS)] for order in range(MAX_ORDER + 1)]
)


def build_run_table(counts: Counts, runs: int) -> RunTable:
    """The table for token counts of folded symbols, int64 [runs · 256 + 1], of ``token_counts``."""
    joint, full = counts[:-1].reshape(runs, SYMBOLS), int(counts[-1])
    if runs == 1:
        return RunTable(_plain_lengths(joint[0])[None], 0, 0)
    expected = smooth(joint)
    own = expected > OWN_TOKEN * (expected.sum() + full)
    own[:, 0] = False
    columns = 1 + max(np.flatnonzero(own.any(axis=0)), default=0)
    rare = np.where(own, 0.0, expected)
    order = int((_LITERAL_BITS @ rare.sum(axis=0)).argmin())
    own[:, 0] = True
    cells = np.where(own, expected, 0.0)
    cells[:, 0] = rare.sum(axis=1)
    kept = np.flatnonzero(own[:, :columns])
    weights = [*cells[:, :columns].reshape(-1)[kept].tolist(), float(full)]
    found = package_merge([max(1, round(weight * SYMBOLS)) for weight in weights])
    lengths = np.zeros(runs * columns, np.uint8)
    lengths[kept] = found[:-1]
    return RunTable(lengths.reshape(runs, columns), int(found[-1]), order)


def _plain_lengths(counts: Counts) -> NDArray[np.uint8]:
    """Code lengths for symbol counts, int64 [256]: few bits, with few codes longer than a look-up.

    Symbols that would only just be longer are drawn as if they were likelier, down to the rarity that pays.
    """
    weights = np.maximum(counts * SYMBOLS, 1)
    enough = int(weights.sum()) >> LOOK_UP_BITS
    best, least = package_merge(weights.tolist()), float("inf")
    for step in range(7):
        raised = np.where(weights > enough >> step, np.maximum(weights, enough), weights)
        lengths = package_merge(raised.tolist())
        price = float(counts @ (lengths + LONG_PRICE * (lengths > LOOK_UP_BITS)))
        if price < least:
            best, least = lengths, price
    return best


def run_table_bits(table: RunTable, counts: Counts) -> int:
    """Bits that tokens with these counts take in a table, escaped symbols included."""
    return int(counts[counts > 0] @ token_bits(table)[counts > 0])


def token_bits(table: RunTable) -> NDArray[np.int64]:
    """Bits of each token in the order of ``token_counts``, int64 [R · 256 + 1]."""
    if table.runs == 1:
        return np.append(table.lengths[0].astype(np.int64), 0)
    bits = table.lengths[:, :1].astype(np.int64) + _LITERAL_BITS[table.order]
    own = table.lengths > 0
    own[:, 0] = False
    bits[:, : table.columns][own] = table.lengths[own]
    return np.append(bits.reshape(-1), table.full)


def best_run_table(planes: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> RunTable:
    """The table for channels that share it: few bits, and few tokens where it costs few bits.

    planes: folded symbols, uint8 [N, n · H · W]: each image's channels one behind the other. A token's code
    is itself learned from the data: each run's and each symbol's is charged the usual half a logarithm.
    """
    tables, price = {}, {}
    for runs in RUNS:
        counts = token_counts(np.asarray(planes), runs, 0)
        tables[runs] = build_run_table(counts, runs)
        tokens = int(counts.sum())
        pairs = counts[:-1].reshape(runs, SYMBOLS)
        learned = np.count_nonzero(pairs.sum(axis=0)) + np.count_nonzero(pairs.sum(axis=1))
        price[runs] = run_table_bits(tables[runs], counts) + learned * np.log2(1 + tokens) / 2
        price[runs] += (TOKEN_PRICE if runs > 1 else PLAIN_PRICE) * tokens
    return tables[min(RUNS, key=lambda runs: price[runs])]
