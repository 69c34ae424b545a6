"""Tables for rANS (``common/codec/rans.py``) from calibration symbols."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from offramp.common.codec.rans import SYMBOLS, TOTAL, Kind, RansTable, Token

RUNS = (1, 4, 8, 16, 32, 64, 128)
"""Numbers of runs that are tried for each channel."""

TOKEN_PRICE = 0.02
"""Bits that one token less is worth: time goes by tokens."""

Counts = NDArray[np.int64]


def token_counts(planes: NDArray[np.uint8], runs: int, mode: int) -> Counts:
    """How often a channel's tokens occur: int64 [runs · 256 + 1], (run, symbol) and then FULL.

    planes: uint8 [N, H·W], one channel of N activations.
    """
    counts = np.zeros(runs * SYMBOLS + 1, np.int64)
    if runs == 1:
        counts[:SYMBOLS] = np.bincount(planes.reshape(-1), minlength=SYMBOLS)
        return counts
    images, plane = planes.shape
    # A sentinel behind each plane ends its last run; positions then run on over all planes.
    marked = np.concatenate([planes != mode, np.ones((images, 1), bool)], axis=1).reshape(-1)
    at = np.flatnonzero(marked)
    run = np.diff(at, prepend=-1) - 1
    ends = at % (plane + 1) == plane
    symbols = planes[np.divmod(at[~ends], plane + 1)]
    joint = (run[~ends] % runs) * SYMBOLS + symbols
    counts[:-1] = np.bincount(joint, minlength=runs * SYMBOLS)
    counts[-1] = (run[~ends] // runs).sum() + (-(-run[ends] // runs)).sum()
    return counts


def build_table(counts: Counts, runs: int, mode: int) -> RansTable:
    """The table for token counts, int64 [runs · 256 + 1], of ``token_counts``."""
    of_symbol, full = smooth(counts[:-1].reshape(runs, SYMBOLS)), float(counts[-1])
    # A token of its own takes one of 4096 slots at least; a rarer one is cheaper as an escape and 8 bits.
    own = np.argwhere(of_symbol * TOTAL * 2 > max(1.0, of_symbol.sum() + full)).tolist()
    own.sort(key=lambda token: -of_symbol[*token])
    room = SYMBOLS if runs == 1 and len(own) == SYMBOLS else SYMBOLS - (runs + 1 if runs > 1 else 1)
    own = sorted(own[:room])
    names: list[tuple[Kind, int, int, float]] = [
        (Kind.SYMBOL, run, symbol, float(of_symbol[run, symbol])) for run, symbol in own
    ]
    if len(own) < SYMBOLS:
        rare = of_symbol.copy()
        for run, symbol in own:
            rare[run, symbol] = 0
        names += [(Kind.ESCAPE, run, 0, float(rare[run].sum())) for run in range(runs)]
    if runs > 1:
        names.append((Kind.FULL, runs - 1, mode, full))
    frequencies = scale_to_total([count for *_, count in names])
    tokens = [Token(kind, run, s, f) for (kind, run, s, _), f in zip(names, frequencies, strict=True)]
    # A lane's last token costs the logarithm of its first slot: the likeliest is to have the lowest.
    return RansTable(runs, mode, tuple(sorted(tokens, key=lambda token: -token.frequency)))


def smooth(joint: Counts) -> NDArray[np.float64]:
    """Counts of (run, symbol), int64 [R, 256], drawn towards what they were if one said nothing of the other.

    A pair of a few thousand is rarely seen in a small calibration set, but its run and its symbol often are.
    The more pairs there are for the tokens that were counted, the more their product is believed.
    """
    total = max(1, int(joint.sum()))
    of_run, of_symbol = joint.sum(axis=1), joint.sum(axis=0)
    product = np.outer(of_run, of_symbol) / total
    pairs = np.count_nonzero(of_run) * np.count_nonzero(of_symbol)
    return np.asarray((joint * total + product * pairs) / (total + pairs), np.float64)


def scale_to_total(counts: list[float]) -> list[int]:
    """Frequencies of at least 1 that sum to 4096 and code these counts in the fewest bits.

    Greedy on the exact gain of one slot more or less, which is optimal: code length is convex in each.
    """
    total = sum(counts) or 1.0
    frequencies = [max(1, int(count * TOTAL / total)) for count in counts]
    surplus = sum(frequencies) - TOTAL
    step = -1 if surplus > 0 else 1

    def price(i: int) -> float:
        f = frequencies[i]
        return float(max(counts[i], 1e-3) * np.log2(f / (f + step))) if f + step >= 1 else np.inf

    heap = [(price(i), i) for i in range(len(counts))]
    heapq.heapify(heap)
    for _ in range(abs(surplus)):
        _, i = heapq.heappop(heap)
        frequencies[i] += step
        heapq.heappush(heap, (price(i), i))
    return frequencies


def table_bits(table: RansTable, counts: Counts) -> float:
    """Bits that tokens with these counts take in a table: its cross-entropy, escaped symbols included."""
    rare = counts[:-1].reshape(table.runs, SYMBOLS).copy()
    bits = 0.0
    for token in table.tokens:
        if token.kind is Kind.SYMBOL:
            bits += np.log2(TOTAL / token.frequency) * rare[token.run, token.symbol]
            rare[token.run, token.symbol] = 0
    for token in table.tokens:
        if token.kind is Kind.ESCAPE:
            bits += (np.log2(TOTAL / token.frequency) + 8) * rare[token.run].sum()
        elif token.kind is Kind.FULL:
            bits += np.log2(TOTAL / token.frequency) * counts[-1]
    return float(bits)


def choose_runs(planes: NDArray[np.uint8]) -> tuple[int, int]:
    """Runs and mode for one channel, uint8 [N, H·W]: few bits, and few tokens where it costs few bits.

    A token's frequency is itself
    something learned from the data: each run's and each symbol's is charged the usual half a logarithm, or
    long tables would win by fitting a small calibration set.
    """
    mode = int(np.bincount(planes.reshape(-1), minlength=SYMBOLS).argmax())
    bits, tokens = {}, {}
    for runs in RUNS:
        counts = token_counts(planes, runs, mode)
        table = build_table(counts, runs, mode)
        tokens[runs] = int(counts.sum())
        pairs = counts[:-1].reshape(runs, SYMBOLS)
        learned = np.count_nonzero(pairs.sum(axis=0)) + np.count_nonzero(pairs.sum(axis=1))
        bits[runs] = table_bits(table, counts) + learned * np.log2(1 + tokens[runs]) / 2
    return min(RUNS, key=lambda runs: bits[runs] + TOKEN_PRICE * tokens[runs]), mode
