"""The replay window against a list of all numbers that were taken."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from offramp.gateway.window import WINDOW, Window


@given(st.lists(st.integers(0, 200), max_size=120))
def test_against_a_list_of_all_numbers(numbers: list[int]) -> None:
    window, taken = Window(), set[int]()
    for number in numbers:
        highest = max(taken, default=-1)
        expected = number not in taken and number > highest - WINDOW
        assert window.is_new(number) == expected
        if expected:
            window.take(number)
            taken.add(number)
            assert window.has(number) and not window.is_new(number)
    assert window.seen < 1 << WINDOW


def test_a_leap_forgets_all_before() -> None:
    window = Window()
    for number in (0, 1, 1 << 31):
        window.take(number)
    assert not window.is_new(2) and window.is_new((1 << 31) - 63) and not window.is_new((1 << 31) - 64)
