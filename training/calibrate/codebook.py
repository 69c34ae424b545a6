"""From calibration symbols to the codec of a bundle: tables, shared where that pays, chosen by bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.common.bundle.manifest import Context, Huffman, Rans, RunHuffman
from offramp.common.codec.activation import ActivationCodec, Tables, make_coder
from offramp.common.codec.context import MAX_CHANNELS, ContextModel, work
from offramp.common.codec.huffman import SYMBOLS, Codebook, code_lengths
from offramp.common.codec.rans import RansTables
from offramp.common.codec.run_huffman import RunTables, fold
from offramp.training.calibrate.context_model import fit_context
from offramp.training.calibrate.rans_tables import build_table, choose_runs, token_counts
from offramp.training.calibrate.run_huffman_tables import best_run_table

RUN_HUFFMAN, RANS, CONTEXT = "run-huffman, shared tables", "rans, shared tables", "context"
SHARING_COST = 0.0025
"""How much longer payloads may become for tables that channels share."""
RUN_SHARING_COST = 0.005
"""The same for run-Huffman, whose tables are larger and whose channels share more than a table."""
RANS_GAIN = 0.03
"""How much shorter rANS must make payloads to be preferred: run-Huffman is two to five times as fast."""
CONTEXT_GAIN = 0.05
"""How much shorter a context model must make payloads to be preferred: it is some forty times as slow."""
CONTEXT_WORK = 1 << 20
"""Steps for one activation up to which it is tried: half a millisecond."""
SHARED_RUNS = 8
"""Runs in which channels are compared before they share a run-Huffman table."""
LANES_FROM = {4: 1280, 2: 480}
"""Mean payload, bytes, from which so many lanes cost about one per cent."""


@dataclass(frozen=True)
class Candidate:
    """One way to code a bundle's activations."""

    name: str
    tables: Tables
    lanes: int
    payload_bytes_mean: float
    """On the images on which the candidates compete."""

    @property
    def lanes_in_use(self) -> int:
        """Lanes that a bundle with these tables gets: a context model codes on one, whatever the payload."""
        if isinstance(self.tables, ContextModel):
            return 1
        return lanes_for(self.payload_bytes_mean, len(self.tables.table_of_channel))

    @property
    def entry(self) -> Huffman | RunHuffman | Rans | Context:
        """What the manifest says of it."""
        if isinstance(self.tables, ContextModel):
            return Context(kind="context")
        of_channel = self.tables.table_of_channel.tolist()
        if isinstance(self.tables, RunTables):
            modes = self.tables.mode_of_channel.tolist()
            return RunHuffman(
                kind="run-huffman", lanes=self.lanes, table_of_channel=of_channel, mode_of_channel=modes
            )
        if isinstance(self.tables, Codebook):
            return Huffman(kind="huffman", lanes=self.lanes, table_of_channel=of_channel)
        return Rans(kind="rans", lanes=self.lanes, table_of_channel=of_channel)


