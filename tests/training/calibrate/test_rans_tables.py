"""rANS tables from calibration: counted as the coder codes, scaled as cheaply as it can be."""

from __future__ import annotations

from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from offramp.common.codec.rans import SYMBOLS, TOTAL, Kind, encode_lane
from offramp.training.calibrate.rans_tables import (
    RUNS,
    build_table,
    choose_runs,
    scale_to_total,
    table_bits,
    token_counts,
)

runs_and_modes = st.tuples(st.sampled_from([1, 2, 3, *RUNS]), st.integers(0, 5))


@st.composite
def planes(draw: st.DrawFn) -> NDArray[np.uint8]:
    """One channel of a few images, uint8 [N, H·W], from constant to any symbols."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    shape = (draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 7, 16, 150])))
    spread = draw(st.sampled_from([1, 2, 6, 256]))
    rare = rng.random(shape) < draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    return np.where(rare, rng.integers(0, spread, shape), 3).astype(np.uint8)


@given(planes=planes(), kind=runs_and_modes)
def test_counts_are_those_of_the_coders_tokens(planes: NDArray[np.uint8], kind: tuple[int, int]) -> None:
    runs, mode = kind
    counts = token_counts(planes, runs, mode)
    table = build_table(counts, runs, mode)
    found = np.zeros_like(counts)
    for plane in planes:
        for index, literal in table.tokenize(plane.tobytes()):
            token = table.tokens[index]
            symbol = token.symbol if literal is None else literal
            found[-1 if token.kind is Kind.FULL else token.run * SYMBOLS + symbol] += 1

    assert (found == counts).all()


@given(planes=planes(), kind=runs_and_modes)
def test_every_table_is_one_and_its_likeliest_token_comes_first(
    planes: NDArray[np.uint8], kind: tuple[int, int]
) -> None:
    table = build_table(token_counts(planes, *kind), *kind)

    assert sum(token.frequency for token in table.tokens) == TOTAL
    assert len(table.tokens) <= SYMBOLS
    assert table.tokens[0].frequency == max(token.frequency for token in table.tokens)


@given(planes=planes(), kind=runs_and_modes)
def test_table_bits_are_the_bytes_of_the_coder(planes: NDArray[np.uint8], kind: tuple[int, int]) -> None:
    counts = token_counts(planes, *kind)
    table = build_table(counts, *kind)
    lanes = [encode_lane([(table, plane.tobytes())]) for plane in planes]

    assert sum(map(len, lanes)) <= table_bits(table, counts) / 8 * 1.01 + 2.5 * len(planes)


def test_symbols_too_rare_for_a_slot_are_escaped() -> None:
    counts = np.zeros(SYMBOLS + 1, np.int64)
    counts[:SYMBOLS] = 1
    counts[7] = 1_000_000
    table = build_table(counts, 1, 7)

    assert [(token.kind, token.symbol) for token in table.tokens] == [(Kind.SYMBOL, 7), (Kind.ESCAPE, 0)]


@pytest.mark.parametrize("runs", RUNS)
def test_tables_without_counts_code_everything(runs: int) -> None:
    table = build_table(np.zeros(runs * SYMBOLS + 1, np.int64), runs, 9)
    assert encode_lane([(table, bytes(range(256)))])


def best_cost(counts: list[float], total: int) -> float:
    """Bits under the best frequencies of at least 1: every one of them tried."""
    cuts = combinations_with_replacement(range(total - len(counts) + 1), len(counts) - 1)
    costs = []
    for cut in cuts:
        edges = [0, *cut, total - len(counts)]
        frequencies = [1 + b - a for a, b in pairwise(edges)]
        costs.append(sum(c * np.log2(total / f) for c, f in zip(counts, frequencies, strict=True)))
    return float(min(costs))


@pytest.mark.parametrize(
    "counts", [[5, 1, 1], [100, 1, 1, 1], [7, 7, 7], [1000, 0, 3], [0, 0, 0, 1], [9, 5, 3, 2]]
)
def test_scaling_is_optimal(counts: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    total = 24
    monkeypatch.setattr("offramp.training.calibrate.rans_tables.TOTAL", total)
    frequencies = scale_to_total(counts)

    assert sum(frequencies) == total
    assert min(frequencies) >= 1
    cost = sum(c * np.log2(total / f) for c, f in zip(counts, frequencies, strict=True))
    assert cost == pytest.approx(best_cost(counts, total))


@given(st.lists(st.integers(0, 10**9).map(float), min_size=1, max_size=SYMBOLS))
def test_scaling_sums_to_the_total_with_a_slot_for_each(counts: list[float]) -> None:
    frequencies = scale_to_total(counts)

    assert sum(frequencies) == TOTAL
    assert min(frequencies) >= 1


def test_runs_are_chosen_where_they_pay() -> None:
    """For symbols that come at distances of their own, and to have fewer tokens at the same bits."""
    rng = np.random.default_rng(0)
    regular = np.where(np.arange(256) % 16 == 15, rng.integers(0, 3, (40, 256)), 5).astype(np.uint8)
    dense = rng.normal(100, 20, (40, 256)).astype(np.uint8)
    constant = np.full((40, 256), 5, np.uint8)

    assert choose_runs(regular)[0] >= 16
    assert choose_runs(dense)[0] <= 4
    assert choose_runs(constant)[0] > 1
