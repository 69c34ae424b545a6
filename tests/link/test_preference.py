"""Servers in an order of preference: left where they fail, gone back to once they take streams again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from offramp.link import preference
from offramp.link.preference import RETURN_FIRST, RETURN_MOST, Pauses
from tests.device import hostile
from tests.device.hostile import Context, Requests, Script
from tests.device.linked import LinkTo, answered
from tests.processes import WAIT, until


def test_looks_are_rarer_while_they_fail_until_the_first_answers_again() -> None:
    pauses = Pauses(draw=lambda: 1.0)
    assert [pauses.after(asked=False, settled=True) for _ in range(3)] == [RETURN_FIRST] * 3
    found = [pauses.after(asked=True, settled=False) for _ in range(8)]
    assert found[:3] == [RETURN_FIRST, 2 * RETURN_FIRST, 4 * RETURN_FIRST] and found[-1] == RETURN_MOST
    # Gone back to, but it has answered nothing yet.
    assert pauses.after(asked=False, settled=False) == RETURN_MOST
    assert pauses.after(asked=False, settled=True) == RETURN_FIRST
    assert Pauses(draw=lambda: 0.0).after(asked=False, settled=True) == RETURN_FIRST / 2


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preference, "RETURN_FIRST", 0.05)


def breaks_once(later: Script, back: threading.Event | None = None) -> Script:
    """Answers one frame of its first stream and breaks it at the second; then as the other script.

    back: until it is set, later streams have no answer.
    """
    streams = iter(range(1000))

    def script(requests: Requests, context: Context) -> Iterator[bytes]:
        if next(streams):
            assert back is None or back.wait(WAIT)
            yield from later(requests, context)
            return
        yield from hostile.breaking_at_the_second(requests, context)

    return script


@pytest.mark.usefixtures("soon")
def test_a_preferred_server_is_gone_back_to_once_it_takes_streams(linked: LinkTo) -> None:
    back = threading.Event()
    with (
        hostile.hostile(breaks_once(hostile.echo(), back)) as first,
        hostile.hostile(hostile.echo()) as second,
        linked(first.port, second.port, prefer_first=True) as device,
    ):
        device.offload(1)
        device.settled()
        device.offload(1)
        device.settled()
        back.set()
        until(lambda: device.sample("offramp_device_failovers_total") == 2, "the first server again")
        device.offload(5)
        answers = answered(device.settled())
        servers = [f"127.0.0.1:{each.port}" for each in (first, second)]
        assert [each.server for each in answers] == [servers[0], servers[1], *[servers[0]] * 5]
        said = [device.sample("offramp_device_server_answers_total", server=each) for each in servers]
        assert said == [6, 1]
        # One at least to ask, beside those that had frames.
        assert first.streams >= 3 and second.streams == 1
        assert device.sample("offramp_device_connects_total") == 3


@pytest.mark.usefixtures("soon")
def test_what_the_other_does_not_answer_in_time_is_sent_again(linked: LinkTo) -> None:
    back = threading.Event()
    with (
        hostile.hostile(breaks_once(hostile.echo(), back)) as first,
        hostile.hostile(hostile.answering(hostile.reply(2))) as second,
        linked(first.port, second.port, prefer_first=True, timeout=2) as device,
    ):
        servers = [f"127.0.0.1:{each.port}" for each in (first, second)]
        device.offload(1)
        device.settled()
        device.offload(2)
        until(lambda: device.outcomes[1], "the other's answer")
        back.set()
        answers = answered(device.settled())
        assert [each.server for each in answers] == [servers[0], servers[1], servers[0]]


@pytest.mark.usefixtures("soon")
def test_the_end_does_not_wait_for_one_that_is_asked(linked: LinkTo) -> None:
    with (
        hostile.hostile(breaks_once(hostile.first_messages())) as first,
        hostile.hostile(hostile.echo()) as second,
        linked(first.port, second.port, prefer_first=True) as device,
    ):
        device.offload(1)
        device.settled()
        device.offload(1)
        device.settled()
        until(lambda: first.streams == 2, "the question")
        start = time.monotonic()
        device.link.close()
        assert time.monotonic() - start < WAIT / 2


@pytest.mark.usefixtures("soon")
def test_one_that_takes_no_streams_is_left_alone(linked: LinkTo) -> None:
    refuses = hostile.leaving("after the hello", grpc.StatusCode.UNAVAILABLE)
    with (
        hostile.hostile(breaks_once(refuses)) as first,
        hostile.hostile(hostile.echo()) as second,
        linked(first.port, second.port, prefer_first=True) as device,
    ):
        device.offload(1)
        device.settled()
        device.offload(1)
        until(lambda: first.streams >= 3, "two questions")
        device.offload(5)
        assert {each.server for each in answered(device.settled())[1:]} == {f"127.0.0.1:{second.port}"}
        assert second.streams == 1 and device.sample("offramp_device_failovers_total") == 1
