"""One stream over a real socket: hello, frames, limits, and devices that misbehave or go away.

When a stream has to end and what it may hold are rules of test_stream_age.py and test_account.py; here each
outcome is seen once.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.part.engine import Engine
from offramp.common.wire import frame, transport
from offramp.common.wire.frame import FrameWriter
from offramp.server.account import REPLIES_WAITING
from offramp.v1 import inference_pb2 as pb
from tests import toy
from tests.attacks.frames import Aborted, FrameAttack, attacks, good_frame, message
from tests.processes import WAIT, Processes, Server, processes, resident_bytes, tcp_peer, until
from tests.server.client import (
    Ended,
    Stream,
    channel_to,
    good_frames,
    good_message,
    still_serves,
    stream_to,
)

OPEN = "offramp_server_open_streams"


@pytest.fixture(scope="module")
def server(toy_bundle: Bundle) -> Iterator[Server]:
    """One server for all tests here that leave it as it was; at the end it drains and has not complained."""
    with processes(toy_bundle.path) as started:
        server = started.server()
        yield server
        until(lambda: server.metrics()[OPEN] == 0, "no open stream")
        assert server.drain() == 0


def hello(bundle: Bundle, deadline_ms: int) -> bytes:
    message = pb.DeviceMessage.FromString(frame.hello(bundle.digest))
    message.hello.deadline_ms = deadline_ms
    return message.SerializeToString()


def test_the_server_states_its_limits(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--frames-in-flight", 7)
    with stream_to(server.address, toy_bundle) as stream:
        limits = stream.hello()
    assert (limits.frames_in_flight, limits.frames_per_message) == (7, transport.FRAMES_PER_MESSAGE)
    assert limits.message_bytes == transport.message_bytes(toy_bundle.codec.raw_bytes)


def test_a_stream_must_say_hello_in_time(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--hello-timeout", 0.3)
    with stream_to(server.address, toy_bundle) as stream, pytest.raises(Ended) as ended:
        stream.receive()
    assert (ended.value.status, ended.value.details) == (
        "INVALID_ARGUMENT",
        "no hello within 0.3 s of opening",
    )
    until(lambda: server.metrics()[OPEN] == 0, "no open stream")
    assert server.metrics()["offramp_server_streams_aborted_total{status=INVALID_ARGUMENT}"] == 1
    assert server.drain() == 0


def test_a_stream_that_ends_before_its_hello(server: Server, toy_bundle: Bundle) -> None:
    with stream_to(server.address, toy_bundle) as stream:
        stream.half_close()
        with pytest.raises(Ended, match="INVALID_ARGUMENT: the stream ended before its hello"):
            stream.receive()


def test_a_stream_without_frames_ends_in_good_order(server: Server, toy_bundle: Bundle) -> None:
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        assert stream.end() == []


def test_every_hostile_message_has_its_one_outcome(server: Server, toy_bundle: Bundle) -> None:
    table = attacks(toy_bundle)
    assert len(table) > 40
    for attack in table:
        try:
            play(server, toy_bundle, attack)
        except Exception as error:
            raise AssertionError(attack.id) from error
        still_serves(server.address, toy_bundle)


def play(server: Server, bundle: Bundle, attack: FrameAttack) -> None:
    *before, last = attack.messages
    with stream_to(server.address, bundle) as stream:
        if before:
            assert before[0] == frame.hello(bundle.digest)
            stream.hello()
        for good in before[1:]:
            stream.send(good)
            replies = stream.replies(len(pb.DeviceMessage.FromString(good).frames))
            assert not any(reply.HasField("error") for reply in replies)
        stream.send(last)
        expected = attack.outcome
        if isinstance(expected, Aborted):
            with pytest.raises(Ended) as ended:
                stream.receive()
            assert ended.value.status == expected.status
            assert re.fullmatch(expected.message, ended.value.details), ended.value.details
            return
        refused = stream.replies(len(expected.sequences))
        assert sorted(reply.sequence for reply in refused) == list(expected.sequences)
        for reply in refused:
            assert frame.reason_name(reply.error.reason) == expected.reason
            assert re.fullmatch(expected.message, reply.error.message), reply.error.message
        writer = FrameWriter()
        writer._next = 0
        stream.send(writer.pack([good_frame(bundle, expected.next_sequence)]))
        (reply,) = stream.replies(1)
        assert reply.sequence == expected.next_sequence and not reply.HasField("error")
        assert stream.end() == []


def test_every_frame_has_one_reply_with_the_tails_answer(
    server: Server, toy_bundle: Bundle, toy_engine: Engine
) -> None:
    symbols, _ = toy_engine.head(toy.images(64))
    expected = toy_engine.tail(symbols)
    frames = [frame.Frame(1 + i, *toy_bundle.codec.encode(each)) for i, each in enumerate(symbols)]
    with stream_to(server.address, toy_bundle) as stream:
        assert stream.hello().frames_in_flight == 64
        writer = FrameWriter()
        for start, size in ((0, 1), (1, 40), (41, 23)):
            stream.send(writer.pack(frames[start : start + size]))
        found = sorted(stream.replies(64), key=lambda reply: reply.sequence)
        assert stream.end() == []
    assert [reply.sequence for reply in found] == list(range(1, 65))
    assert [reply.class_index for reply in found] == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose([r.probability for r in found], expected.max(axis=1), atol=1e-5)
    # One reply of a message tells it for all.
    assert any(reply.server_time_us > 0 for reply in found)


def test_frames_are_answered_after_the_device_half_closes(server: Server, toy_bundle: Bundle) -> None:
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        stream.send(good_message(toy_bundle, 60))
        assert sorted(reply.sequence for reply in stream.end()) == list(range(1, 61))


def test_frames_over_the_limit_are_refused_as_overload(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--frames-in-flight", 4)
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        stream.send(good_message(toy_bundle, 64))
        found = stream.replies(64)
        refused = [reply for reply in found if reply.HasField("error")]
        assert len(refused) == 60 and len({reply.sequence for reply in found}) == 64
        for reply in refused:
            assert frame.reason_name(reply.error.reason) == "overloaded"
            assert reply.error.message == "4 frames of this stream are unanswered, the most that may"
        writer = FrameWriter()
        writer._next = 65
        stream.send(writer.pack(good_frames(toy_bundle, 4, first=65)))
        assert not any(reply.HasField("error") for reply in stream.replies(4))
        assert stream.end() == []
    metrics = server.metrics()
    assert metrics["offramp_server_rejected_total{reason=overloaded}"] == 60
    assert metrics["offramp_server_frames_total{result=refused}"] == 60
    assert metrics["offramp_server_frames_total{result=answered}"] == 8


def test_a_full_queue_refuses_and_goes_on(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--queue", 1, "--max-batch", 1)
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        stream.send(good_message(toy_bundle, 64))
        found = stream.replies(64)
        assert stream.end() == []
    assert sorted(reply.sequence for reply in found) == list(range(1, 65))
    refused = [reply.error for reply in found if reply.HasField("error")]
    assert 0 < len(refused) < 64
    assert {frame.reason_name(error.reason) for error in refused} == {"overloaded"}
    assert all(error.retry_after_ms > 0 for error in refused)
    still_serves_one_by_one(server, toy_bundle)


def still_serves_one_by_one(server: Server, bundle: Bundle) -> None:
    with stream_to(server.address, bundle) as stream:
        stream.hello()
        writer = FrameWriter()
        for each in good_frames(bundle, 3):
            stream.send(writer.pack([each]))
            (reply,) = stream.replies(1)
            assert not reply.HasField("error")


def test_a_device_that_takes_no_replies_is_not_read_further(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--strikes", 1 << 30, "--write-timeout", 3600)
    still_serves(server.address, toy_bundle)
    before, memory = server.metrics(), resident_bytes(server.pid)
    offered, stop = 1_000_000, threading.Event()

    def flood() -> Iterator[bytes]:
        yield frame.hello(toy_bundle.digest)
        # Checksums that fail: the replies are larger than the frames.
        for _ in range(offered // 64):
            if stop.is_set():
                return
            yield message(*[b"wrong"] * 64)

    with channel_to(server.address) as channel:
        method: Any = channel.stream_stream(transport.OFFLOAD)
        call = method(flood(), timeout=300)
        counted = -1.0

        def stalled() -> bool:
            nonlocal counted
            last, counted = counted, server.metrics()["offramp_server_frames_total{result=refused}"]
            if last != counted or counted < REPLIES_WAITING:
                # It may only be slow: this long without one more frame is no progress.
                threading.Event().wait(0.3)
                return False
            return True

        until(stalled, "the server to stop reading")
        refused = counted - before["offramp_server_frames_total{result=refused}"]
        # What waits, what the transport holds in both directions, and one more message.
        assert refused < offered / 20
        assert resident_bytes(server.pid) - memory < 64 << 20
        still_serves(server.address, toy_bundle)
        stop.set()
        call.cancel()
    until(lambda: server.metrics()[OPEN] == 0, "no open stream")
    still_serves(server.address, toy_bundle)
    assert server.drain() == 0


@pytest.mark.parametrize("how", ["cancel", "close", "reset"])
def test_a_device_that_goes_away_in_mid_stream_leaves_nothing(
    run: Processes, toy_bundle: Bundle, how: str
) -> None:
    server = run.server()
    for _ in range(5):
        with channel_to(server.address) as channel:
            streams = [Stream(channel, toy_bundle) for _ in range(4)]
            for stream in streams:
                stream.hello()
                writer = FrameWriter()
                for start in range(1, 40):
                    stream.send(writer.pack(good_frames(toy_bundle, 1, first=start)))
            assert streams[0].receive()
            if how == "cancel":
                for stream in streams:
                    stream.call.cancel()
            if how == "reset":
                streams[0].call.cancel()
                channel.close()
            for stream in streams:
                stream.half_close()
    until(lambda: server.metrics()[OPEN] == 0, "no open stream")
    still_serves(server.address, toy_bundle)
    assert server.drain() == 0


def test_a_connection_cut_in_a_message_leaves_nothing(run: Processes, toy_bundle: Bundle) -> None:
    """Behind a proxy that drops the connection after so many bytes, one more each time."""
    import socket

    server = run.server()

    def handle(client: socket.socket, peer: Any) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as upstream:
            back = threading.Thread(target=copy, args=(upstream, client), daemon=True)
            back.start()
            room = 60 * peer.connections
            while room and (data := client.recv(min(room, 4096))):
                room -= len(data)
                upstream.sendall(data)
            for side in (client, upstream):
                side.shutdown(socket.SHUT_RDWR)
            back.join()

    def copy(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(4096):
                sink.sendall(data)
        except OSError:
            pass

    with tcp_peer(handle) as proxy:
        for _ in range(12):
            with stream_to(f"127.0.0.1:{proxy.port}", toy_bundle) as stream, pytest.raises(Ended):
                stream.hello()
                writer = FrameWriter()
                for start in range(1, 200):
                    stream.send(writer.pack(good_frames(toy_bundle, 1, first=start)))
                while stream.receive():
                    pass
    until(lambda: server.metrics()[OPEN] == 0, "no open stream")
    still_serves(server.address, toy_bundle)
    assert server.drain() == 0


def test_a_stream_ends_after_so_many_bad_frames(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--strikes", 5)
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        stream.send(message(*[b"wrong"] * 4))
        assert len(stream.replies(4)) == 4
        writer = FrameWriter()
        writer._next = 5
        stream.send(writer.pack(good_frames(toy_bundle, 1, first=5)))
        assert not stream.replies(1)[0].HasField("error")
        stream.send(message(b"wrong", first=6))
        assert stream.replies(1)[0].HasField("error")
        with pytest.raises(Ended) as ended:
            stream.receive()
    assert (ended.value.status, ended.value.details) == ("INVALID_ARGUMENT", "5 bad frames on this stream")
    still_serves(server.address, toy_bundle)


def test_frames_whose_deadline_has_passed_are_dropped(run: Processes, toy_bundle: Bundle) -> None:
    """A frame waits a second for company that does not come; its device, a millisecond."""
    server = run.server("--max-wait-ms", 1000, "--max-batch", 64)
    with stream_to(server.address, toy_bundle) as stream:
        stream.send(hello(toy_bundle, 1))
        assert stream.receive()
        stream.send(good_message(toy_bundle, 3))
        found = stream.replies(3)
        assert stream.end() == []
    assert {frame.reason_name(reply.error.reason) for reply in found} == {"expired"}
    assert all(reply.error.message.endswith("ms, its device waits no longer") for reply in found)
    page = server.metrics()
    assert page["offramp_server_rejected_total{reason=expired}"] == 3
    assert page["offramp_server_batch_size_count"] == 0
    with stream_to(server.address, toy_bundle) as stream:
        stream.send(hello(toy_bundle, 3_600_000))
        assert stream.receive()
        stream.send(good_message(toy_bundle, 3))
        assert not any(reply.HasField("error") for reply in stream.replies(3))


def test_a_silent_stream_is_asked_to_end_and_then_ended(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--idle-timeout", 0.2, "--hello-timeout", 0.5)
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        asked = stream.receive()
        assert asked is not None and asked.HasField("draining")
        with pytest.raises(Ended, match="UNAVAILABLE: the stream was asked to end and did not"):
            stream.receive()
    until(lambda: server.metrics()[OPEN] == 0, "no open stream")
    assert server.drain() == 0


def test_an_old_stream_is_asked_to_end_though_it_is_busy(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--max-stream-age", 0.4)
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        writer = FrameWriter()
        answered = 0
        for sequence in count(1):
            stream.send(writer.pack(good_frames(toy_bundle, 1, first=sequence)))
            got = stream.receive()
            assert got is not None
            answered += len(got.replies)
            if got.HasField("draining"):
                break
        # What was sent before it was asked is answered.
        answered += len(stream.end())
        assert answered == sequence
    until(lambda: server.metrics()[OPEN] == 0, "no open stream")
    assert not any("streams_aborted_total{" in name for name in server.metrics())


def test_a_device_that_never_takes_its_replies_is_cut_off(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--strikes", 1 << 30, "--write-timeout", 0.5)

    def flood() -> Iterator[bytes]:
        yield frame.hello(toy_bundle.digest)
        while not stop.is_set():
            yield message(*[b"wrong"] * 64)

    stop = threading.Event()
    with channel_to(server.address) as channel:
        method: Any = channel.stream_stream(transport.OFFLOAD)
        call = method(flood(), timeout=WAIT)
        until(
            lambda: server.metrics().get("offramp_server_streams_aborted_total{status=CANCELLED}") == 1,
            "the server to cut it off",
        )
        until(lambda: server.metrics()[OPEN] == 0, "no open stream")
        # It gets no status, which would wait behind the replies that it does not take.
        assert call.is_active()
        stop.set()
        call.cancel()
    assert "took no reply for 0.5 s" in server.errors
    still_serves(server.address, toy_bundle)
    assert server.drain() == 0
