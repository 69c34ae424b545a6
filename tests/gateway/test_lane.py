"""What becomes of requests while servers come and go: one outcome each, bounded."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from offramp.common.codec.activation import CodecId
from offramp.common.wire.datagram import ReplyError
from offramp.gateway.lane import Job, Lane, error_of
from offramp.link.outcome import Answer, Cause, Refusal
from tests.gateway.fakes import FakeLink, away
from tests.processes import until

Said = list[Answer | ReplyError]


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@pytest.fixture
def lane(link: FakeLink) -> Iterator[Lane]:
    made = Lane(link, 3, "toy")
    yield made
    made.close(1.0)


def job(payload: bytes, said: Said, seconds: float = 60.0) -> Job:
    return Job(CodecId.BUNDLE, payload, said.append, time.monotonic() + seconds)


def test_an_answer_and_a_refusal(link: FakeLink, lane: Lane) -> None:
    said: Said = []
    lane.put(job(b"\3", said))
    until(lambda: said, "an answer")
    link.refuses = lambda _: Refusal("refused (payload): too short", Cause.REFUSED, 1)
    lane.put(job(b"\4", said))
    until(lambda: len(said) == 2, "a refusal")
    assert isinstance(said[0], Answer) and said[0].class_index == 3
    assert said[1] is ReplyError.PAYLOAD and link.seen == [b"\3", b"\4"] and len(lane) == 0


def test_what_waits_is_answered_when_the_server_is_back_in_order(
    link: FakeLink, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.gateway.lane.PAUSE_SECONDS", 0.01)
    said: Said = []
    link.refuses = away
    for payload in (b"\1", b"\2", b"\3"):
        lane.put(job(payload, said))
    until(lambda: len(link.seen) > 3, "further tries")
    link.refuses = lambda _: None
    until(lambda: len(said) == 3, "the answers")
    assert [each.class_index for each in said if isinstance(each, Answer)] == [1, 2, 3]


def test_too_many_and_too_long(link: FakeLink, lane: Lane) -> None:
    said: Said = []
    link.refuses = away
    old: Said = []
    lane.put(job(b"\0", old))
    for payload in (b"\1", b"\2"):
        lane.put(job(payload, said, 0.05))
    lane.put(job(b"\3", said, 0.05))
    until(lambda: len(said) + len(old) == 4, "an error for each")
    assert ReplyError.OVERLOADED in [*old, *said]
    assert said.count(ReplyError.UNAVAILABLE) >= 2 and len(lane) == 0


def test_the_end_leaves_nothing_without_an_outcome(link: FakeLink) -> None:
    lane, said = Lane(link, 9, "toy"), list[Answer | ReplyError]()
    link.refuses = away
    for payload in (b"\1", b"\2"):
        lane.put(job(payload, said))
    lane.close(0.0)
    assert said == [ReplyError.UNAVAILABLE] * 2


def test_errors_of_refusals() -> None:
    assert error_of(Refusal("refused (codec): 3", Cause.REFUSED)) is ReplyError.CODEC
    assert error_of(Refusal("the reply makes no sense", Cause.REFUSED)) is ReplyError.INTERNAL
    for cause in set(Cause) - {Cause.REFUSED}:
        assert error_of(Refusal("refused (codec)", cause)) is None
