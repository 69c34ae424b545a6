"""rANS tables and lanes: the rules of a table, tokens by eye, and what a lane costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from offramp.common.codec.activation import RansCoder
from offramp.common.codec.rans import (
    MAX_RUNS,
    SYMBOLS,
    TOTAL,
    Kind,
    LaneDecoder,
    RansTable,
    RansTables,
    Token,
    encode_lane,
)
from offramp.common.errors import CodebookError, PayloadError
from tests.common import coders

RUNS_OF_4 = RansTable(
    4,
    9,
    (
        Token(Kind.SYMBOL, 0, 1, 1000),
        Token(Kind.SYMBOL, 2, 1, 1000),
        *(Token(Kind.ESCAPE, run, 0, 24) for run in range(4)),
        Token(Kind.FULL, 3, 9, 2000),
    ),
)
single = coders.rans_single_tables()


def ideal_bits(table: RansTable, symbols: bytes) -> float:
    """Bits that one channel's tokens take in their table, escaped symbols included."""
    tokens = table.tokenize(symbols)
    literals = sum(literal is not None for _, literal in tokens)
    return sum(math.log2(TOTAL / table.tokens[token].frequency) for token, _ in tokens) + 8 * literals


@pytest.mark.parametrize(
    ("symbols", "expected"),
    [
        ([], []),
        ([1], [(0, None)]),
        ([9, 9, 1], [(1, None)]),
        ([9, 1], [(3, 1)]),
        ([2], [(2, 2)]),
        ([9, 9, 9, 9], [(6, None)]),
        ([9, 9, 9, 9, 1], [(6, None), (0, None)]),
        ([9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 1], [(6, None), (6, None), (1, None)]),
        ([1, 9], [(0, None), (6, None)]),
        ([9, 9, 9, 9, 9], [(6, None), (6, None)]),
    ],
)
def test_tokens_by_eye(symbols: list[int], expected: list[tuple[int, int | None]]) -> None:
    assert RUNS_OF_4.tokenize(bytes(symbols)) == expected


def test_slots_are_in_the_order_of_the_tokens() -> None:
    assert RUNS_OF_4.starts == [0, 1000, 2000, 2024, 2048, 2072, 2096]
    assert len(RUNS_OF_4.of_slot) == TOTAL
    assert [RUNS_OF_4.of_slot[start] for start in RUNS_OF_4.starts] == list(range(7))
    assert RUNS_OF_4.of_slot[4095] == 6


@given(single)
def test_slots_cover_the_total(table: RansTable) -> None:
    for i, (start, token) in enumerate(zip(table.starts, table.tokens, strict=True)):
        assert table.of_slot[start : start + token.frequency] == bytes([i]) * token.frequency
    assert len(table.of_slot) == TOTAL


@given(table=single, data=st.data())
def test_a_lane_of_several_channels_comes_back(table: RansTable, data: st.DataObject) -> None:
    second = data.draw(single)
    flat = data.draw(coders.symbols_for((2, 4, 9)))
    channels = [(table, flat[:36]), (second, flat[36:])]
    decoder = LaneDecoder(encode_lane(channels))

    assert [decoder.channel(t, 36) for t, _ in channels] == [flat[:36], flat[36:]]
    decoder.finish()


@given(table=single, data=st.data())
def test_a_lane_costs_what_its_tokens_say(table: RansTable, data: st.DataObject) -> None:
    """Up to the byte it is rounded up to, and under 1 % that the state's resolution takes."""
    symbols = data.draw(coders.symbols_for((1, 8, 32)))

    assert len(encode_lane([(table, symbols)])) <= ideal_bits(table, symbols) / 8 * 1.01 + 2.5


def test_the_last_token_costs_the_logarithm_of_its_first_slot() -> None:
    """The encoder starts with it, from state 1: a token whose slots begin at 0 is free there."""
    for last, size in {0: 1, 1: 1, 15: 1, 16: 2, 255: 2}.items():
        assert len(encode_lane([(coders.FLAT, bytes([last]))])) == size


@given(table=single, data=st.data())
def test_a_lane_below_256_bytes_has_an_overhead_of_2_bytes_at_most(
    table: RansTable, data: st.DataObject
) -> None:
    symbols = data.draw(coders.symbols_for((1, 4, data.draw(st.integers(1, 40)))))
    lane = encode_lane([(table, symbols)])
    assume(len(lane) < 256)

    assert len(lane) <= math.ceil(ideal_bits(table, symbols) / 8) + 2


