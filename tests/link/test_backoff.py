"""Pauses between streams, what is said of them, and what a stream may hold that serves nothing."""

from __future__ import annotations

from offramp.link.backoff import (
    BACKOFF_FIRST,
    BACKOFF_MOST,
    IDLE_A_SECOND,
    IDLE_MOST,
    SAY_SECONDS,
    Allowance,
    Backoff,
    Sparingly,
)


def test_pauses_double_until_a_stream_was_of_use() -> None:
    backoff = Backoff(draw=lambda: 1.0)
    pauses = [backoff.after(useful=False, going_round=False) for _ in range(8)]
    assert pauses == [min(BACKOFF_FIRST * 2**n, BACKOFF_MOST) for n in range(8)]
    assert backoff.after(useful=True, going_round=False) == BACKOFF_FIRST
    assert backoff.after(useful=True, going_round=False) == BACKOFF_FIRST
    assert backoff.after(useful=False, going_round=False) == BACKOFF_FIRST


def test_they_do_not_while_there_is_another_server_to_try() -> None:
    backoff = Backoff(draw=lambda: 0.0)
    assert [backoff.after(False, going_round=True) for _ in range(3)] == [BACKOFF_FIRST / 2] * 3


def test_one_line_in_a_time() -> None:
    said = Sparingly()
    assert [said.due(now) for now in (0, 1, SAY_SECONDS - 0.1, SAY_SECONDS, SAY_SECONDS + 1)] == [
        *(True, False, False, True, False)
    ]


def test_the_allowance_is_for_bursts_and_fills_slowly() -> None:
    allowance = Allowance()
    assert all(allowance.take(1, 0.0) for _ in range(IDLE_MOST))
    assert not allowance.take(1, 0.0)
    assert all(allowance.take(1, second / IDLE_A_SECOND * 1.01) for second in range(2, 1000))
    assert not Allowance().take(IDLE_MOST + 1, 0.0)
