"""Run-Huffman tables and lanes: the rules of a table, tokens by eye, segments, and what a lane costs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.common.codec.huffman import SYMBOLS
from offramp.common.codec.run_huffman import (
    LaneDecoder,
    RunTable,
    RunTables,
    Segment,
    encode_lane,
    fold,
    lane_segments,
    literal_code,
    unfold,
)
from offramp.common.errors import CodebookError, PayloadError
from tests.common import coders

SMALL = RunTable(np.array([[3, 2], [3, 0]], np.uint8), 1, 0)
"""FULL (two modes) 0, symbol 1 10, its escape 110, the escape behind one mode 111."""
FULL, ONE, ESCAPE, ESCAPE_BEHIND_ONE = (0, 1), (2, 2), (6, 3), (7, 3)


@given(mode=st.integers(0, 255))
def test_folding_is_undone_and_small_where_a_symbol_is_near(mode: int) -> None:
    symbols = np.arange(SYMBOLS, dtype=np.uint8)
    folded = fold(symbols, mode)

    assert (unfold(folded, mode) == symbols).all()
    near = [int(folded[(mode + distance) % SYMBOLS]) for distance in (0, -1, 1, -2, 2)]
    assert near == [0, 1, 2, 3, 4]
    assert sorted(folded.tolist()) == list(range(SYMBOLS))


@pytest.mark.parametrize(
    ("folded", "expected"),
    [
        ([], []),
        ([0], [FULL]),
        ([0, 0], [FULL]),
        ([0, 0, 0], [FULL, FULL]),
        ([1], [ONE]),
        ([0, 0, 1], [FULL, ONE]),
        ([0, 1], [ESCAPE_BEHIND_ONE, (1, 1)]),
        ([0, 0, 0, 1, 0], [FULL, ESCAPE_BEHIND_ONE, (1, 1), FULL]),
        ([2], [ESCAPE, (2, 3)]),
        ([255], [ESCAPE, (255, 15)]),
    ],
)
def test_tokens_by_eye(folded: list[int], expected: list[tuple[int, int]]) -> None:
    assert SMALL.tokenize(bytes(folded)) == expected


@pytest.mark.parametrize("order", range(8))
def test_literals_are_prefix_free_and_at_most_16_bits(order: int) -> None:
    codes = [literal_code(symbol, order) for symbol in range(1, SYMBOLS)]
    texts = sorted(f"{code:0{length}b}" for code, length in codes)

    assert max(map(len, texts)) <= 16
    assert not any(b.startswith(a) for a, b in pairwise(texts))


def test_channels_are_dealt_out_in_the_order_of_their_tables() -> None:
    assert lane_segments([1, 0, 1, 0, 1], 2) == [
        [Segment(0, (1,)), Segment(1, (0, 4))],
        [Segment(0, (3,)), Segment(1, (2,))],
    ]
    assert lane_segments([0, 0, 0], 1) == [[Segment(0, (0, 1, 2))]]


@given(mapped=st.lists(st.integers(0, 4), min_size=1, max_size=20), data=st.data())
def test_each_channel_is_in_one_segment_and_lanes_differ_by_one_channel(
    mapped: list[int], data: st.DataObject
) -> None:
    lanes = data.draw(st.integers(1, min(8, len(mapped))))
    found = lane_segments(mapped, lanes)

    assert sorted(c for lane in found for s in lane for c in s.channels) == list(range(len(mapped)))
    assert all(mapped[c] == s.table for lane in found for s in lane for c in s.channels)
    sizes = [sum(len(s.channels) for s in lane) for lane in found]
    assert max(sizes) - min(sizes) <= 1


@given(table=coders.run_tables(), data=st.data())
def test_a_lane_of_several_segments_comes_back_and_costs_its_codes(
    table: RunTable, data: st.DataObject
) -> None:
    symbols = st.sampled_from([0, 0, 0, 1, 2, 5, 255]) | st.integers(0, 255)
    segments = data.draw(
        st.lists(st.lists(symbols, min_size=1, max_size=80).map(bytes), min_size=1, max_size=3)
    )
    lane = encode_lane([(table, segment) for segment in segments])
    decoder = LaneDecoder(lane)

    assert [decoder.segment(table, len(segment)) for segment in segments] == segments
    decoder.finish()
    bits = sum(length for segment in segments for _, length in table.tokenize(segment))
    assert len(lane) == -(-bits // 8)


REFUSED = {
    "nothing": (b"", 1, r"the payload has a lane of 0 bytes that ends within a segment"),
    "a-code-cut": (b"\xff", 9, r"the payload has a lane of 1 bytes that ends within a segment"),
    "a-byte-more": (bytes(2), 2, r"a lane of the payload has 1 bytes left over"),
    "padding": (b"\x01", 2, r"the payload's padding bits are not zero"),
    "an-escape-of-a-symbol-with-a-token": (
        bytes([0b110_1_0000]),
        1,
        r"the payload escapes symbol 1, which needs no escape",
    ),
    "a-run-past-the-end": (bytes([0b111_1_0000]), 1, r"the payload has a run past the end of its segment"),
    "a-symbol-of-ten-bits": (bytes([0b110_00000, 0b00001_000, 0]), 1, r"has an escaped symbol above 255"),
    "symbol-256": (bytes([0b110_00000, 0b000_1_0000, 0b0000_0000]), 1, r"has an escaped symbol above 255"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_a_lane(name: str) -> None:
    lane, symbols, expected = REFUSED[name]
    decoder = LaneDecoder(lane)
    with pytest.raises(PayloadError, match=expected):
        decoder.segment(SMALL, symbols)
        decoder.finish()


@given(table=coders.run_tables())
def test_tables_survive_their_stored_form(table: RunTable) -> None:
    tables = RunTables((table, SMALL), np.array([1, 0, 1], np.uint16), np.array([3, 0, 255], np.uint8))
    stored = tables.to_bytes()
    again = RunTables.from_bytes(stored, [1, 0, 1], [3, 0, 255])

    assert again.to_bytes() == stored
    assert len(stored) == tables.stored_bytes
    assert (again.tables[0].lengths == table.lengths).all()
    assert (again.tables[0].full, again.tables[0].order) == (table.full, table.order)


def test_a_table_as_it_is_stored() -> None:
    """Two runs, two columns, order 0; 3, 2, 3, a zero and no more, FULL's 1."""
    tables = RunTables((SMALL,), np.zeros(1, np.uint16), np.zeros(1, np.uint8))
    assert tables.to_bytes() == bytes([2, 1, 0, 0x23, 0x03, 0x10])