def symbol_counts(symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each channel takes each value: uint8 [N, C, H, W] to int64 [C, 256]."""
    channels = symbols.shape[1]
    own_range = np.arange(channels, dtype=np.int64)[:, None, None] * SYMBOLS
    counts = np.bincount((symbols + own_range).ravel(), minlength=channels * SYMBOLS)
    return counts.astype(np.int64).reshape(channels, SYMBOLS)


def payload_bytes(tables: Tables, lanes: int, symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Bytes of each image's payload as the shipped codec writes it: uint8 [N, C, H, W] to int64 [N]."""
    _, channels, height, width = symbols.shape
    shape = (channels, height, width)
    codec = ActivationCodec(shape, make_coder(shape, tables, lanes))
    return np.array([len(codec.encode(image)[1]) for image in symbols], dtype=np.int64)


def compare(calibration: NDArray[np.uint8], others: NDArray[np.uint8]) -> list[Candidate]:
    """Every way to code that calibration tries, on one lane, with its measured bytes.

    Args:
        calibration: symbols, uint8 [N, C, H, W], that the tables are counted on.
        others: symbols of other images, uint8 [M, C, H, W], on which the candidates compete: many small
            tables can fit the images that they were counted on too well. Empty: ``calibration`` itself.
    """
    arena = others if len(others) else calibration
    tried: list[tuple[str, Tables]] = [
        ("huffman, one table", huffman_tables(calibration, [0] * calibration.shape[1])),
        ("huffman, a table a channel", huffman_tables(calibration, list(range(calibration.shape[1])))),
        ("huffman, shared tables", huffman_tables(calibration, share_symbols(calibration))),
        (RUN_HUFFMAN, run_huffman_tables(calibration)),
        (RANS, rans_tables(calibration)),
    ]
    if suits_context(calibration):
        tried.append((CONTEXT, fit_context(calibration)))
    return [_candidate(name, tables, arena) for name, tables in tried]


def choose_codec(calibration: NDArray[np.uint8], others: NDArray[np.uint8]) -> Candidate:
    """The codec of a bundle: run-Huffman, unless rANS saves RANS_GAIN of its bytes on ``others``; or a
    context model, where it saves CONTEXT_GAIN of the better one's.

    Plain Huffman codes are run-Huffman's without runs, and are not asked. See ``compare`` for the arguments.
    The winner's tables are counted again, on all of the symbols.
    """
    arena = others if len(others) else calibration
    everything = np.concatenate([calibration, others]) if len(others) else calibration
    best = _candidate(RUN_HUFFMAN, run_huffman_tables(calibration), arena)
    make: Callable[[NDArray[np.uint8]], Tables] = run_huffman_tables
    rans = _candidate(RANS, rans_tables(calibration), arena)
    if rans.payload_bytes_mean <= best.payload_bytes_mean * (1 - RANS_GAIN):
        best, make = rans, rans_tables
    if suits_context(calibration):
        context = _candidate(CONTEXT, fit_context(calibration), arena)
        if context.payload_bytes_mean <= best.payload_bytes_mean * (1 - CONTEXT_GAIN):
            best, make = context, fit_context
    tables, lanes = make(everything), best.lanes_in_use
    return Candidate(best.name, tables, lanes, float(payload_bytes(tables, lanes, arena).mean()))


def _candidate(name: str, tables: Tables, arena: NDArray[np.uint8]) -> Candidate:
    return Candidate(name, tables, 1, float(payload_bytes(tables, 1, arena).mean()))


def suits_context(symbols: NDArray[np.uint8]) -> bool:
    """Whether a context model is tried for symbols, uint8 [N, C, H, W]."""
    _, channels, height, width = symbols.shape
    return channels <= MAX_CHANNELS and work((channels, height, width)) <= CONTEXT_WORK


def lanes_for(payload: float, channels: int) -> int:
    """Lanes for payloads of this mean size, bytes: more decode faster, each costs three to five bytes."""
    return next((n for n, size in LANES_FROM.items() if payload >= size and channels >= n), 1)


def huffman_tables(symbols: NDArray[np.uint8], table_of_channel: list[int]) -> Codebook:
    """Code lengths for symbols, uint8 [N, C, H, W], whose channels share tables so."""
    counts = _merged(symbol_counts(symbols), table_of_channel)
    lengths = np.stack([code_lengths(row) for row in counts])
    return Codebook(lengths, np.array(table_of_channel, np.uint16))


def run_huffman_tables(symbols: NDArray[np.uint8]) -> RunTables:
    """Run-Huffman tables for symbols, uint8 [N, C, H, W], shared by channels alike but for their mode."""
    images, channels = symbols.shape[:2]
    modes = symbol_counts(symbols).argmax(axis=1).astype(np.uint8)
    folded = fold(symbols.reshape(images, channels, -1), modes[:, None])
    counts = [token_counts(np.ascontiguousarray(folded[:, c]), SHARED_RUNS, 0) for c in range(channels)]
    shared = share(counts, [0] * channels, RUN_SHARING_COST)
    # From the flattest to the steepest table: lanes, which are dealt channels in that order, have like loads.
    members = [[c for c in range(channels) if shared[c] == table] for table in range(max(shared) + 1)]
    members.sort(key=lambda group: -_entropy_bits(np.sum([counts[c] for c in group], axis=0)) / len(group))
    tables = tuple(best_run_table(folded[:, group].reshape(images, -1)) for group in members)
    of_channel = [next(t for t, group in enumerate(members) if c in group) for c in range(channels)]
    return RunTables(tables, np.array(of_channel, np.uint16), modes)


def rans_tables(symbols: NDArray[np.uint8]) -> RansTables:
    """rANS tables for symbols, uint8 [N, C, H, W], shared by channels that are alike."""
    planes = [np.ascontiguousarray(symbols[:, c]).reshape(len(symbols), -1) for c in range(symbols.shape[1])]
    kinds = [choose_runs(plane) for plane in planes]
    counts = [token_counts(plane, *kind) for plane, kind in zip(planes, kinds, strict=True)]
    table_of_channel = share(counts, kinds)
    tables = []
    for table in range(max(table_of_channel) + 1):
        members = [c for c, t in enumerate(table_of_channel) if t == table]
        total = np.sum([counts[c] for c in members], axis=0)
        tables.append(build_table(total, *kinds[members[0]]))
    return RansTables(tuple(tables), np.array(table_of_channel, np.uint16))


def share_symbols(symbols: NDArray[np.uint8]) -> list[int]:
    """Which channels of uint8 [N, C, H, W] share a Huffman table: the table of each channel."""
    counts = symbol_counts(symbols)
    return share(list(counts), [0] * len(counts))


def share(
    counts: Sequence[NDArray[np.int64]], kinds: Sequence[Hashable], cost: float = SHARING_COST
) -> list[int]:
    """Merge the channels whose common table costs least, while payloads grow by this share at most.

    counts: how often each symbol or token occurs, for each channel. kinds: only channels of one may share.
    Returns the table of each channel, numbered from 0 by its first channel.
    """
    groups = {c: (np.asarray(count), [c]) for c, count in enumerate(counts)}
    bits = {c: _entropy_bits(count) for c, (count, _) in groups.items()}
    budget = cost * sum(bits.values())
    growth = {
        (a, b): _entropy_bits(groups[a][0] + groups[b][0]) - bits[a] - bits[b]
        for a in groups
        for b in groups
        if a < b and kinds[a] == kinds[b]
    }
    while growth:
        (a, b), extra = min(growth.items(), key=lambda item: item[1])
        if extra > budget:
            break
        budget -= max(extra, 0.0)
        groups[a] = (groups[a][0] + groups[b][0], groups[a][1] + groups.pop(b)[1])
        bits[a] = _entropy_bits(groups[a][0])
        growth = {pair: value for pair, value in growth.items() if b not in pair}
        for pair in growth:
            if a in pair:
                growth[pair] = _entropy_bits(groups[pair[0]][0] + groups[pair[1]][0]) - sum(
                    bits[c] for c in pair
                )
    tables = sorted(members for _, members in groups.values())
    return [next(t for t, members in enumerate(tables) if c in members) for c in range(len(counts))]


def _merged(counts: NDArray[np.int64], table_of_channel: list[int]) -> NDArray[np.int64]:
    merged = np.zeros((max(table_of_channel) + 1, counts.shape[1]), np.int64)
    np.add.at(merged, table_of_channel, counts)
    return merged


def _entropy_bits(counts: NDArray[np.int64]) -> float:
    seen = counts[counts > 0].astype(np.float64)
    return float((seen * np.log2(seen.sum() / seen)).sum())
