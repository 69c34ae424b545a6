"""Every limit, reached: what is refused is told why and when to come back, and memory stays where it is."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.wire import frame, transport
from offramp.common.wire.frame import FrameWriter
from offramp.v1 import inference_pb2 as pb
from tests.attacks.frames import message
from tests.processes import WAIT, Processes, resident_bytes, until
from tests.server.client import Ended, channel_to, good_frames, good_message, still_serves, stream_to

NO_STREAM = "offramp_server_open_streams"


def hello(bundle: Bundle, deadline_ms: int) -> bytes:
    message = pb.DeviceMessage.FromString(frame.hello(bundle.digest))
    message.hello.deadline_ms = deadline_ms
    return message.SerializeToString()


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


def test_overload_is_no_strike(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--strikes", 1, "--frames-in-flight", 1)
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        stream.send(good_message(toy_bundle, 64))
        assert sum(reply.HasField("error") for reply in stream.replies(64)) == 63
        assert stream.end() == []


def test_overload_says_when_to_come_back(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--queue", 1, "--max-streams", 1)
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        stream.send(good_message(toy_bundle, 64))
        refused = [reply.error for reply in stream.replies(64) if reply.HasField("error")]
        assert refused and all(error.retry_after_ms > 0 for error in refused)
        with stream_to(server.address, toy_bundle) as other:
            with pytest.raises(Ended, match="RESOURCE_EXHAUSTED"):
                other.receive()
            trailing = dict(other.call.trailing_metadata())
        assert int(trailing[transport.RETRY_PUSHBACK]) > 0
        assert stream.end() == []


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


def test_a_silent_stream_is_asked_to_end(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--idle-timeout", 0.2, "--hello-timeout", 30)
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        told = stream.receive()
        assert told is not None and told.HasField("draining")
        assert stream.end() == []
    until(lambda: server.metrics()[NO_STREAM] == 0, "no open stream")


def test_a_silent_stream_that_does_not_end_is_ended(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--idle-timeout", 0.2, "--hello-timeout", 0.5)
    with stream_to(server.address, toy_bundle) as stream:
        stream.send(frame.hello(toy_bundle.digest))
        with pytest.raises(Ended, match="UNAVAILABLE"):
            while stream.receive():
                pass
    until(lambda: server.metrics()[NO_STREAM] == 0, "no open stream")
    assert server.drain() == 0


def test_an_old_stream_is_asked_to_end_though_it_is_busy(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--max-stream-age", 0.4)
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        writer = FrameWriter()
        answered = 0
        for sequence in count(1):
            stream.send(writer.pack(good_frames(toy_bundle, 1, first=sequence)))
            told = stream.receive()
            assert told is not None
            answered += len(told.replies)
            if told.HasField("draining"):
                break
        # What was sent before it was told, is answered.
        answered += len(stream.end())
        assert answered == sequence
    until(lambda: server.metrics()[NO_STREAM] == 0, "no open stream")
    assert not any("streams_aborted_total{" in name for name in server.metrics())


def test_an_old_stream_that_does_not_end_is_ended(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--max-stream-age", 0.2, "--grace", 0.5)
    with stream_to(server.address, toy_bundle) as stream:
        stream.send(frame.hello(toy_bundle.digest))
        with pytest.raises(Ended, match="UNAVAILABLE"):
            while stream.receive():
                pass


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
        until(lambda: server.metrics()[NO_STREAM] == 0, "no open stream")
        # It is not told: a status would wait behind the replies that it does not take.
        assert call.is_active()
        stop.set()
        call.cancel()
    assert "took no reply for 0.5 s" in server.errors
    still_serves(server.address, toy_bundle)
    assert server.drain() == 0


def test_memory_is_flat_under_overload(run: Processes, toy_bundle: Bundle) -> None:
    """Four devices send without regard to the limits; each frame has its one reply."""
    server = run.server("--queue", 16, "--max-batch", 4)
    rounds, sizes = 60, list[int]()

    def device() -> None:
        with stream_to(server.address, toy_bundle) as stream:
            stream.hello()
            writer, got = FrameWriter(), 0
            for index in range(rounds):
                stream.send(writer.pack(good_frames(toy_bundle, 64, first=1 + 64 * index)))
                if index % 4 == 3:
                    got += len(stream.replies_at_least(64))
                    sizes.append(resident_bytes(server.pid))
            got += len(stream.end())
            counts.append(got)

    counts: list[int] = []
    threads = [threading.Thread(target=device) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert counts == [rounds * 64] * 4
    assert max(sizes) - sizes[0] < 48 << 20
    page = server.metrics()
    total = sum(page[f"offramp_server_frames_total{{result={r}}}"] for r in ("answered", "refused"))
    assert total == rounds * 64 * 4
    assert server.drain() == 0


def test_connecting_and_leaving_leaves_nothing(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server()

    def files() -> int:
        return len(os.listdir(f"/proc/{server.pid}/fd"))

    def threads() -> int:
        return len(os.listdir(f"/proc/{server.pid}/task"))

    def visit(count: int) -> None:
        for index in range(count):
            if index % 3 == 0:
                still_serves(server.address, toy_bundle)
            elif index % 3 == 1:
                with stream_to(server.address, toy_bundle) as stream:
                    stream.hello()
                    stream.send(good_message(toy_bundle, 3))
            else:
                with socket.create_connection(("127.0.0.1", server.port)) as connection:
                    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        until(lambda: server.metrics()[NO_STREAM] == 0, "no open stream")

    visit(150)
    before, memory, running = files(), resident_bytes(server.pid), threads()
    visit(350)
    until(lambda: files() <= before + 5, "its files to be closed")
    assert threads() <= running + 4
    assert resident_bytes(server.pid) - memory < 24 << 20
    assert server.drain() == 0
