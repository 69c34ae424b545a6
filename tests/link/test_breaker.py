"""The breaker: opens after failures in a row, lets one probe through at a time, obeys the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import grpc
from hypothesis import given
from hypothesis import strategies as st

from offramp.link.breaker import HOLD_MOST, HOLD_SPREAD, PAUSE_FIRST, PAUSE_MOST, Breaker
from offramp.link.outcome import Answer, Cause
from offramp.v1 import inference_pb2 as pb
from tests.device import hostile
from tests.device.linked import LinkTo, answered, refused
from tests.processes import until


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


# --- of a link ---


def test_refusals_in_a_row_open_the_breaker_until_a_probe_is_answered(linked: LinkTo) -> None:
    reason = pb.FrameError.REASON_EXPIRED
    with hostile.hostile(hostile.errors(*[reason] * 3)) as server, linked(server.port, failures=3) as device:
        for _ in range(3):
            device.offload(1)
            device.settled()
        device.offload(20)
        away = refused(device.settled()[3:])
        assert {outcome.cause for outcome in away} == {Cause.BREAKER} and not any(o.sends for o in away)
        assert "refuses (expired)" in away[0].reason
        assert device.sample("offramp_device_breaker_open") == 1
        assert device.sample("offramp_device_breaker_opens_total") == 1
        assert device.sample("offramp_device_frames_unanswered_total", cause="breaker") == 20

        def probed() -> bool:
            device.offload(1)
            return isinstance(device.settled()[-1], Answer)

        until(probed, "an answered probe")
        assert device.sample("offramp_device_breaker_open") == 0
        device.offload(5)
        answered(device.settled()[-5:])
        assert server.streams == 1


def test_an_overloaded_server_is_left_alone_for_as_long_as_it_asks(linked: LinkTo) -> None:
    reason = pb.FrameError.REASON_OVERLOADED
    with (
        hostile.hostile(hostile.errors(reason, retry_after_ms=600_000)) as server,
        linked(server.port) as device,
    ):
        device.offload(1)
        (first,) = refused(device.settled())
        assert first.cause is Cause.UNAVAILABLE and not first.final
        device.offload(30)
        assert {outcome.cause for outcome in refused(device.settled()[1:])} == {Cause.BREAKER}
        # Not as long as a hostile one asks, though.
        assert 0 < device.link._servers.current.breaker._until - time.monotonic() < 80  # type: ignore[operator]


def test_timeouts_open_the_breaker_also_where_the_server_chats(linked: LinkTo) -> None:
    with hostile.hostile(hostile.chatting) as server, linked(server.port, timeout=0.3, failures=4) as device:
        device.offload(4)
        for outcome in refused(device.settled()):
            assert outcome.reason == "no reply within 0.3 s" and outcome.sends
        device.offload(10)
        assert {outcome.cause for outcome in refused(device.settled()[4:])} == {Cause.BREAKER}
        assert server.streams == 1


def test_a_black_hole_opens_it_at_the_first_timeout(linked: LinkTo) -> None:
    gone = threading.Event()

    def script(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield hostile.accepted()
        for number in hostile.sequences(requests):
            if gone.is_set():
                hostile.hold(context)
                return
            yield hostile.reply(number)

    with hostile.hostile(script) as server, linked(server.port, timeout=0.5, failures=100) as device:
        device.offload(3)
        answered(device.settled())
        gone.set()
        device.offload(1)
        device.settled()
        device.offload(50)
        late = refused(device.settled()[4:])
        assert all(outcome.cause in (Cause.BREAKER, Cause.UNAVAILABLE) for outcome in late)
