"""Datagrams in pieces: all orders, doubled and lost pieces, and what may wait."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.common.errors import ConfigError, MessageError
from offramp.common.wire.fragments import Assembler, fragment


@settings(max_examples=80)
@given(st.binary(min_size=1, max_size=500), st.integers(8, 60), st.randoms(use_true_random=False), st.data())
def test_any_order_and_doubled(whole: bytes, size: int, random: object, data: st.DataObject) -> None:
    pieces = fragment(whole, size, 7)
    assert all(len(piece) <= size for piece in pieces)
    if len(whole) <= size:
        assert pieces == [whole]
        return
    order = data.draw(st.permutations(pieces))
    assembler = Assembler()
    found = [assembler.add("a", piece, 0) for each in order[:-1] for piece in (each, each)]
    assert found == [None] * len(found)
    assert assembler.add("a", order[-1], 0) == whole
    assert assembler.waiting_bytes == 0 and assembler.given_up == 0


def test_senders_and_numbers_are_kept_apart() -> None:
    assembler = Assembler()
    one, two = fragment(bytes(20), 15, 1), fragment(bytes(range(20)), 15, 1)
    three = fragment(bytes([7] * 20), 15, 2)
    assert [assembler.add(who, piece[0], 0) for who, piece in (("a", one), ("b", two), ("a", three))] == [
        None
    ] * 3
    assert assembler.add("a", one[1], 0) == bytes(20)
    assert assembler.add("a", three[1], 0) == bytes([7] * 20)
    assert assembler.add("b", two[1], 0) == bytes(range(20))


def test_the_next_datagram_under_an_id_takes_the_place_of_one_that_lost_a_piece() -> None:
    assembler = Assembler()
    old, new = fragment(bytes(30), 13, 1), fragment(bytes(range(30)), 13, 1)
    assembler.add("a", old[0], 0)
    assert [assembler.add("a", piece, 1) for piece in new] == [None, None, bytes(range(30))]
    assert assembler.given_up == 1


def test_a_mixture_of_two_under_one_id_is_over_when_one_is_sent_again() -> None:
    """It may be lost once, and what is put together of both fails its checksum."""
    assembler = Assembler()
    for first, second in ((bytes(90), bytes([1] * 25)), (bytes([2] * 25), bytes([3] * 90))):
        old, new = fragment(first, 13, 1), fragment(second, 13, 1)
        assembler.add("a", old[-1], 0)
        found = [assembler.add("a", piece, 1) for _ in range(2) for piece in new]
        assert second in found


def test_what_waits_is_bounded() -> None:
    assembler = Assembler(seconds=10, most=3, most_bytes=100)
    for sender in range(5):
        assembler.add(sender, fragment(bytes(30), 13, 1)[0], 0)
    assert assembler.given_up == 2 and assembler.waiting_bytes == 30
    assembler.add(9, fragment(bytes(200), 103, 1)[0], 0)
    assert assembler.waiting_bytes <= 100
    assembler.expire(10.1)
    assert assembler.waiting_bytes == 0 and assembler.given_up == 6


def test_pieces_that_are_too_many_in_all() -> None:
    assembler = Assembler(most_bytes=1 << 20)
    with pytest.raises(MessageError, match="over 65507 bytes"):
        for index in range(128):
            assembler.add("a", bytes([0x28, 1, index]) + bytes(600), 0)
    assert assembler.waiting_bytes == 0


def test_what_does_not_fit() -> None:
    assert len(fragment(bytes(128 * 48), 51, 0)) == 128
    with pytest.raises(ConfigError, match="at most 128 pieces of 48 bytes"):
        fragment(bytes(128 * 48 + 1), 51, 0)
    with pytest.raises(ConfigError, match="at most 128 pieces of 0 bytes"):
        fragment(bytes(10), 3, 0)


@pytest.mark.parametrize(
    ("data", "words"), [(b"\x28\1\0", "of 3 bytes"), (b"\x29\1\0x", "29, expected"), (b"\x20abc", "20")]
)
def test_malformed_pieces(data: bytes, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        Assembler().add("a", data, 0)


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=12), max_size=12))
def test_hostile_pieces(pieces: list[bytes]) -> None:
    assembler = Assembler(most=2, most_bytes=30)
    for piece in pieces:
        try:
            assembler.add("a", b"\x28" + piece, 0)
        except MessageError as error:
            assert "expected" in str(error)
    assert 0 <= assembler.waiting_bytes <= 30
