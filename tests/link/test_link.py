"""The link: exactly one outcome for each frame, whatever the server or the network does."""

from __future__ import annotations

import logging
import math
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import grpc
import numpy as np
import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.codec.activation import CodecId
from offramp.common.errors import (
    AccessError,
    MessageError,
    MismatchError,
    OverloadError,
    UnavailableError,
)
from offramp.common.part.engine import Engine
from offramp.common.wire import frame, transport
from offramp.common.wire.frame import ENVELOPE_BYTES
from offramp.link.backoff import BACKOFF_FIRST, BACKOFF_MOST
from offramp.link.link import SENDS, Answer, Cause, Outcome, Refusal
from offramp.v1 import inference_pb2 as pb
from tests import toy
from tests.device import hostile
from tests.device.hostile import BREAKERS, STEPS, Script, answering_each, leaving
from tests.device.linked import LinkTo
from tests.processes import WAIT, Peer, Processes, closed_port, tcp_peer, until


def refused(outcomes: list[Outcome]) -> list[Refusal]:
    found = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    assert len(found) == len(outcomes)
    return found


def answered(outcomes: list[Outcome]) -> list[Answer]:
    found = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    assert len(found) == len(outcomes)
    return found


# --- servers that break the protocol ---


@pytest.mark.parametrize(("script", "message"), [b[1:] for b in BREAKERS], ids=[b[0] for b in BREAKERS])
def test_a_server_that_breaks_the_protocol_is_as_good_as_none(
    linked: LinkTo, script: Script, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with hostile.hostile(script) as server, linked(server.port, timeout=0.5) as device:
        device.offload(3)
        until(lambda: device.link.failure is not None, "the server's failure")
        device.settled()
        device.offload(3)
        refused(device.settled())
        assert message in str(device.link.failure)
        warnings = [record for record in caplog.records if message in record.message]
        # Again only where the server had accepted a stream in between.
        assert 1 <= len(warnings) <= 1 + device.sample("offramp_device_connects_total")
        assert not any(record.exc_info or "\n" in record.message for record in caplog.records)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "status",
    [
        None,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ],
)
def test_a_server_may_leave_at_every_step(
    linked: LinkTo, step: str, status: grpc.StatusCode | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with hostile.hostile(leaving(step, status)) as server, linked(server.port, timeout=5) as device:
        device.offload(4)
        outcomes = device.settled()
        if step != "after a reply":
            refused(outcomes)
        device.offload(2)
        device.settled()
        refusal = status is grpc.StatusCode.FAILED_PRECONDITION and step != "after a reply"
        assert isinstance(device.link.failure, MismatchError if refusal else UnavailableError)
        assert all(record.message.isprintable() for record in caplog.records)


TRANSIENT = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


@pytest.mark.parametrize("status", TRANSIENT, ids=[code.name for code in TRANSIENT])
def test_a_stream_that_somebody_in_between_breaks_is_nobodys_blame(
    linked: LinkTo, status: grpc.StatusCode, caplog: pytest.LogCaptureFixture
) -> None:
    """The first stream is cut with three frames in it, by no words of ours; the next one takes them."""
    caplog.set_level(logging.DEBUG)

    def script(requests: hostile.Requests, context: hostile.Context) -> Iterator[bytes]:
        next(requests)
        yield hostile.accepted()
        numbers = hostile.sequences(requests)
        if server.streams == 1:
            yield hostile.reply(next(numbers))
            next(numbers)
            context.abort(status, "Received RST_STREAM with error code 2")
        for sequence in numbers:
            yield hostile.reply(sequence)

    with hostile.hostile(script) as server, linked(server.port, timeout=20) as device:
        device.offload(6)
        if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
            device.settled()
        else:
            answered(device.settled())
        assert type(device.link.failure) in (UnavailableError, OverloadError)
        if status is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("said", [transport.SAID, ""])
@pytest.mark.parametrize("step", [STEPS[1], STEPS[2]])
def test_a_refusal_counts_in_answer_to_a_hello_and_then_only_in_our_servers_words(
    linked: LinkTo, step: str, said: str
) -> None:
    script = leaving(step, grpc.StatusCode.UNAUTHENTICATED, said)
    with hostile.hostile(script) as server, linked(server.port, timeout=5) as device:
        device.offload(1)
        refused(device.settled())
        refuses = bool(said) or step == STEPS[1]
        expected = AccessError if refuses else UnavailableError
        assert type(device.link.failure) is expected and transport.SAID not in str(device.link.failure)


def test_a_server_that_accepts_and_breaks_is_asked_less_and_less_often(
    linked: LinkTo, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with (
        hostile.hostile(hostile.breaking_after_accepting) as server,
        linked(server.port, timeout=5) as device,
    ):
        device.offload(2)
        refused(device.settled())
        time.sleep(2)
        seconds = time.monotonic() - device.start
        # Pauses of 0.05, 0.1, 0.2, 0.4 s at least: the n-th begins after 0.05 (2^n - 1) s.
        assert server.streams <= 2 + math.log2(1 + seconds / (BACKOFF_FIRST / 2)) + seconds / BACKOFF_MOST
        assert len(caplog.records) <= 4, [record.message for record in caplog.records]


@pytest.mark.parametrize("message", [b"", hostile.reply(1)], ids=["empty", "the same reply"])
def test_a_flood_after_an_answer_ends_the_stream(linked: LinkTo, message: bytes) -> None:
    script = hostile.flooding(message, after=1)
    with hostile.hostile(script) as server, linked(server.port, timeout=5) as device:
        device.offload(1)
        answered(device.settled())
        until(lambda: isinstance(device.link.failure, MessageError), "the end of the flood")
        assert device.sample("offramp_device_message_bytes_total", direction="received") < 100_000


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 100, b"\xff" * 100_000, None]
)
def test_something_that_speaks_no_grpc_is_as_good_as_none(linked: LinkTo, answer: bytes | None) -> None:
    def handle(connection: socket.socket, _: Peer) -> None:
        if answer is None:
            while connection.recv(1 << 16):
                pass
        else:
            connection.sendall(answer)

    with tcp_peer(handle) as peer, linked(peer.port, timeout=0.5) as device:
        device.offload(3)
        refused(device.settled())
        until(lambda: device.link.failure is not None, "the failure")
        assert isinstance(device.link.failure, UnavailableError)