@given(data=st.data(), table=coders.run_tables())
def test_damaged_stored_tables_are_refused_or_are_other_tables(data: st.DataObject, table: RunTable) -> None:
    stored = RunTables((table,), np.zeros(1, np.uint16), np.zeros(1, np.uint8)).to_bytes()
    damaged = data.draw(coders.damages(stored))
    try:
        found = RunTables.from_bytes(damaged, [0], [0])
    except CodebookError:
        return
    assert len(found.tables) == 1


@given(stored=st.binary(max_size=200))
def test_random_bytes_are_no_tables_or_such(stored: bytes) -> None:
    try:
        RunTables.from_bytes(stored, [0] * 9, [0] * 9)
    except CodebookError as error:
        assert str(error)


WRONG = {
    "no-runs": (np.zeros((0, 2), np.uint8), 1, 0, r"a table of 0 runs, 2 columns"),
    "65-runs": (np.full((65, 1), 8, np.uint8), 1, 0, r"a table of 65 runs"),
    "257-columns": (np.full((2, 257), 8, np.uint8), 1, 0, r"a table of 2 runs, 257 columns"),
    "order-8": (SMALL.lengths, 1, 8, r"and order 8"),
    "plain-and-short": (np.full((1, 128), 7, np.uint8), 0, 0, r"has not just a code for each"),
    "plain-with-full": (np.full((1, 256), 8, np.uint8), 1, 0, r"has not just a code for each"),
    "plain-with-a-gap": (np.append(np.full(255, 8), 0)[None].astype(np.uint8), 0, 0, r"has not just a code"),
    "no-escape": (np.array([[2, 2], [0, 2]], np.uint8), 2, 0, r"a run without an escape"),
    "no-full": (np.array([[2, 2], [2, 2]], np.uint8), 0, 0, r"no code for a full run"),
    "16-bits": (np.array([[16, 2], [16, 0]], np.uint8), 1, 0, r"a code has 16 bits"),
    "not-complete": (np.array([[3, 3], [3, 0]], np.uint8), 1, 0, r"Kraft sum 0.875, expected exactly 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refuses_a_table(name: str) -> None:
    lengths, full, order, expected = WRONG[name]
    with pytest.raises(CodebookError, match=expected):
        RunTable(lengths, full, order)


@pytest.mark.parametrize(
    ("tables", "mapped", "modes", "expected"),
    [
        (2, [0], [0], r"2 tables for 1 channels"),
        (1, [0, 1], [0, 0], r"a channel names table 1, there are 1"),
        (1, [0, 0], [0], r"1 modes for 2 channels"),
    ],
)
def test_refuses_tables_that_do_not_fit_the_channels(
    tables: int, mapped: list[int], modes: list[int], expected: str
) -> None:
    with pytest.raises(CodebookError, match=expected):
        RunTables((SMALL,) * tables, np.array(mapped, np.uint16), np.array(modes, np.uint8))
