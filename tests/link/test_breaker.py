"""The breaker: opens after failures in a row, lets one probe through at a time, obeys the server."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from offramp.link.breaker import HOLD_MOST, HOLD_SPREAD, PAUSE_FIRST, PAUSE_MOST, Breaker


def breaker(failures: int = 3, draw: float = 1.0) -> Breaker:
    """One whose luck is known: with 1 it waits all of each pause."""
    return Breaker(failures, lambda: draw)


def fail(it: Breaker, now: float, count: int = 1) -> None:
    for _ in range(count):
        it.failure(now, "slow", probe=it.take())


def test_it_opens_after_failures_in_a_row_only() -> None:
    it = breaker()
    for _ in range(10):
        fail(it, 0, 2)
        assert it.allows(0) and not it.success()
    fail(it, 0, 3)
    assert it.is_open and not it.allows(0) and (it.opens, it.reason) == (1, "slow")


def test_one_probe_at_a_time_and_its_success_closes_it() -> None:
    it = breaker()
    fail(it, 0, 3)
    assert not it.allows(PAUSE_FIRST - 0.001) and it.allows(PAUSE_FIRST)
    assert it.take()
    assert not it.allows(PAUSE_FIRST + 100)
    assert it.success() and it.allows(0) and not it.is_open
    fail(it, 0, 2)
    assert it.allows(0)


def test_pauses_double_up_to_the_most_and_start_over() -> None:
    it = breaker()
    now, pause = 0.0, PAUSE_FIRST
    fail(it, now, 3)
    for _ in range(8):
        assert not it.allows(now + pause * 0.999) and it.allows(now + pause)
        now += pause
        fail(it, now)
        pause = min(2 * pause, PAUSE_MOST)
    assert it.opens == 1
    it.success()
    fail(it, now, 3)
    assert it.allows(now + PAUSE_FIRST) and it.opens == 2


def test_what_was_on_its_way_before_says_nothing_new() -> None:
    it = breaker()
    fail(it, 0, 3)
    for _ in range(20):
        it.failure(0, "old", probe=False)
    assert it.allows(PAUSE_FIRST)


def test_a_probe_that_was_never_sent_is_followed_by_another() -> None:
    it = breaker()
    fail(it, 0, 3)
    it.take()
    it.release()
    assert it.allows(PAUSE_FIRST)


def test_a_servers_wish_is_obeyed_within_reason() -> None:
    it = breaker(draw=0.0)
    it.hold(0, 3.0, "overloaded")
    assert not it.allows(2.999) and it.allows(3.0)
    it = breaker(draw=1.0)
    it.hold(0, 3.0, "overloaded")
    assert not it.allows(3.0) and it.allows(3.0 * (1 + HOLD_SPREAD))
    it.hold(0, 49 * 86_400.0, "for ever")
    assert it.allows(HOLD_MOST * (1 + HOLD_SPREAD))


def test_a_shorter_wish_does_not_end_a_longer_one() -> None:
    it = breaker(draw=0.0)
    it.hold(0, 5.0, "overloaded")
    it.hold(0, 1.0, "overloaded")
    assert not it.allows(4.9) and it.allows(5.0)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["offer", "success", "failure", "hold", "trip", "release"]),
        st.floats(0, 30),
        st.floats(0, 1),
    ),
    max_size=60,
)


@given(EVENTS, st.integers(1, 8))
def test_it_never_locks_up_and_has_one_probe_at_most(events: list[tuple[str, float, float]], k: int) -> None:
    luck = [0.5]
    it = Breaker(k, lambda: luck[0])
    now, probes = 0.0, 0
    for what, wait, luck[0] in events:
        now += wait
        if what == "offer" and it.allows(now):
            probes += it.take()
        elif what == "success":
            it.success()
            probes = 0
        elif what == "failure":
            it.failure(now, "slow", probe=probes > 0)
            probes = 0
        elif what == "hold":
            it.hold(now, wait, "overloaded")
            probes = 0
        elif what == "trip":
            it.trip(now, "silent")
            probes = 0
        elif what == "release":
            it.release()
            probes = 0
        assert probes <= 1
    it.release()
    assert it.allows(now + max(PAUSE_MOST, HOLD_MOST * (1 + HOLD_SPREAD)))