@pytest.mark.parametrize("size", [1, 15, 64, 1000, 100_000])
def test_symbols_that_cost_nothing_take_one_byte(size: int) -> None:
    """All slots but a few for FULL, and none for anything else that occurs."""
    table = coders.rans_table(128, 7, [], [0])
    table = RansTable(
        128,
        7,
        tuple(t._replace(frequency=TOTAL - 128 if t.kind is Kind.FULL else 1) for t in table.tokens),
    )
    lane = encode_lane([(table, bytes([7]) * size)])

    assert len(lane) <= 1 + size // 128 * 0.05 / 8 + 1
    assert LaneDecoder(lane).channel(table, size) == bytes([7]) * size


def test_a_lane_starts_with_the_bytes_of_its_state() -> None:
    """1 … 4 bytes while no word is written; then 3 or 4, by the parity of the length."""
    seen = set()
    for size in range(200):
        lane = encode_lane([(coders.FLAT, bytes(range(255, 255 - size, -1)))])
        assert lane[0] or size == 0
        seen.add((min(len(lane), 5), len(lane) % 2))
    assert {(1, 1), (2, 0), (3, 1), (4, 0), (5, 1), (5, 0)} <= seen


REFUSED_LANES = {
    "empty": (b"", "a lane of the payload is empty"),
    "leading-zero": (b"\0\1", "starts with a state that no encoder writes"),
    "zero": (b"\0", "starts with a state that no encoder writes"),
    "small-state-before-words": (b"\0\1\0\0\0\0", "starts with a state that no encoder writes"),
    "state-not-used-up": (b"\7", "ends in a state that no encoder starts from"),
}


@pytest.mark.parametrize("name", REFUSED_LANES)
def test_refuses_a_lane(name: str) -> None:
    lane, expected = REFUSED_LANES[name]
    table = coders.rans_table(1, 0, [(0, 0)], [255])
    with pytest.raises(PayloadError, match=expected):
        decoder = LaneDecoder(lane)
        decoder.channel(table, 1)
        decoder.finish()


