"""The link: exactly one outcome for each frame, whatever the server or the network does."""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice

import grpc
import numpy as np
import pytest

from offramp.common.bundle import Bundle
from offramp.common.codec import CodecId
from offramp.common.engine import Engine
from offramp.common.errors import MismatchError, PeerError, UnavailableError
from offramp.common.frame import ENVELOPE_BYTES
from offramp.device.link import BACKOFF_FIRST, Answer, Link, Outcome, Refusal
from offramp.device.metrics import Cause, DeviceMetrics
from offramp.v1 import inference_pb2 as pb
from tests import toy
from tests.device import hostile
from tests.device.hostile import BREAKERS, STEPS, Script, answering_each, leaving
from tests.processes import WAIT, Peer, Processes, closed_port, tcp_peer, until

PAYLOAD = b"payload"


LinkTo = Callable[..., AbstractContextManager["Linked"]]


class Linked:
    """A link and the outcomes of its frames."""

    def __init__(self, bundle: Bundle, port: int, timeout: float, window: int) -> None:
        self.metrics = DeviceMetrics(bundle)
        self.link = Link(
            f"127.0.0.1:{port}",
            port,
            bundle.digest,
            len(bundle.manifest.classes),
            bundle.codec.raw_bytes,
            self.metrics,
            timeout=timeout,
            window=window,
        )
        self.outcomes: list[list[Outcome]] = []
        self.start = time.monotonic()

    def offload(self, count: int, payload: bytes = PAYLOAD, codec: CodecId = CodecId.BUNDLE) -> None:
        """Hand in this many frames."""
        for _ in range(count):
            mine: list[Outcome] = []
            self.outcomes.append(mine)
            self.link.offload(codec, payload, mine.append)

    def settled(self) -> list[Outcome]:
        """The one outcome of each frame, once all are there."""
        until(lambda: all(self.outcomes), "an outcome for each frame")
        return [outcome for (outcome,) in self.outcomes]

    def sample(self, name: str, **labels: str) -> float:
        """One value of the device's metrics."""
        value = self.metrics.registry.get_sample_value(name, labels)
        assert value is not None
        return value


@pytest.fixture
def linked(toy_bundle: Bundle) -> LinkTo:
    """A link to a port that ends with its block: threads gone, one outcome for each frame."""

    @contextmanager
    def make(port: int, *, timeout: float = WAIT, window: int = 16) -> Iterator[Linked]:
        made = Linked(toy_bundle, port, timeout, window)
        try:
            yield made
        finally:
            made.link.close()
        assert not any(thread.is_alive() for thread in made.link._threads)
        made.settled()
        # One attempt for each pause, and a few at once.
        pauses = (time.monotonic() - made.start) / (BACKOFF_FIRST / 2)
        assert made.sample("offramp_device_reconnects_total") <= 3 + pauses

    return make


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
        assert isinstance(
            device.link.failure,
            {grpc.StatusCode.FAILED_PRECONDITION: MismatchError, grpc.StatusCode.INTERNAL: PeerError}.get(
                status, UnavailableError
            )
            if status
            else UnavailableError,
        )
        assert all(record.message.isprintable() for record in caplog.records)


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
        assert len(device.link._session.sent) + len(device.link._outbox) <= window
        assert len(device.link._session.sent) <= most
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
    assert all(answer.server_seconds > 0 for answer in answers)
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
