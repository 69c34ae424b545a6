"""Code lengths: optimal, complete, canonical, and stored as half a byte each."""

from __future__ import annotations

import heapq
from collections import Counter

import numpy as np
import pytest
from bitarray import bitarray, frozenbitarray
from bitarray.util import canonical_decode, canonical_huffman, int2ba
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from offramp.common.codec.huffman import (
    MAX_CODE_LENGTH,
    SYMBOLS,
    TABLE_BYTES,
    Codebook,
    Layout,
    build_codebook,
    canonical_codes,
    code_lengths,
    coded_bits,
    entropy_bits,
)
from offramp.common.errors import CodebookError

Counts = NDArray[np.int64]
one_channel = hnp.arrays(np.int64, SYMBOLS, elements=st.integers(0, 1 << 20), fill=st.just(0))
steep = st.floats(1.05, 4).map(lambda base: (base ** -np.arange(SYMBOLS) * 1e12).astype(np.int64))


def weights(counts: Counts) -> Counts:
    """What ``code_lengths`` optimises for: unseen symbols weigh 1/256 of a symbol seen once."""
    return np.maximum(counts * SYMBOLS, 1)


def huffman_lengths(weight: Counts) -> NDArray[np.int64]:
    """Code lengths of the unlimited Huffman code: the two lightest trees joined until one is left."""
    heap = [(int(w), symbol, [symbol]) for symbol, w in enumerate(weight)]
    heapq.heapify(heap)
    lengths = np.zeros(len(weight), np.int64)
    while len(heap) > 1:
        (a, order, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[left + right] += 1
        heapq.heappush(heap, (a + b, order, left + right))
    return lengths


def best_cost(weight: list[int], limit: int) -> int:
    """Cost of the best complete code of at most ``limit`` bits: every multiset of lengths tried.

    Walks the code tree level by level: ``free`` nodes at a depth, of which some become leaves.
    """
    ordered = sorted(weight, reverse=True)
    suffix = [sum(ordered[i:]) for i in range(len(ordered) + 1)]
    best: dict[tuple[int, int, int], int | None] = {}

    def cost(depth: int, free: int, done: int) -> int | None:
        left = len(ordered) - done
        if free == 0 or left == 0:
            return 0 if free == left == 0 else None
        if free > left or depth == limit:
            return 0 if free == left else None
        key = (depth, free, done)
        if key not in best:
            options = []
            for leaves in range(free + 1):
                deeper = cost(depth + 1, 2 * (free - leaves), done + leaves)
                if deeper is not None:
                    # Everything that is not a leaf here takes one bit more.
                    options.append(deeper + suffix[done + leaves])
            best[key] = min(options) if options else None
        return best[key]

    found = cost(0, 1, 0)
    assert found is not None
    return found


@given(counts=one_channel | steep)
def test_lengths_form_a_complete_code_within_the_limit(counts: Counts) -> None:
    lengths = code_lengths(counts)

    assert lengths.dtype == np.uint8
    assert 1 <= lengths.min() <= lengths.max() <= MAX_CODE_LENGTH
    assert sum(2 ** (MAX_CODE_LENGTH - int(length)) for length in lengths) == 2**MAX_CODE_LENGTH


@given(counts=one_channel | steep)
def test_more_frequent_symbols_never_have_longer_codes(counts: Counts) -> None:
    ordered = code_lengths(counts)[np.argsort(-counts, kind="stable")].astype(int)
    by_count = np.sort(counts)[::-1]

    assert np.all((np.diff(ordered) >= 0) | (np.diff(by_count) == 0))


@given(counts=hnp.arrays(np.int64, SYMBOLS, elements=st.integers(1, 60)))
def test_equals_unlimited_huffman_where_the_limit_does_not_bind(counts: Counts) -> None:
    weight, unlimited = weights(counts), huffman_lengths(weights(counts))

    assert unlimited.max() <= MAX_CODE_LENGTH
    assert (code_lengths(counts) * weight).sum() == (unlimited * weight).sum()


@given(counts=one_channel | steep)
def test_costs_between_the_entropy_and_unlimited_huffman_plus_what_the_limit_takes(counts: Counts) -> None:
    weight = weights(counts).astype(np.float64)
    cost = float((code_lengths(counts) * weight).sum())
    entropy = float((weight * np.log2(weight.sum() / weight)).sum())

    assert cost >= entropy * (1 - 1e-12)
    assert cost >= float((huffman_lengths(weights(counts)) * weight).sum()) * (1 - 1e-12)
    # Mixing any source with the uniform one over 256 symbols gives Shannon lengths of at most 15 bits.
    assert cost <= entropy + weight.sum() * (1 + np.log2(1 / (1 - 2**-6)))


@pytest.mark.parametrize(("limit", "seed"), [(8, 0), (9, 1), (9, 2), (10, 3), (12, 4), (MAX_CODE_LENGTH, 5)])
def test_is_optimal_under_the_limit(limit: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = np.floor(rng.pareto(0.4, SYMBOLS) * 3).astype(np.int64).clip(0, 1 << 40)

    lengths = code_lengths(counts, limit)

    assert lengths.max() <= limit
    weight = weights(counts)
    assert sum(int(a) * int(b) for a, b in zip(lengths, weight, strict=True)) == best_cost(
        weight.tolist(), limit
    )


def test_the_limit_binds_for_a_steep_source() -> None:
    counts = np.zeros(SYMBOLS, np.int64)
    counts[:40] = 2 ** np.arange(40, 0, -1, dtype=np.int64)

    assert huffman_lengths(weights(counts)).max() > MAX_CODE_LENGTH
    assert code_lengths(counts).max() == MAX_CODE_LENGTH


def test_unseen_symbols_cost_the_seen_ones_almost_nothing() -> None:
    counts = np.zeros(SYMBOLS, np.int64)
    counts[[3, 200]] = 1000, 900

    lengths = code_lengths(counts)

    assert sorted(lengths[[3, 200]]) == [1, 2]
    assert lengths.max() <= MAX_CODE_LENGTH


@pytest.mark.parametrize("counts", [np.zeros(SYMBOLS, np.int64), np.full(SYMBOLS, 7)])
def test_equal_counts_give_eight_bits_each(counts: Counts) -> None:
    assert (code_lengths(counts) == 8).all()


def test_very_large_counts_do_not_overflow() -> None:
    counts = np.full(SYMBOLS, np.iinfo(np.int64).max)
    assert (code_lengths(counts) == 8).all()


@given(counts=hnp.arrays(np.int64, SYMBOLS, elements=st.integers(1, 60)))
def test_codes_are_those_of_bitarrays_canonical_huffman(counts: Counts) -> None:
    theirs, _, order = canonical_huffman(Counter({s: int(c) for s, c in enumerate(weights(counts))}))
    lengths = np.array([len(theirs[s]) for s in range(SYMBOLS)], np.uint8)

    ours = canonical_codes(lengths)

    # bitarray leaves the order of symbols with equal lengths open; ours is by symbol.
    ranked = sorted(order, key=lambda symbol: (lengths[symbol], symbol))
    assert [int2ba(int(ours[s]), length=int(lengths[s])) for s in ranked] == [theirs[s] for s in order]


@given(counts=one_channel | steep)
def test_bitarrays_canonical_decoder_reads_our_codes(counts: Counts) -> None:
    lengths = code_lengths(counts)
    codes = canonical_codes(lengths)
    order = sorted(range(SYMBOLS), key=lambda symbol: (lengths[symbol], symbol))
    bits = bitarray()
    for symbol in range(SYMBOLS):
        bits += int2ba(int(codes[symbol]), length=int(lengths[symbol]))

    assert list(canonical_decode(bits, np.bincount(lengths).tolist(), order)) == list(range(SYMBOLS))


@given(counts=one_channel | steep)
def test_no_code_is_a_prefix_of_another(counts: Counts) -> None:
    lengths = code_lengths(counts)
    codes = canonical_codes(lengths)
    words = [frozenbitarray(int2ba(int(codes[s]), length=int(lengths[s]))) for s in range(SYMBOLS)]

    prefixes = {word[:n] for word in words for n in range(len(word))}
    assert len(set(words)) == SYMBOLS
    assert prefixes.isdisjoint(words)


@given(counts=hnp.arrays(np.int64, (3, SYMBOLS), elements=st.integers(0, 1000)))
@pytest.mark.parametrize("layout", ["tensor", "channel"])
def test_stored_and_read_again(layout: Layout, counts: Counts) -> None:
    book = build_codebook(counts, layout)

    data = book.to_bytes()
    again = Codebook.from_bytes(data, book.table_of_channel.tolist())

    assert len(data) == book.stored_bytes == TABLE_BYTES * (1 if layout == "tensor" else 3)
    assert (again.lengths == book.lengths).all()
    assert (again.codes == book.codes).all()
    assert again.channels == 3


def test_the_even_symbol_is_in_the_low_half() -> None:
    lengths = np.full(SYMBOLS, 8, np.uint8)
    lengths[0], lengths[1], lengths[2:4] = 7, 8, 9

    data = Codebook(lengths[None], np.zeros(1, np.uint16)).to_bytes()

    assert data[:3] == bytes([0x87, 0x99, 0x88])


def test_one_table_for_the_tensor_is_made_from_all_channels() -> None:
    counts = np.random.default_rng(0).integers(0, 50, (4, SYMBOLS))
    book = build_codebook(counts, "tensor")

    assert book.table_of_channel.tolist() == [0] * 4
    assert (book.lengths[0] == code_lengths(counts.sum(axis=0))).all()


def test_coded_bits_counts_each_channel_with_its_table() -> None:
    counts = np.random.default_rng(0).integers(0, 50, (2, SYMBOLS))
    book = build_codebook(counts, "channel")

    expected = sum(int(c) * int(n) for c, n in zip(counts.ravel(), book.lengths.ravel(), strict=True))
    assert coded_bits(book, counts) == expected
    assert expected >= entropy_bits(counts)


def test_entropy() -> None:
    counts = np.zeros((2, SYMBOLS), np.int64)
    counts[0, :4], counts[1, 9] = 5, 100

    assert entropy_bits(counts) == 40.0
    assert entropy_bits(np.zeros((2, SYMBOLS), np.int64)) == 0.0


def table(lengths: list[int]) -> NDArray[np.uint8]:
    return np.array([lengths], np.uint8)


UNIFORM = [8] * SYMBOLS
ONE_CHANNEL = np.zeros(1, np.uint16)
REFUSED = {
    "kraft-over": (
        table([7, *UNIFORM[1:]]),
        ONE_CHANNEL,
        "table 0 has Kraft sum 1.00391, expected exactly 1",
    ),
    "kraft-under": (
        table([9, *UNIFORM[1:]]),
        ONE_CHANNEL,
        "table 0 has Kraft sum 0.998047, expected exactly 1",
    ),
    "kraft-second-table": (
        np.concatenate([table(UNIFORM), table([9, *UNIFORM[1:]])]),
        ONE_CHANNEL,
        "table 1 has Kraft sum 0.998047, expected exactly 1",
    ),
    "length-0": (table([0, *UNIFORM[1:]]), ONE_CHANNEL, "code lengths span 0 … 8, expected 1 … 15"),
    "length-16": (table([16, *UNIFORM[1:]]), ONE_CHANNEL, "code lengths span 8 … 16, expected 1 … 15"),
    "255-symbols": (
        table(UNIFORM[1:]),
        ONE_CHANNEL,
        "code lengths are uint8 (1, 255), expected uint8 [T, 256]",
    ),
    "no-table": (table(UNIFORM)[:0], ONE_CHANNEL, "code lengths are uint8 (0, 256), expected uint8 [T, 256]"),
    "no-channel": (table(UNIFORM), ONE_CHANNEL[:0], "the channel map is uint16 (0,), expected uint16 [C]"),
    "table-out-of-range": (table(UNIFORM), ONE_CHANNEL + 1, "a channel names table 1, the codebook has 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_is_no_complete_code(name: str) -> None:
    lengths, channels, expected = REFUSED[name]
    with pytest.raises(CodebookError) as caught:
        Codebook(lengths, channels.astype(np.uint16))
    assert str(caught.value) == expected


@given(data=st.binary(max_size=2 * TABLE_BYTES + 1), channels=st.lists(st.integers(0, 65_535), max_size=4))
def test_random_bytes_are_a_codebook_error(data: bytes, channels: list[int]) -> None:
    with pytest.raises(CodebookError):
        Codebook.from_bytes(data, channels)


def test_more_tables_than_channels_are_refused_before_they_are_unpacked() -> None:
    with pytest.raises(CodebookError, match="has 2 tables, expected at most one for each of 1 channels"):
        Codebook.from_bytes(bytes([0x88]) * (2 * TABLE_BYTES), [0])


@pytest.mark.parametrize("counts", [np.zeros(255, np.int64), np.full(SYMBOLS, -1)])
def test_refuses_counts_that_are_none(counts: Counts) -> None:
    with pytest.raises(CodebookError, match="expected 256 counts of at least 0"):
        code_lengths(counts)


def test_refuses_calibration_counts_of_another_shape() -> None:
    with pytest.raises(CodebookError, match=r"shape \(256,\), expected \[C, 256\]"):
        build_codebook(np.zeros(SYMBOLS, np.int64), "channel")