def test_refuses_an_escape_of_a_symbol_that_has_a_token_and_of_the_mode() -> None:
    escaping = RUNS_OF_4
    for symbol, taken in {1: False, 9: False, 2: True}.items():
        state = 1
        for frequency, start in ((16, 16 * symbol), (24, 2000)):
            state = (state // frequency << 12) + state % frequency + start
        lane = state.to_bytes((state.bit_length() + 7) // 8, "big")
        decoder = LaneDecoder(lane)
        if taken:
            assert decoder.channel(escaping, 1) == bytes([symbol])
        else:
            with pytest.raises(PayloadError, match=f"escapes symbol {symbol}, which needs no escape"):
                decoder.channel(escaping, 1)


def test_refuses_a_run_past_the_end_of_its_channel() -> None:
    state = 1000 + 1  # the token (2, 1) in slot 1001, from state 1
    decoder = LaneDecoder(state.to_bytes(2, "big"))
    with pytest.raises(PayloadError, match="a run past the end of its channel"):
        decoder.channel(RUNS_OF_4, 2)


@given(single)
def test_tables_survive_their_stored_form(table: RansTable) -> None:
    tables = RansTables((table, coders.ONE_TOKEN, table), np.array([0, 1, 2, 0], np.uint16))
    stored = tables.to_bytes()

    assert stored[:4] == bytes([table.runs, table.mode]) + len(table.tokens).to_bytes(2, "little")
    assert len(stored) == sum(4 + 4 * len(t.tokens) for t in tables.tables) == tables.stored_bytes
    again = RansTables.from_bytes(stored, [0, 1, 2, 0])
    assert again.tables == tables.tables
    assert (again.table_of_channel == tables.table_of_channel).all()


@given(data=st.data(), table=single)
def test_damaged_stored_tables_are_refused_or_are_other_tables(data: st.DataObject, table: RansTable) -> None:
    stored = data.draw(coders.damages(RansTables((table,), np.zeros(1, np.uint16)).to_bytes()))
    try:
        tables = RansTables.from_bytes(stored, [0, 0])
    except CodebookError as error:
        assert str(error).isprintable()
    else:
        assert tables.to_bytes() == stored
        symbols = bytes(range(0, 256, 4))
        for each in tables.tables:
            lane = encode_lane([(each, symbols)])
            assert LaneDecoder(lane).channel(each, 64) == symbols


@given(st.binary(max_size=80))
def test_random_bytes_are_no_tables_or_are_stored_so(stored: bytes) -> None:
    try:
        tables = RansTables.from_bytes(stored, [0] * 8)
    except CodebookError:
        return
    assert tables.to_bytes() == stored


def test_the_kernel_gets_rows_of_one_size() -> None:
    tables = RansTables((RUNS_OF_4, coders.FLAT), np.array([0, 1], np.uint16))
    packed = tables.to_kernel()

    assert len(packed) == 2 * (6 + 6 * SYMBOLS)
    assert packed[:6] == bytes([7, 0, 4, 0, 9, 0])
    assert packed[6:12] == bytes([1000 & 255, 1000 >> 8, 0, 1, Kind.SYMBOL, 0])


BROKEN = {
    "no-tokens": (1, (), "1 runs and 0 tokens"),
    "no-runs": (0, (Token(Kind.ESCAPE, 0, 0, TOTAL),), "0 runs and 1 tokens"),
    "too-many-runs": (MAX_RUNS + 1, (Token(Kind.ESCAPE, 0, 0, TOTAL),), "129 runs and 1 tokens"),
    "too-many-tokens": (1, (Token(Kind.SYMBOL, 0, 0, 1),) * 257, "1 runs and 257 tokens"),
    "sum": (1, (Token(Kind.ESCAPE, 0, 0, TOTAL + 1),), "sum to 4097"),
    "zero": (1, (Token(Kind.SYMBOL, 0, 1, 0), Token(Kind.ESCAPE, 0, 0, TOTAL)), "each at least 1"),
    "negative": (1, (Token(Kind.SYMBOL, 0, 1, -1), Token(Kind.ESCAPE, 0, 0, TOTAL + 1)), "each at least 1"),
    "no-escape": (1, (Token(Kind.SYMBOL, 0, 1, TOTAL),), "a run has no escape"),
    "two-escapes": (1, (Token(Kind.ESCAPE, 0, 0, 6), Token(Kind.ESCAPE, 0, 0, TOTAL - 6)), "named twice"),
    "no-full": (2, (Token(Kind.ESCAPE, 0, 0, 6), Token(Kind.ESCAPE, 1, 0, TOTAL - 6)), "FULL tokens"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refuses_a_table(name: str) -> None:
    runs, tokens, expected = BROKEN[name]
    with pytest.raises(CodebookError, match=expected):
        RansTable(runs, 0, tokens)


@pytest.mark.parametrize("symbols", [255, 256])
def test_an_escape_is_needed_unless_each_symbol_has_a_token(symbols: int) -> None:
    tokens = [Token(Kind.SYMBOL, 0, s, 16) for s in range(symbols)]
    escape = Token(Kind.ESCAPE, 0, 0, 16)
    (RansTable(1, 0, tuple(tokens)) if symbols == 256 else RansTable(1, 0, (*tokens, escape)))
    with pytest.raises(CodebookError):
        RansTable(1, 0, (*tokens, escape) if symbols == 256 else tuple(tokens))


@pytest.mark.parametrize(
    ("tables", "of_channel", "expected"),
    [
        (0, [0], "0 tables for 1 channels"),
        (3, [0, 1], "3 tables for 2 channels"),
        (1, [0, 1], "a channel names table 1, there are 1"),
    ],
)
def test_refuses_tables_that_do_not_fit_the_channels(
    tables: int, of_channel: list[int], expected: str
) -> None:
    with pytest.raises(CodebookError, match=expected):
        RansTables((coders.FLAT,) * tables, np.array(of_channel, np.uint16))


@given(coders.cases(coders.rans_coders()))
def test_four_lanes_cost_little_more_than_one(case: tuple[RansCoder, bytes]) -> None:
    """The lengths of the others, and for each a byte that it is rounded up to."""
    coder, symbols = case
    one = RansCoder(coder.shape, coder.tables, 1).encode(symbols)

    assert len(coder.encode(symbols)) <= len(one) * 1.01 + 4 * (coder.lanes - 1) + 2
