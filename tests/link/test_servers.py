"""Which server is next, and what the end of a stream means for frames, pauses and the log."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from offramp.common.errors import ConfigError, MessageError, OfframpError, OverloadError, UnavailableError
from offramp.link.backoff import SAY_SECONDS
from offramp.link.outcome import Cause
from offramp.link.servers import BRIEF_SECONDS, FRUITLESS, End, Servers
from offramp.v1 import inference_pb2 as pb
from tests.device import hostile
from tests.device.linked import LinkTo, answered
from tests.device.linked import refused as refusals
from tests.processes import closed_port, until

ADDRESSES = ["a:1", "b:2", "c:3"]


@pytest.fixture
def servers() -> Servers:
    return Servers(ADDRESSES, failures=2, draw=lambda: 1.0)


def after(servers: Servers, now: float) -> str:
    servers.go_on(now)
    return servers.current.target


def test_they_are_tried_in_order_and_round_again(servers: Servers) -> None:
    assert servers.current.target == "a:1"
    assert [after(servers, 0) for _ in range(4)] == ["b:2", "c:3", "a:1", "b:2"]
    assert servers.current.target == "b:2"


def test_a_lone_server_is_its_own_successor() -> None:
    alone = Servers(["[::1]:7"], failures=1)
    assert not alone.go_on(0) and alone.current.target == "[::1]:7"
    alone.current.breaker.trip(0, "")
    alone.current.away_until = 100
    assert not alone.go_on(0) and not alone.better(0)


def test_one_that_asked_to_be_left_alone_or_failed_is_passed_over(servers: Servers) -> None:
    first = servers.current
    servers.go_on(0)
    servers.current.away_until = 50
    servers.go_on(0)
    servers.current.breaker.trip(0, "silent")
    servers.current = first
    assert after(servers, 0) == "a:1"
    # Its breaker has a probe due, and then the other's time is over.
    assert after(servers, 10) == "c:3"
    servers.current = first
    assert after(servers, 50) == "b:2"


def test_where_none_is_ready_the_first_to_be_is_next(servers: Servers) -> None:
    for seconds in (30, 20, 40):
        servers.current.away_until = seconds
        servers.go_on(0)
    assert servers.current.target == "b:2" or after(servers, 0) == "b:2"


def test_a_better_one_has_no_open_breaker(servers: Servers) -> None:
    assert not servers.better(0)
    servers.current.breaker.trip(0, "overloaded")
    assert servers.better(0) and servers.new_opens() == 1
    for _ in range(2):
        servers.go_on(0)
        servers.current.breaker.trip(0, "overloaded")
    assert not servers.better(0) and servers.new_opens() == 2
    assert servers.new_opens() == 0


def test_those_before_the_current_one_are_preferred_in_their_order_but_for_those_to_leave_alone(
    servers: Servers,
) -> None:
    assert (servers.is_first, servers.preferred(0)) == (True, [])
    first = servers.current
    servers.go_on(0)
    second = servers.current
    servers.go_on(0)
    assert (servers.is_first, servers.preferred(0)) == (False, [first, second])
    first.away_until = 50
    assert servers.preferred(0) == [second] and servers.preferred(50) == [first, second]
    second.breaker.trip(50, "silent")
    assert servers.preferred(50) == [first] and servers.preferred(60) == [first, second]


# --- what the end of a stream means ---

GONE = UnavailableError("gone")


def end(error: OfframpError | None = GONE, **changed: bool) -> End:
    """A stream that was accepted, answered frames and broke, but for these changes."""
    facts = {"accepted": True, "useful": True, "silent": False, "waiting": True, **changed}
    return End(error, **facts)


def refused() -> End:
    """A server that cannot be reached."""
    return end(accepted=False, useful=False)


def test_a_round_is_over_when_all_have_failed(servers: Servers) -> None:
    for _ in range(2):
        assert servers.ended(servers.current, refused(), 0.0, down=False).waits
        assert (servers.round_is_over, servers.going_round) == (False, True)
    assert not servers.ended(servers.current, refused(), 0.0, down=False).waits
    assert (servers.round_is_over, servers.going_round) == (True, False)
    assert servers.ended(servers.current, end(), 0.0, down=True).waits
    assert (servers.round_is_over, servers.going_round) == (False, False)


def test_where_the_link_is_down_frames_wait_for_a_stream_that_works_only(servers: Servers) -> None:
    assert not servers.ended(servers.current, refused(), 0.0, down=True).waits
    assert servers.ended(servers.current, end(), 0.0, down=True).waits


@pytest.mark.parametrize(
    ("facts", "worked"),
    [
        (end(), True),
        (end(None), True),
        (end(useful=False), True),
        (refused(), False),
        (end(silent=True), False),
        (end(MessageError("nonsense")), False),
        (end(OverloadError("full")), False),
    ],
)
def test_a_stream_worked_if_it_was_accepted_and_nobody_is_to_blame(
    servers: Servers, facts: End, worked: bool
) -> None:
    assert servers.ended(servers.current, facts, 0.0, down=False).worked is worked


def test_streams_that_break_in_a_row_and_were_of_no_use_are_not_believed_in(servers: Servers) -> None:
    for _ in range(2):
        for _ in range(FRUITLESS - 1):
            assert servers.ended(servers.current, end(useful=False), 0.0, down=False).worked
        # One of use begins the row again; one that both sides ended is not in it.
        assert servers.ended(servers.current, end(None, useful=False), 0.0, down=False).worked
        assert servers.ended(servers.current, end(), 0.0, down=False).worked
    for facts in (*[refused()] * FRUITLESS, *[end(useful=False)] * (FRUITLESS - 1)):
        servers.ended(servers.current, facts, 0.0, down=False)
    assert servers.fruitless == FRUITLESS - 1
    assert not servers.ended(servers.current, end(useful=False), 0.0, down=False).worked


def test_a_failure_is_a_warning_once_a_kind_until_the_server_answers(servers: Servers) -> None:
    server = servers.current

    def level(facts: End) -> int:
        return servers.ended(server, facts, 100.0, down=False).level

    other = MessageError("nonsense")
    assert [level(refused()), level(refused())] == [logging.WARNING, logging.DEBUG]
    assert [level(end(other, useful=False)), level(end(other, useful=False))] == [
        logging.WARNING,
        logging.DEBUG,
    ]
    # So is a stream that was of use without a reply; it ends with the same failure again.
    level(end(other))
    assert level(end(other, useful=False)) == logging.WARNING


def test_a_stream_that_worked_is_no_warning_and_said_now_and_then(servers: Servers) -> None:
    levels = [servers.ended(servers.current, end(), now, down=False).level for now in (0.0, 1.0, SAY_SECONDS)]
    assert levels == [logging.INFO, logging.DEBUG, logging.INFO]


def test_a_server_that_is_away_briefly_is_no_warning_unless_a_frame_goes_without(servers: Servers) -> None:
    def level(later: float, waiting: bool) -> int:
        servers.ended(servers.current, end(), 100.0, down=False)
        servers.current.warned_of = None
        facts = end(accepted=False, useful=False, waiting=waiting)
        return servers.ended(servers.current, facts, 100.0 + later, down=False).level

    assert level(BRIEF_SECONDS / 2, waiting=False) < logging.WARNING
    assert level(BRIEF_SECONDS / 2, waiting=True) == logging.WARNING
    assert level(BRIEF_SECONDS * 2, waiting=False) == logging.WARNING


@pytest.mark.parametrize("address", ["a", "a:b", ":1", "::1:2"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="--server"):
        Servers(["a:1", address], failures=1)


# --- of a link ---


def test_the_next_server_is_tried_before_a_frame_is_given_up(
    linked: LinkTo, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with (
        closed_port() as dead,
        hostile.hostile(hostile.echo()) as server,
        linked(dead, server.port) as device,
    ):
        device.offload(10)
        answered(device.settled())
        assert device.sample("offramp_device_failovers_total") == 1
    (warning,) = caplog.records
    assert re.search(rf":{dead} is unreachable: .*; trying 127.0.0.1:{server.port}$", warning.message)


def test_all_servers_gone_is_said_once_of_each(linked: LinkTo, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with closed_port() as one, closed_port() as two, linked(one, two) as device:
        device.offload(5)
        refusals(device.settled())
        until(lambda: device.sample("offramp_device_reconnects_total") > 4, "three rounds")
        device.offload(5)
        refusals(device.settled())
    assert [str(port) in record.message for port, record in zip((one, two), caplog.records, strict=True)]


def test_frames_of_a_server_that_goes_are_answered_by_the_next(linked: LinkTo) -> None:
    with (
        hostile.hostile(hostile.breaking_at_the_second) as first,
        hostile.hostile(hostile.echo()) as second,
        linked(first.port, second.port) as device,
    ):
        device.offload(1)
        device.settled()
        device.offload(5)
        assert {answer.sends for answer in answered(device.settled())} == {1, 2}
        assert (first.streams, second.streams) == (1, 1)


@pytest.mark.parametrize("reason", ["overloaded", "expired"])
def test_a_server_whose_breaker_opens_is_left_for_another(linked: LinkTo, reason: str) -> None:
    """Also its probe is for that server only; nothing waits for the first one's pause."""
    number: Any = pb.FrameError.Reason.Value(f"REASON_{reason.upper()}")
    refusing = hostile.errors(*[number] * 1000, retry_after_ms=600_000 if reason == "overloaded" else 0)
    with (
        hostile.hostile(refusing) as first,
        hostile.hostile(hostile.echo()) as second,
        linked(first.port, second.port, failures=2) as device,
    ):
        device.offload(2)
        device.settled()
        until(lambda: second.streams == 1, "the other server")
        device.offload(20)
        answered(device.settled()[2:])
        assert device.sample("offramp_device_breaker_opens_total") == 1
        assert device.sample("offramp_device_breaker_open") == 0
        assert device.sample("offramp_device_connected") == 1
        assert (first.streams, second.streams) == (1, 1)


def test_a_server_that_falls_silent_is_left_for_another(linked: LinkTo) -> None:
    with (
        hostile.hostile(hostile.first_messages(hostile.accepted())) as first,
        hostile.hostile(hostile.echo()) as second,
        linked(first.port, second.port, timeout=1) as device,
    ):
        device.offload(3)
        refusals(device.settled())
        until(lambda: second.streams, "the other server")
        device.offload(3)
        answered(device.settled()[3:])
        assert first.streams == 1


def test_two_overloaded_servers_are_both_left_alone(linked: LinkTo) -> None:
    reason = pb.FrameError.REASON_OVERLOADED
    with (
        hostile.hostile(hostile.errors(*[reason] * 100, retry_after_ms=600_000)) as first,
        hostile.hostile(hostile.errors(*[reason] * 100, retry_after_ms=600_000)) as second,
        linked(first.port, second.port) as device,
    ):
        device.offload(1)
        until(lambda: second.streams == 1, "the other server")
        device.offload(1)
        device.settled()
        device.offload(20)
        assert {outcome.cause for outcome in refusals(device.settled()[2:])} == {Cause.BREAKER}
        assert (first.streams, second.streams) == (1, 1)
