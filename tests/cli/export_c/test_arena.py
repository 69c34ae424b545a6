"""Buffers that meet share no byte, and those that do not meet may."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from offramp.cli.export_c.arena import ALIGNMENT, Buffer, bound, plan


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 30), st.integers(0, 10)), max_size=12))
def test_no_byte_is_used_twice_at_a_time(given: list[tuple[int, int, int]]) -> None:
    buffers = [Buffer(str(n), size, first, first + steps) for n, (size, first, steps) in enumerate(given)]
    arena = plan(buffers)
    for buffer in buffers:
        at = arena.places[buffer.name]
        assert at % ALIGNMENT == 0
        assert 0 <= at <= at + buffer.bytes <= arena.bytes
    for a, b in combinations(buffers, 2):
        if a.meets(b):
            first, second = sorted([(arena.places[a.name], a.bytes), (arena.places[b.name], b.bytes)])
            assert first[0] + first[1] <= second[0]
    least, held = bound(buffers)
    assert least == sum(each.bytes for each in held) <= arena.bytes


def test_what_is_needed_later_takes_the_place_of_what_no_longer_is() -> None:
    arena = plan([Buffer("early", 100, 0, 3), Buffer("late", 96, 4, 9), Buffer("always", 8, 0, 9)])
    assert arena.places["early"] == arena.places["late"] == 0
    assert arena.bytes == 112
