"""When a stream has to end, without a clock: each case states its times."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from offramp.server.limits import StreamLimits
from offramp.server.stream_age import AGE_JITTER, WATCH_SECONDS, Due, StreamAge, watch_period

LIMITS = StreamLimits(
    frames_in_flight=1,
    max_streams=1,
    strikes=1,
    hello_timeout=5,
    idle_timeout=60,
    max_stream_age=1000,
    write_timeout=10,
    grace=20,
)


def accepted(spread: float = 0, **limits: Any) -> StreamAge:
    """A stream that was opened at 100 s and accepted."""
    age = StreamAge(replace(LIMITS, **limits), 100, spread)
    age.accepted = True
    return age


def test_a_stream_that_does_all_in_time_lives() -> None:
    age = accepted()
    for now in range(100, 1100, 50):
        age.read(now)
        age.write_began(now)
        assert age.check(now + 9) is Due.NOTHING
        age.write_ended()
        assert age.check(now + 49) is Due.NOTHING
    assert not age.draining


def test_a_silent_one_is_asked_once_and_then_ended() -> None:
    age = accepted()
    age.read(150)
    assert age.check(210) is Due.NOTHING
    assert age.check(211) is Due.ASK and age.draining
    assert age.check(212) is Due.NOTHING
    # It has as long to go as a hello may take.
    assert age.check(216) is Due.NOTHING
    assert age.check(216.1) is Due.END


def test_one_that_speaks_after_it_was_asked_is_ended_all_the_same() -> None:
    age = accepted()
    assert age.check(161) is Due.ASK
    age.read(165)
    assert age.check(166.1) is Due.END


@pytest.mark.parametrize("spread", [-1, 0, 1])
def test_an_old_one_has_the_grace_to_go(spread: float) -> None:
    age = accepted(spread, idle_timeout=math.inf)
    old = 100 + 1000 * (1 + AGE_JITTER * spread)
    assert age.check(old) is Due.NOTHING
    assert age.check(old + 1) is Due.ASK
    assert age.check(old + 21) is Due.NOTHING
    assert age.check(old + 21.1) is Due.END


@pytest.mark.parametrize("spread", [-1, 1])
def test_without_a_greatest_age_none_is_old(spread: float) -> None:
    age = accepted(spread, max_stream_age=math.inf, idle_timeout=math.inf)
    assert age.check(1e12) is Due.NOTHING


def test_before_its_hello_only_its_writes_are_bounded() -> None:
    age = StreamAge(LIMITS, 100, 0)
    assert age.check(1e6) is Due.NOTHING
    age.write_began(100)
    assert age.check(110.1) is Due.CUT


def test_a_write_that_does_not_end_counts_before_all_else() -> None:
    age = accepted()
    age.drain(100, end_in=1)
    age.write_began(100)
    assert age.check(110) is Due.END
    assert age.check(110.1) is Due.CUT
    age.write_ended()
    assert age.check(111) is Due.END


def test_draining_without_a_limit_waits_and_still_ends_the_old() -> None:
    """The server's own end is not the stream's to count."""
    age = accepted()
    age.drain(100)
    assert age.draining and age.check(160) is Due.NOTHING
    assert age.check(161) is Due.ASK
    assert age.check(166.1) is Due.END


def test_of_several_ends_the_earliest_counts() -> None:
    age = accepted()
    for now, end_in in ((100, 50), (101, 10), (102, 30)):
        age.drain(now, end_in)
    assert age.check(111) is Due.NOTHING
    assert age.check(111.1) is Due.END


@pytest.mark.parametrize("name", ["idle_timeout", "max_stream_age", "write_timeout", "grace"])
def test_streams_are_checked_four_times_in_the_shortest_limit(name: str) -> None:
    shorter: dict[str, Any] = {name: 0.4}
    assert watch_period(LIMITS) == WATCH_SECONDS
    assert watch_period(replace(LIMITS, **shorter)) == pytest.approx(0.1)
