"""Datagrams on byte streams: what goes in comes out, and a receiver finds its place again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.common.errors import ConfigError
from offramp.common.wire.borders import CobsReader, LengthReader, from_cobs, to_cobs, with_length
from offramp.common.wire.datagram import MOST_BYTES


@pytest.mark.parametrize(
    ("datagram", "coded"),
    [  # as the paper and its many implementations have them
        (b"\x00", "0101"),
        (b"\x11\x22\x00\x33", "0311220233"),
        (b"\x11\x00\x00\x00", "0211010101"),
        (bytes(range(1, 255)), "ff" + bytes(range(1, 255)).hex() + "01"),
        (bytes(range(1, 256)), "ff" + bytes(range(1, 255)).hex() + "02ff"),
    ],
)
def test_known_bytes(datagram: bytes, coded: str) -> None:
    written = to_cobs(datagram)
    assert written.endswith(b"\0") and from_cobs(written[:-1]) == datagram
    assert written[:-1].hex() == coded


@settings(max_examples=60)
@given(st.lists(st.binary(min_size=1, max_size=600), max_size=5), st.integers(1, 40))
def test_a_stream_in_pieces_of_any_size(datagrams: list[bytes], step: int) -> None:
    for reader, write in ((CobsReader(), to_cobs), (LengthReader(), with_length)):
        stream = b"".join(map(write, datagrams))
        found = [one for i in range(0, len(stream), step) for one in reader.feed(stream[i : i + step])]
        assert found == datagrams


def test_lost_bytes_cost_one_datagram() -> None:
    reader = CobsReader()
    stream = to_cobs(b"first") + to_cobs(b"second") + to_cobs(b"third")
    assert reader.feed(stream[:3] + stream[5:]) == [b"second", b"third"]
    assert reader.bad == 1


def test_what_never_ends_is_not_kept() -> None:
    reader = CobsReader()
    for _ in range(80):
        assert reader.feed(b"\x01" * 1024) == []
    assert reader.feed(b"\0" + to_cobs(b"next")) == [b"next"]
    assert reader.bad == 1


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_hostile_bytes(data: bytes) -> None:
    CobsReader().feed(data)
    reader = LengthReader()
    found = reader.feed(data)
    assert all(found)
    if reader.error is not None:
        assert "expected 1 … 65535" in str(reader.error) and reader.feed(with_length(b"next")) == []


def test_lengths_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="expected 1 … 65535"):
        with_length(b"")
    with pytest.raises(ConfigError, match="65536 bytes"):
        with_length(bytes(65_536))
    assert MOST_BYTES <= 65_535
