"""Shapes, tables and symbols to code: what the tests of all coders draw from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from offramp.common.codec import activation
from offramp.common.codec.activation import (
    Coder,
    CompiledCoder,
    HuffmanCoder,
    RansCoder,
    RunHuffmanCoder,
    Shape,
    Tables,
)
from offramp.common.codec.context import AROUND, MAX_REACH, ContextCoder, ContextModel
from offramp.common.codec.huffman import SYMBOLS, Codebook, code_lengths, package_merge
from offramp.common.codec.lanes import MAX_LANES, lane_channels, length_bytes
from offramp.common.codec.rans import TOTAL, Kind, RansTable, RansTables, Token
from offramp.common.codec.run_huffman import MAX_ORDER, MAX_RUNS, RunTable, RunTables
from offramp.common.errors import PayloadError

COMPILED = activation._kernel is not None
"""Whether this installation has the compiled coders."""


def _huffman_lengths() -> NDArray[np.uint8]:
    """Code lengths from flat to as steep as they get, uint8 [6, 256]."""
    symbols = np.arange(SYMBOLS)
    steep = [(base ** -symbols.astype(float) * 1e9).astype(np.int64) for base in (1.0, 1.02, 1.3, 2.0)]
    constant = np.where(symbols == 17, 1000, 0)
    middle = np.exp(-((symbols - 128) ** 2) / 50.0) * 1e6
    return np.stack([code_lengths(counts) for counts in (*steep, constant, middle.astype(np.int64))])


LENGTHS = _huffman_lengths()


def rans_table(runs: int, mode: int, names: Sequence[tuple[int, int]], weights: Sequence[int]) -> RansTable:
    """A table with symbol tokens for these (run, symbol), and all that a table must have.

    weights: of all tokens, as often as needed. Each takes as much of what is left as its weight of 256 says.
    """
    distinct = sorted({(run % runs, s) for run, s in names if runs == 1 or s != mode})
    kinds = [(Kind.SYMBOL, run, s) for run, s in distinct[: SYMBOLS if runs == 1 else SYMBOLS - runs - 1]]
    if len(kinds) < SYMBOLS:
        kinds = kinds[: SYMBOLS - runs - (runs > 1)] + [(Kind.ESCAPE, run, 0) for run in range(runs)]
    if runs > 1:
        kinds.append((Kind.FULL, runs - 1, mode))
    left = TOTAL - len(kinds)
    frequencies = []
    for i in range(len(kinds)):
        more = left * weights[i % len(weights)] // 256
        frequencies.append(1 + more)
        left -= more
    frequencies[weights[0] % len(kinds)] += left
    return RansTable(runs, mode, tuple(Token(*kind, f) for kind, f in zip(kinds, frequencies, strict=True)))


ONE_TOKEN = rans_table(1, 0, [], [0])
"""A lone escape of frequency 4096."""
ALL_SYMBOLS = rans_table(1, 0, [(0, s) for s in range(SYMBOLS)], [0])
"""One token for each symbol; all but one of frequency 1."""
FLAT = RansTable(1, 0, tuple(Token(Kind.SYMBOL, 0, s, TOTAL // SYMBOLS) for s in range(SYMBOLS)))
"""8 bits a symbol."""


def run_table(runs: int, columns: int, order: int, share: float, steep: float, seed: int = 0) -> RunTable:
    """A run-Huffman table in which this share of the tokens that may be missing is there."""
    if runs == 1:
        columns, order, share = SYMBOLS, 0, 1.0
    rng = np.random.default_rng(seed)
    kept = rng.random((runs, columns)) < share
    kept[:, 0] = True
    likely = (rng.exponential(1.0, (runs, columns)) / (1 + np.arange(columns))) ** steep * 1e6
    weights = [1 + int(weight) for weight in likely[kept]] + ([10**6] if runs > 1 else [])
    found = package_merge(weights)
    lengths = np.zeros((runs, columns), np.uint8)
    lengths[kept] = found[: kept.sum()]
    return RunTable(lengths, int(found[-1]) if runs > 1 else 0, order)


@st.composite
def run_tables(draw: st.DrawFn) -> RunTable:
    """Tables with and without runs, from escapes alone to a token for each symbol, from flat to steep."""
    return run_table(
        draw(st.sampled_from([1, 1, 2, 3, 4, 8, MAX_RUNS])),
        draw(st.sampled_from([1, 2, 3, 9, 100, SYMBOLS])),
        draw(st.integers(0, MAX_ORDER)),
        draw(st.sampled_from([0.0, 0.3, 1.0])),
        draw(st.sampled_from([0.0, 1.0, 5.0])),
        draw(st.integers(0, 9)),
    )


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """1 … 9 channels of planes around the sizes at which the compiled loops change their step."""
    channels = draw(st.integers(1, 9))
    return (channels, *draw(st.sampled_from([(1, 1), (1, 3), (4, 1), (3, 5), (4, 4), (1, 17), (8, 8)])))


def lane_counts(shape: Shape) -> st.SearchStrategy[int]:
    """As many lanes as a shape may have."""
    return st.integers(1, min(MAX_LANES, shape[0]))


def channel_maps(tables: int, channels: int) -> st.SearchStrategy[NDArray[np.uint16]]:
    """Channels that have tables of their own, share them, or all use one."""
    tables_of = st.lists(st.integers(0, tables - 1), min_size=channels, max_size=channels)
    return tables_of.map(lambda mapped: np.array(mapped, np.uint16))


@st.composite
def rans_single_tables(draw: st.DrawFn) -> RansTable:
    """Tables with and without runs, from a lone escape to 256 tokens, from flat to steep."""
    fixed = draw(st.sampled_from([None, None, None, ONE_TOKEN, ALL_SYMBOLS, FLAT]))
    if fixed is not None:
        return fixed
    runs = draw(st.sampled_from([1, 1, 2, 3, 4, 8, 64, 127, 128]))
    near = st.tuples(st.integers(0, 3), st.integers(0, 4)) | st.tuples(
        st.integers(0, runs - 1), st.integers(0, 255)
    )
    return rans_table(
        runs,
        draw(st.sampled_from([0, 1, 255])),
        draw(st.lists(near, max_size=40)),
        draw(st.lists(st.integers(0, 255), min_size=1, max_size=8)),
    )


@st.composite
def huffman_coders(draw: st.DrawFn) -> HuffmanCoder:
    """Reference coders of small shapes."""
    shape = draw(shapes())
    rows = draw(st.lists(st.integers(0, len(LENGTHS) - 1), min_size=1, max_size=shape[0]))
    mapped = draw(channel_maps(len(rows), shape[0]))
    return HuffmanCoder(shape, Codebook(LENGTHS[rows], mapped), draw(lane_counts(shape)))


@st.composite
def rans_coders(draw: st.DrawFn) -> RansCoder:
    """Reference coders of small shapes."""
    shape = draw(shapes())
    tables = draw(st.lists(rans_single_tables(), min_size=1, max_size=min(3, shape[0])))
    mapped = draw(channel_maps(len(tables), shape[0]))
    return RansCoder(shape, RansTables(tuple(tables), mapped), draw(lane_counts(shape)))


@st.composite
def run_huffman_coders(draw: st.DrawFn) -> RunHuffmanCoder:
    """Reference coders of small shapes."""
    shape = draw(shapes())
    tables = draw(st.lists(run_tables(), min_size=1, max_size=min(3, shape[0])))
    mapped = draw(channel_maps(len(tables), shape[0]))
    modes = draw(st.lists(st.sampled_from([0, 1, 17, 128, 255]), min_size=shape[0], max_size=shape[0]))
    found = RunTables(tuple(tables), mapped, np.array(modes, np.uint8))
    return RunHuffmanCoder(shape, found, draw(lane_counts(shape)))


def context_model(shape: Shape, reach: int, steep: int, seed: int = 0) -> ContextModel:
    """A model of a shape whose numbers are up to ``steep`` in size, bytes up to 128."""
    channels, height, width = shape
    rng = np.random.default_rng(seed)
    small = min(steep, 128)

    def numbers(*sides: int) -> NDArray[np.int8]:
        return rng.integers(-small, small, sides, endpoint=steep < 128).astype(np.int8)

    weights = numbers(channels, 2, 2, (AROUND + 1) * channels)
    for channel in range(channels):
        weights[channel, :, :, AROUND * channels + channel :] = 0
    return ContextModel(
        shape,
        rng.choice([0, 1, 17, 128, 255], channels).astype(np.uint8),
        rng.integers(-steep, steep, (channels, 2 * reach + 2), endpoint=steep < 128).astype("<i2"),
        numbers(channels, height, 2),
        numbers(channels, width, 2),
        weights,
    )


@st.composite
def context_coders(draw: st.DrawFn) -> ContextCoder:
    """Reference coders of small shapes, from a flat model to one as steep as it can be stored."""
    reach = draw(st.sampled_from([1, 2, 3, MAX_REACH]))
    steep = draw(st.sampled_from([0, 4, 30, 128, 1 << 15]))
    return ContextCoder(context_model(draw(shapes()), reach, steep, draw(st.integers(0, 9))))


Reference = HuffmanCoder | RunHuffmanCoder | RansCoder | ContextCoder
reference_coders: st.SearchStrategy[Reference] = (
    huffman_coders() | run_huffman_coders() | rans_coders() | context_coders()
)


def tables_of(coder: Reference) -> Tables:
    """What a reference coder codes with."""
    if isinstance(coder, ContextCoder):
        return coder.model
    return coder.codebook if isinstance(coder, HuffmanCoder) else coder.tables


def compiled(coder: Reference) -> CompiledCoder:
    """The compiled twin of a reference coder."""
    return CompiledCoder(coder.shape, tables_of(coder), lane_count(coder))


def lane_count(coder: Reference) -> int:
    """How many lanes it writes."""
    return 1 if isinstance(coder, ContextCoder) else coder.lanes


def size_of(coder: Reference) -> int:
    """C·H·W."""
    return coder.shape[0] * coder.shape[1] * coder.shape[2]


@st.composite
def symbols_for(draw: st.DrawFn, shape: Shape) -> bytes:
    """Symbols of a shape, each channel of its own kind: constant, nearly so, a few symbols, or any."""
    channels, plane = shape[0], shape[1] * shape[2]
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    parts = []
    for _ in range(channels):
        mode = draw(st.sampled_from([0, 1, 17, 128, 255]))
        match draw(st.sampled_from(["constant", "sparse", "few", "any"])):
            case "constant":
                part = np.full(plane, mode)
            case "sparse":
                part = np.where(rng.random(plane) < 0.1, rng.integers(0, 256, plane), mode)
            case "few":
                part = rng.integers(0, 5, plane)
            case _:
                part = rng.integers(0, 256, plane)
        parts.append(part.astype(np.uint8))
    return np.concatenate(parts).tobytes()


@st.composite
def cases(
    draw: st.DrawFn, coders: st.SearchStrategy[Reference] = reference_coders
) -> tuple[Reference, bytes]:
    """A reference coder and symbols of its shape."""
    coder = draw(coders)
    return coder, draw(symbols_for(coder.shape))


@st.composite
def damages(draw: st.DrawFn, payload: bytes) -> bytes:
    """A payload cut, extended, or with some of its bytes changed."""
    match draw(st.sampled_from(["cut", "extend", "flip", "insert", "remove"])):
        case "cut":
            return payload[: draw(st.integers(0, len(payload)))]
        case "extend":
            return payload + draw(st.binary(min_size=1, max_size=4))
        case "flip":
            data = bytearray(payload)
            for _ in range(draw(st.integers(1, 3))):
                data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
            return bytes(data)
        case "insert":
            at = draw(st.integers(0, len(payload)))
            return payload[:at] + draw(st.binary(min_size=1, max_size=2)) + payload[at:]
        case _:
            at = draw(st.integers(0, len(payload) - 1))
            return payload[:at] + payload[at + 1 :]


def outcome(coder: Coder, payload: bytes) -> bytes | None:
    """The symbols of a payload; None if the coder refuses it."""
    try:
        return coder.decode(payload)
    except PayloadError:
        return None


def lanes_of(coder: Reference, payload: bytes) -> list[bytes]:
    """The lanes of a good payload, by the letter of the format."""
    width, lanes = length_bytes(size_of(coder)), lane_count(coder)
    lengths = [int.from_bytes(payload[width * i : width * (i + 1)], "little") for i in range(lanes - 1)]
    at, parts = width * (lanes - 1), []
    for length in lengths:
        parts.append(payload[at : at + length])
        at += length
    assert len(lane_channels(coder.shape[0], lanes)) == lanes
    return [*parts, payload[at:]]
