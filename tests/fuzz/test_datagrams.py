"""A short run of the datagrams' fuzz. The long one: ``python -m tests.fuzz.datagrams SECONDS``."""

from __future__ import annotations

from tests.fuzz.datagrams import fuzz


def test_nothing_is_found_in_a_few_thousand_cases() -> None:
    assert fuzz(60, 1, 3000) >= 3000