def test_a_connection_that_is_reset_is_made_again(linked: LinkTo) -> None:
    def handle(connection: socket.socket, peer: Peer) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with tcp_peer(handle) as peer, linked(peer.port, timeout=0.5) as device:
        device.offload(3)
        refused(device.settled())
        until(lambda: peer.connections > 1, "a second attempt")


def test_a_server_that_is_not_there_is_said_once(linked: LinkTo, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with closed_port() as port, linked(port) as device:
        assert device.metrics.registry.get_sample_value("offramp_device_reconnects_total") == 0
        device.offload(20)
        for outcome in refused(device.settled()):
            assert "is unreachable" in outcome.reason and not outcome.sends
        until(lambda: device.sample("offramp_device_reconnects_total") > 2, "three attempts")
        assert isinstance(device.link.failure, UnavailableError)
    assert len(caplog.records) == 1


def test_nothing_is_connected_before_the_first_frame(linked: LinkTo) -> None:
    with tcp_peer(lambda connection, _: None) as peer, linked(peer.port) as device:
        device.link.wait_idle()
    assert peer.connections == 0 and not device.link._threads


# --- odd, but allowed ---


def test_duplicate_replies_count_once(linked: LinkTo) -> None:
    twice = answering_each(lambda sequence: [hostile.reply(sequence)] * 2)
    with hostile.hostile(twice) as server, linked(server.port) as device:
        device.offload(30)
        for answer in answered(device.settled()):
            assert (answer.class_index, answer.probability) == (1, 0.75)
        until(lambda: device.sample("offramp_device_late_replies_total") == 30, "the second replies")


def test_replies_may_come_in_any_order(linked: LinkTo) -> None:
    def script(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield hostile.accepted()
        numbers = hostile.sequences(requests)
        first = [next(numbers) for _ in range(8)]
        for sequence in reversed(first):
            yield hostile.reply(sequence, class_index=sequence % 3)

    with hostile.hostile(script) as server, linked(server.port) as device:
        device.offload(8)
        answers = answered(device.settled())
        assert [answer.class_index for answer in answers] == [sequence % 3 for sequence in range(1, 9)]


def test_a_late_reply_changes_nothing(linked: LinkTo) -> None:
    late = threading.Event()

    def script(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield hostile.accepted()
        numbers = hostile.sequences(requests)
        first = next(numbers)
        yield hostile.reply(next(numbers))
        late.wait(WAIT)
        yield hostile.reply(first)
        hostile.hold(context)

    with hostile.hostile(script) as server, linked(server.port, timeout=1) as device:
        device.offload(2)
        slow, fast = device.settled()
        assert isinstance(slow, Refusal) and slow.reason == "no reply within 1 s" and slow.sends == 1
        assert isinstance(fast, Answer)
        late.set()
        until(lambda: device.sample("offramp_device_late_replies_total") == 1, "the late reply")
        assert server.streams == 1


def test_refused_frames_do_not_end_the_stream(linked: LinkTo) -> None:
    def refuse(sequence: int) -> list[bytes]:
        if sequence % 2:
            return [hostile.reply(sequence)]
        error = pb.FrameError(message="no\n\x1b[31mTraceback")
        # A reason of a later protocol.
        error.MergeFromString(b"\x08\x63")
        return [hostile.replies(pb.Reply(sequence=sequence, error=error))]

    with hostile.hostile(answering_each(refuse)) as server, linked(server.port) as device:
        device.offload(10)
        outcomes = device.settled()
        answered(outcomes[::2])
        for outcome in refused(outcomes[1::2]):
            assert outcome.reason == "refused (unknown): no [31mTraceback" and outcome.sends
        assert server.streams == 1
        assert device.sample("offramp_device_frames_refused_total", reason="unknown") == 5


def test_a_server_that_drains_forever_answers_nothing_and_is_not_hammered(linked: LinkTo) -> None:
    with hostile.hostile(hostile.draining_forever) as server, linked(server.port, timeout=1) as device:
        device.offload(5)
        for outcome in refused(device.settled()):
            # Some go out before the notice is there.
            lost = "ended the stream without a reply" if outcome.sends else "no reply within 1 s"
            assert outcome.reason.endswith(lost)
        until(lambda: server.streams > 3, "four streams")
        # At least half of the first pause lies between two streams.
        assert server.streams <= 2 + (time.monotonic() - device.start) / (BACKOFF_FIRST / 2)


def test_a_server_that_chats_but_does_not_answer(linked: LinkTo) -> None:
    with hostile.hostile(hostile.chatting) as server, linked(server.port, timeout=0.5) as device:
        device.offload(5)
        for outcome in refused(device.settled()):
            assert outcome.reason == "no reply within 0.5 s" and outcome.sends


def test_a_full_window_waits_no_longer_than_the_timeout(linked: LinkTo) -> None:
    with (
        hostile.hostile(hostile.first_messages(hostile.accepted())) as server,
        linked(server.port, timeout=0.5, window=2) as device,
    ):
        device.offload(8)
        assert sum(len(mine) for mine in device.outcomes) >= 5
        refused(device.settled())


@pytest.mark.parametrize(
    ("limits", "window", "most"),
    [({"frames_in_flight": 3}, 16, 3), ({}, 5, 5), ({"frames_per_message": 1}, 16, 16)],
)
def test_neither_side_s_limit_is_exceeded(
    linked: LinkTo, limits: dict[str, int], window: int, most: int
) -> None:
    seen: list[int] = []
    sizes: list[int] = []
    full = threading.Event()

    def script(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        def noted() -> Iterator[bytes]:
            for data in requests:
                sizes.append(len(pb.DeviceMessage.FromString(data).frames))
                yield data

        next(requests)
        yield hostile.accepted(**limits)
        numbers = hostile.sequences(noted())
        seen.extend(islice(numbers, most))
        full.wait(WAIT)
        for sequence in seen:
            yield hostile.reply(sequence)
        for sequence in numbers:
            yield hostile.reply(sequence)

    with hostile.hostile(script) as server, linked(server.port, window=window) as device:
        work = threading.Thread(target=device.offload, args=(40,))
        work.start()
        until(lambda: len(seen) == most, "a full window")
        assert len(device.link._outbox) <= window and len(device.link._outbox.sent) <= most
        full.set()
        work.join(WAIT)
        answered(device.settled())
        assert max(sizes) <= limits.get("frames_per_message", 64)


def test_closing_waits_for_what_is_under_way(linked: LinkTo) -> None:
    go = threading.Event()

    def slowly(sequence: int) -> list[bytes]:
        go.wait(WAIT)
        return [hostile.reply(sequence)]

    with hostile.hostile(answering_each(slowly)) as server:
        with linked(server.port) as device:
            device.offload(5)
            closer = threading.Thread(target=device.link.close)
            closer.start()
            assert not any(device.outcomes)
            go.set()
            closer.join(WAIT)
        answered(device.settled())
        device.offload(2)
        for outcome in refused([mine[0] for mine in device.outcomes[5:]]):
            assert outcome == Refusal("closed", Cause.CLOSED)


def test_closing_keeps_what_the_server_did_wrong(linked: LinkTo) -> None:
    """An attempt that close() cuts short must not hide why there was no answer."""
    script = leaving(STEPS[1], grpc.StatusCode.FAILED_PRECONDITION)
    waiting = threading.Event()

    def then_silent(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        if server.streams == 1:
            yield from script(requests, context)
        waiting.set()
        hostile.hold(context)

    with hostile.hostile(then_silent) as server, linked(server.port) as device:
        device.offload(1)
        refused(device.settled())
        waiting.wait(WAIT)
        device.link.close()
        assert isinstance(device.link.failure, MismatchError)


def test_frames_from_several_threads(linked: LinkTo) -> None:
    echo = answering_each(lambda sequence: [hostile.reply(sequence)])
    with hostile.hostile(echo) as server, linked(server.port, window=4) as device:
        threads = [threading.Thread(target=device.offload, args=(50,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        assert len(answered(device.settled())) == 300


# --- frames that are sent again ---


@dataclass
class Seen:
    """What a server was sent, stream by stream: explicit and counted sequence numbers of each message."""

    streams: list[list[tuple[int, list[int]]]] = field(default_factory=list)

    def note(self, requests: Iterator[bytes]) -> Iterator[list[int]]:
        """The sequence numbers of each message after the hello."""
        mine: list[tuple[int, list[int]]] = []
        self.streams.append(mine)
        following = 1
        for data in requests:
            message = pb.DeviceMessage.FromString(data)
            following = message.first_sequence or following
            numbers = list(range(following, following + len(message.frames)))
            for number, sealed in zip(numbers, message.frames, strict=True):
                crc = frame.checksum(number, 0, sealed[:-4]).to_bytes(4, "little")
                assert sealed[-4:] == crc
            following += len(message.frames)
            mine.append((message.first_sequence, numbers))
            yield numbers


def test_frames_without_a_reply_are_sent_again_under_their_numbers(linked: LinkTo) -> None:
    seen = Seen()

    def script(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield hostile.accepted(frames_per_message=1)
        first = not seen.streams
        for index, (number,) in enumerate(seen.note(requests)):
            # The second and the fourth are answered, and then the stream breaks.
            if not first or index in (1, 3):
                yield hostile.reply(number, class_index=number % 3)
            if first and index == 5:
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    with hostile.hostile(script) as server, linked(server.port) as device:
        device.offload(6)
        answers = answered(device.settled())
        device.offload(2)
        answers = answered(device.settled())
        assert device.sample("offramp_device_frames_resent_total") == 4
        assert device.sample("offramp_device_connects_total") == 2
    assert [answer.class_index for answer in answers] == [number % 3 for number in range(1, 9)]
    assert [answer.sends for answer in answers] == [2, 1, 2, 1, 2, 2, 1, 1]
    assert seen.streams[1] == [(0, [1]), (3, [3]), (5, [5]), (0, [6]), (0, [7]), (0, [8])]


def test_a_frame_that_fells_servers_is_not_sent_for_ever(linked: LinkTo) -> None:
    def script(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield hostile.accepted()
        for number in hostile.sequences(requests):
            if number == 2:
                context.abort(grpc.StatusCode.UNAVAILABLE, "felled")
            yield hostile.reply(number)

    with hostile.hostile(script) as server, linked(server.port) as device:
        device.offload(1)
        answered(device.settled())
        device.offload(1)
        _, poison = device.settled()
        assert isinstance(poison, Refusal) and poison.sends == SENDS and "felled" in poison.reason
        assert server.streams >= SENDS
        until(lambda: device.sample("offramp_device_connected") == 1, "another stream")
        device.offload(1)
        answered(device.settled()[2:])


def test_frames_wait_for_the_next_stream_no_longer_than_their_deadline(linked: LinkTo) -> None:
    def script(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        if server.streams > 1:
            hostile.hold(context)
            return
        next(requests)
        yield hostile.accepted()
        numbers = hostile.sequences(requests)
        yield hostile.reply(next(numbers))
        next(numbers)
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    with hostile.hostile(script) as server, linked(server.port, timeout=1) as device:
        device.offload(1)
        answered(device.settled())
        device.offload(5)
        for outcome in refused(device.settled()[1:]):
            assert "within 1 s" in outcome.reason
        assert device.link.failure is not None


# --- the breaker ---


def errors(*reasons: pb.FrameError.Reason, retry_after_ms: int = 0) -> Script:
    """Refuses each frame for the next of these reasons; answers once they are used up."""
    left = list(reasons)

    def answer(sequence: int) -> list[bytes]:
        if not left:
            return [hostile.reply(sequence)]
        error = pb.FrameError(reason=left.pop(0), message="no", retry_after_ms=retry_after_ms)
        return [hostile.replies(pb.Reply(sequence=sequence, error=error))]

    return answering_each(answer)


def test_refusals_in_a_row_open_the_breaker_until_a_probe_is_answered(linked: LinkTo) -> None:
    reason = pb.FrameError.REASON_EXPIRED
    with hostile.hostile(errors(*[reason] * 3)) as server, linked(server.port, failures=3) as device:
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
        hostile.hostile(errors(reason, retry_after_ms=600_000)) as server,
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
        refused(device.settled())
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


# --- several servers ---


def echo() -> Script:
    return answering_each(lambda sequence: [hostile.reply(sequence)])


def test_the_next_server_is_tried_before_a_frame_is_given_up(
    linked: LinkTo, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with closed_port() as dead, hostile.hostile(echo()) as server, linked(dead, server.port) as device:
        device.offload(10)
        answered(device.settled())
        assert device.sample("offramp_device_failovers_total") == 1
    (warning,) = caplog.records
    assert re.search(rf":{dead} is unreachable: .*; trying 127.0.0.1:{server.port}$", warning.message)


def test_all_servers_gone_is_said_once_of_each(linked: LinkTo, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with closed_port() as one, closed_port() as two, linked(one, two) as device:
        device.offload(5)
        refused(device.settled())
        until(lambda: device.sample("offramp_device_reconnects_total") > 4, "three rounds")
        device.offload(5)
        refused(device.settled())
    assert [str(port) in record.message for port, record in zip((one, two), caplog.records, strict=True)]


def test_frames_of_a_server_that_goes_are_answered_by_the_next(linked: LinkTo) -> None:
    def leaves(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield hostile.accepted()
        numbers = hostile.sequences(requests)
        yield hostile.reply(next(numbers))
        next(numbers)
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    with (
        hostile.hostile(leaves) as first,
        hostile.hostile(echo()) as second,
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
    refusing = errors(*[number] * 1000, retry_after_ms=600_000 if reason == "overloaded" else 0)
    with (
        hostile.hostile(refusing) as first,
        hostile.hostile(echo()) as second,
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
        hostile.hostile(echo()) as second,
        linked(first.port, second.port, timeout=1) as device,
    ):
        device.offload(3)
        refused(device.settled())
        until(lambda: second.streams, "the other server")
        device.offload(3)
        answered(device.settled()[3:])
        assert first.streams == 1


def test_two_overloaded_servers_are_both_left_alone(linked: LinkTo) -> None:
    reason = pb.FrameError.REASON_OVERLOADED
    with (
        hostile.hostile(errors(*[reason] * 100, retry_after_ms=600_000)) as first,
        hostile.hostile(errors(*[reason] * 100, retry_after_ms=600_000)) as second,
        linked(first.port, second.port) as device,
    ):
        device.offload(1)
        until(lambda: second.streams == 1, "the other server")
        device.offload(1)
        device.settled()
        device.offload(20)
        assert {outcome.cause for outcome in refused(device.settled()[2:])} == {Cause.BREAKER}
        assert (first.streams, second.streams) == (1, 1)


# --- late replies ---


def test_a_late_reply_is_told_where_it_was_asked_for(linked: LinkTo) -> None:
    go = threading.Event()

    def script(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield hostile.accepted()
        numbers = hostile.sequences(requests)
        first, second = next(numbers), next(numbers)
        yield hostile.reply(next(numbers))
        go.wait(WAIT)
        yield hostile.reply(first, class_index=2)
        yield hostile.reply(first, class_index=0)
        yield hostile.reply(second)
        hostile.hold(context)

    late: list[Answer] = []
    with hostile.hostile(script) as server, linked(server.port, timeout=1) as device:
        device.offload(1, late=late.append)
        device.offload(2)
        slow, other, fast = device.settled()
        assert isinstance(slow, Refusal) and isinstance(other, Refusal) and isinstance(fast, Answer)
        assert device.link.late_replies_due()
        go.set()
        until(lambda: device.sample("offramp_device_late_replies_total") == 3, "the late replies")
        assert [answer.class_index for answer in late] == [2]
        assert not device.link.late_replies_due()


# --- messages that are shared ---


def messages_of(linked: LinkTo, frames: int, **options: Any) -> list[int]:
    """How many frames each message had, with frames handed in one after the other."""
    seen = Seen()
    sizes: list[int] = []

    def script(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield hostile.accepted()
        for numbers in seen.note(requests):
            sizes.append(len(numbers))
            yield hostile.replies(*[pb.Reply(sequence=number, class_index=1) for number in numbers])

    with hostile.hostile(script) as server, linked(server.port, **options) as device:
        device.offload(1)
        until(lambda: device.sample("offramp_device_connected") == 1, "the stream")
        device.offload(frames - 1)
        device.link.wait_idle()
        answered(device.settled())
    return sizes


def test_frames_wait_for_others_up_to_a_count(linked: LinkTo) -> None:
    sizes = messages_of(linked, 24, coalesce=WAIT / 2, coalesce_frames=8, window=64)
    assert sum(sizes) == 24 and all(size >= 8 for size in sizes[:-1])


def test_a_full_window_is_sent_at_once(linked: LinkTo) -> None:
    assert messages_of(linked, 12, coalesce=WAIT / 2, window=4) == [4, 4, 4]


def test_who_waits_for_answers_is_not_kept_waiting(linked: LinkTo) -> None:
    assert messages_of(linked, 5, coalesce=WAIT / 2, window=64) == [5]


def test_a_lone_frame_waits_no_longer_than_said(linked: LinkTo) -> None:
    echo = answering_each(lambda sequence: [hostile.reply(sequence)])
    with hostile.hostile(echo) as server, linked(server.port, coalesce=0.05) as device:
        device.offload(1)
        answered(device.settled())


# --- in the background ---


def test_background_frames_give_way(linked: LinkTo) -> None:
    go = threading.Event()

    def script(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield hostile.accepted()
        for number in hostile.sequences(requests):
            go.wait(WAIT)
            yield hostile.reply(number)

    with hostile.hostile(script) as server, linked(server.port, window=4) as device:
        device.offload(1, background=True)
        (away,) = refused(device.settled())  # nothing is connected yet
        assert not away.sends
        until(lambda: device.sample("offramp_device_connected") == 1, "the stream")
        for sent in (1, 2):
            device.offload(1, background=True)
            until(lambda sent=sent: len(device.link._outbox.sent) == sent, "a sent frame")  # type: ignore[misc]
        device.offload(1, background=True)
        # Half of the window is for others.
        (away,) = refused([device.outcomes[3][0]])
        assert not away.sends
        device.offload(2)
        go.set()
        outcomes = device.settled()
        answered(outcomes[1:3] + outcomes[4:])
        assert device.sample("offramp_device_frames_unanswered_total", cause="window") == 0


# --- time ---


def test_a_clock_that_is_set_changes_nothing(linked: LinkTo, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = cycle([0.0, 1e9, -1e6, 4e9])
    echo = answering_each(lambda sequence: [hostile.reply(sequence)] if sequence % 4 else [])
    with hostile.hostile(echo) as server, linked(server.port, timeout=0.5, failures=100) as device:
        monkeypatch.setattr(time, "time", lambda: next(jumps))
        device.offload(8)
        outcomes = device.settled()
        monkeypatch.undo()
        assert [isinstance(outcome, Answer) for outcome in outcomes] == [True, True, True, False] * 2


# --- the real server ---


def test_answers_are_the_tails(
    linked: LinkTo, run: Processes, toy_bundle: Bundle, toy_engine: Engine
) -> None:
    server = run.server()
    symbols, _ = toy_engine.head(toy.images(60))
    expected = toy_engine.tail(symbols)
    with linked(server.port) as device:
        for index, activation in enumerate(symbols):
            if index % 2:
                device.offload(1, activation.tobytes(), CodecId.RAW)
            else:
                codec, payload = toy_bundle.codec.encode(activation)
                device.offload(1, payload, codec)
        answers = answered(device.settled())
    np.testing.assert_array_equal([a.class_index for a in answers], expected.argmax(axis=1))
    np.testing.assert_allclose([a.probability for a in answers], expected.max(axis=1), atol=1e-5)
    assert all(answer.server_seconds is None or answer.server_seconds > 0 for answer in answers)
    assert any(answer.server_seconds for answer in answers)
    for answer in answers:
        assert answer.message_bytes < answer.wire_bytes <= answer.message_bytes + 2 * ENVELOPE_BYTES


def test_a_bad_frame_costs_its_own_answer_only(linked: LinkTo, run: Processes, toy_bundle: Bundle) -> None:
    server = run.server()
    good = toy_bundle.codec.encode(np.zeros(toy.SHAPE, np.uint8))[1]
    with linked(server.port) as device:
        device.offload(1, good)
        device.offload(1, b"\xff" * 40)
        device.offload(1, good, CodecId.RAW)
        device.offload(1, good + b"\0")
        device.offload(1, b"")
        device.offload(1, good)
        first, *bad, last = device.settled()
        answered([first, last])
        for outcome in refused(bad):
            assert outcome.reason.startswith("refused (payload): ") and outcome.sends
        assert device.sample("offramp_device_connects_total") == 1
        assert device.sample("offramp_device_frames_refused_total", reason="payload") == 4


def test_the_window_keeps_within_the_servers_limit(linked: LinkTo, run: Processes) -> None:
    server = run.server("--frames-in-flight", 2)
    with linked(server.port, window=64) as device:
        device.offload(100, bytes(64), CodecId.RAW)
        answered(device.settled())


def test_another_bundle_is_told_with_both_digests(
    linked: LinkTo, run: Processes, toy_bundle: Bundle, raw_bundle: Bundle
) -> None:
    server = run.server(bundle=raw_bundle.path)
    with linked(server.port) as device:
        device.offload(3)
        refused(device.settled())
        failure = device.link.failure
    assert isinstance(failure, MismatchError)
    assert toy_bundle.digest.hex() in str(failure) and raw_bundle.digest.hex() in str(failure)


def test_a_server_that_comes_up_later_takes_over(linked: LinkTo, run: Processes) -> None:
    with closed_port() as port, linked(port) as device:
        device.offload(2)
        refused(device.settled())
    server = run.server()
    with linked(server.port) as device:
        device.offload(1, bytes(64), CodecId.RAW)
        answered(device.settled())
        server.end()
        until(lambda: device.link.failure is not None, "the failure")
        run.server(listen=server.address)
        until(lambda: device.sample("offramp_device_connected") == 1, "the next stream")
        device.offload(1, bytes(64), CodecId.RAW)
        answered(device.settled())
        assert device.sample("offramp_device_connects_total") == 2
    assert math.isfinite(device.sample("offramp_device_reconnects_total"))
