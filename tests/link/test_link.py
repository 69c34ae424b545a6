"""The link: exactly one outcome for each frame, whatever the server or the network does."""

from __future__ import annotations

import logging
import math
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
    MismatchError,
    UnavailableError,
)
from offramp.common.part.engine import Engine
from offramp.common.wire import frame
from offramp.common.wire.frame import ENVELOPE_BYTES
from offramp.link.backoff import BACKOFF_FIRST
from offramp.link.link import SENDS, Answer, Cause, Refusal
from offramp.link.outbox import BEHIND_MOST
from offramp.v1 import inference_pb2 as pb
from tests import toy
from tests.device import hostile
from tests.device.hostile import STEPS, answering_each, leaving
from tests.device.linked import PAYLOAD, LinkTo, answered, refused
from tests.processes import WAIT, Processes, closed_port, tcp_peer, until


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
            # Some go out before the notice is there, and on a busy machine their time may be over first.
            lost = ("ended the stream without a reply",) if outcome.sends else ()
            assert outcome.reason.endswith((*lost, "no reply within 1 s"))
        until(lambda: server.streams > 3, "four streams")
        # At least half of the first pause lies between two streams.
        assert server.streams <= 2 + (time.monotonic() - device.start) / (BACKOFF_FIRST / 2)


def test_a_full_window_waits_no_longer_than_the_timeout(linked: LinkTo) -> None:
    with (
        hostile.hostile(hostile.first_messages(hostile.accepted())) as server,
        linked(server.port, timeout=0.5, window=2) as device,
    ):
        device.offload(8)
        assert sum(len(mine) for mine in device.outcomes) >= 5
        refused(device.settled())


def test_neither_side_s_limit_is_exceeded(linked: LinkTo) -> None:
    seen: list[int] = []
    most, full = 3, threading.Event()

    def script(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield hostile.accepted(frames_in_flight=most)
        numbers = hostile.sequences(requests)
        seen.extend(islice(numbers, most))
        full.wait(WAIT)
        for sequence in seen:
            yield hostile.reply(sequence)
        for sequence in numbers:
            yield hostile.reply(sequence)

    with hostile.hostile(script) as server, linked(server.port) as device:
        work = threading.Thread(target=device.offload, args=(40,))
        work.start()
        until(lambda: len(seen) == most, "a full window")
        assert len(device.link._outbox.sent) <= most
        full.set()
        work.join(WAIT)
        answered(device.settled())


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
        yield from hostile.breaking_at_the_second(requests, context)

    with hostile.hostile(script) as server, linked(server.port, timeout=1) as device:
        device.offload(1)
        answered(device.settled())
        device.offload(5)
        for outcome in refused(device.settled()[1:]):
            assert "within 1 s" in outcome.reason
        assert device.link.failure is not None


# --- late replies ---


def test_a_late_reply_changes_nothing_and_reaches_who_asked_for_it(linked: LinkTo) -> None:
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
        assert slow.reason == "no reply within 1 s" and slow.sends == 1
        assert device.link.late_replies_due()
        go.set()
        until(lambda: device.sample("offramp_device_late_replies_total") == 3, "the late replies")
        assert [answer.class_index for answer in late] == [2] and server.streams == 1
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


def test_frames_behind_go_after_the_others_and_are_counted_apart(linked: LinkTo) -> None:
    go = threading.Event()
    read: list[int] = []

    def script(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        go.wait(WAIT)
        yield hostile.accepted()
        for number in hostile.sequences(requests):
            read.append(number)
            yield hostile.reply(number)

    with hostile.hostile(script) as server, linked(server.port, window=4) as device:
        # They begin the connection too, and wait for it.
        device.offload(BEHIND_MOST + 1, behind=True)
        (away,) = refused(device.outcomes[BEHIND_MOST])
        assert away.cause is Cause.WINDOW and not away.sends
        device.offload(4)
        others = list(device.link._outbox.waiting)
        go.set()
        outcomes = device.settled()
        answered(outcomes[:BEHIND_MOST] + outcomes[BEHIND_MOST + 1 :])
        assert [each.sequence for each in others] == [1, 2, 3, 4]
        assert read == list(range(1, BEHIND_MOST + 5))
        assert device.sample("offramp_device_audit_bytes_total") == BEHIND_MOST * len(PAYLOAD)
        assert device.sample("offramp_device_payload_bytes_total") == (BEHIND_MOST + 4) * len(PAYLOAD)
        assert device.sample("offramp_device_round_trip_seconds_count") == 4
        assert device.sample("offramp_device_frames_unanswered_total", cause="window") == 0


def test_frames_behind_are_no_probes(linked: LinkTo) -> None:
    """While frames are turned away they are too, and say nothing of the server by waiting here."""
    with closed_port() as port, linked(port) as device:
        device.offload(3, behind=True)
        assert {each.cause for each in refused(device.settled())} == {Cause.UNAVAILABLE}
        until(lambda: device.sample("offramp_device_reconnects_total") > 0, "another attempt")
        device.offload(1, behind=True)
        (away,) = refused(device.outcomes[3])
        assert not away.sends
        assert device.sample("offramp_device_frames_unanswered_total", cause="unavailable") == 0
        assert device.sample("offramp_device_breaker_opens_total") == 0


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


def test_the_refusal_of_another_bundle_names_both_digests(
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
