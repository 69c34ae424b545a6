"""Lanes: whole channels, evenly; a payload falls apart into what it was joined from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.common.codec.lanes import MAX_LANES, join_lanes, lane_channels, length_bytes, split_lanes
from offramp.common.errors import PayloadError

parts = st.lists(st.binary(max_size=40), min_size=1, max_size=MAX_LANES)
sizes = st.sampled_from([1000, 65_535, 65_536, 1 << 22])


@given(channels=st.integers(1, 4096), lanes=st.integers(1, MAX_LANES))
def test_lanes_are_runs_of_channels_that_differ_by_one_at_most(channels: int, lanes: int) -> None:
    lanes = min(lanes, channels)
    spans = lane_channels(channels, lanes)

    assert [c for span in spans for c in span] == list(range(channels))
    assert len(spans) == lanes
    assert 1 <= min(map(len, spans)) <= max(map(len, spans)) <= min(map(len, spans)) + 1


@pytest.mark.parametrize(("symbols", "width"), [(1, 2), (65_535, 2), (65_536, 4), (1 << 22, 4)])
def test_a_length_has_as_many_bytes_as_a_payload_of_that_size_needs(symbols: int, width: int) -> None:
    assert length_bytes(symbols) == width
    assert symbols - 1 < 1 << 8 * width


@given(parts=parts, symbols=sizes)
def test_splitting_gives_what_was_joined(parts: list[bytes], symbols: int) -> None:
    payload = join_lanes(parts, symbols)

    assert len(payload) == sum(map(len, parts)) + length_bytes(symbols) * (len(parts) - 1)
    assert split_lanes(payload, len(parts), symbols) == parts


@given(payload=st.binary(max_size=60), lanes=st.integers(1, MAX_LANES), symbols=sizes)
def test_joining_gives_what_was_split(payload: bytes, lanes: int, symbols: int) -> None:
    try:
        parts = split_lanes(payload, lanes, symbols)
    except PayloadError:
        return
    assert join_lanes(parts, symbols) == payload


@given(parts=parts, symbols=sizes)
def test_a_payload_cut_within_its_lengths_is_refused(parts: list[bytes], symbols: int) -> None:
    payload = join_lanes(parts, symbols)
    for size in range(len(payload) - len(parts[-1])):
        with pytest.raises(PayloadError, match=rf"the payload of {size} bytes ends within lane \d of"):
            split_lanes(payload[:size], len(parts), symbols)


def test_one_lane_is_the_payload() -> None:
    assert join_lanes([b"payload"], 1000) == b"payload"


def test_lengths_by_eye() -> None:
    assert join_lanes([b"a", b"bcd", b"ef"], 1000) == b"\1\0\3\0abcdef"
    assert join_lanes([b"a", b"bc"], 65_536) == b"\1\0\0\0abc"


def test_a_payload_longer_than_the_symbols_is_refused() -> None:
    assert split_lanes(bytes(16), 1, 16) == [bytes(16)]
    with pytest.raises(PayloadError, match="the payload of 17 bytes is longer than its 16 symbols"):
        split_lanes(bytes(17), 1, 16)


def test_a_lane_whose_length_does_not_fit_makes_a_payload_that_is_never_sent() -> None:
    payload = join_lanes([bytes(65_536), b""], 60_000)
    assert payload[:2] == bytes(2)
    assert len(payload) > 60_000
