"""A disk that fails: pauses that double, and few warnings."""

from __future__ import annotations

import logging

from offramp.device.spool.trouble import QUIET_SECONDS, RETRY_SECONDS, RETRY_SECONDS_MOST, Trouble


def test_pauses_double_up_to_a_bound_until_something_worked() -> None:
    trouble, now, pauses = Trouble(), 0.0, []
    assert not trouble.is_left_alone(now)
    for _ in range(12):
        trouble.failed(now)
        pause = RETRY_SECONDS
        while trouble.is_left_alone(now + pause):
            pause *= 2
        pauses.append(pause)
        now += pause
    assert pauses[:4] == [RETRY_SECONDS * 2**n for n in range(4)]
    assert RETRY_SECONDS_MOST <= pauses[-1] == pauses[-2] < 2 * RETRY_SECONDS_MOST
    trouble.worked()
    trouble.failed(now)
    assert trouble.is_left_alone(now) and not trouble.is_left_alone(now + RETRY_SECONDS)


def test_a_new_file_is_tried_at_once() -> None:
    trouble = Trouble()
    trouble.failed(5.0)
    assert trouble.is_left_alone(5.0)
    trouble.starts_over()
    assert not trouble.is_left_alone(5.0)


def test_a_failing_disk_is_a_warning_once_and_then_after_it_worked_and_some_time() -> None:
    trouble = Trouble()
    assert [trouble.failed(now) for now in (0.0, QUIET_SECONDS + 1)] == [logging.WARNING, logging.DEBUG]
    trouble.worked()
    assert trouble.failed(QUIET_SECONDS + 2) == logging.WARNING
    trouble.worked()
    assert trouble.failed(QUIET_SECONDS + 3) == logging.DEBUG


def test_bad_rows_are_a_warning_once() -> None:
    trouble = Trouble()
    assert [trouble.bad_rows(), trouble.bad_rows()] == [logging.WARNING, logging.DEBUG]
