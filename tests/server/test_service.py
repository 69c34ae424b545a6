"""The service over real sockets: hello, frames, limits, and devices that misbehave or go away."""

from __future__ import annotations

import asyncio
import math
import re
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.part.engine import Engine
from offramp.common.telemetry import package_version
from offramp.common.wire import frame, transport
from offramp.common.wire.frame import FrameWriter
from offramp.server.account import REPLIES_WAITING
from offramp.server.batch import Batcher
from offramp.server.catalog import Catalog, Loaded
from offramp.server.limits import StreamLimits
from offramp.server.metrics import ServerMetrics
from offramp.server.plan import Plan
from offramp.server.service import InferenceService, handlers
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


@pytest.fixture(scope="module")
def server(toy_bundle: Bundle) -> Iterator[Server]:
    """One server for all tests here that leave it as it was; at the end it drains and has not complained."""
    with processes(toy_bundle.path) as started:
        server = started.server()
        yield server
        until(lambda: server.metrics()["offramp_server_open_streams"] == 0, "no open stream")
        assert server.drain() == 0


# --- hello and Describe ---


def test_describe_tells_what_is_loaded(server: Server, toy_bundle: Bundle) -> None:
    with channel_to(server.address) as channel:
        method: Any = channel.unary_unary(transport.DESCRIBE)
        found = pb.DescribeResponse.FromString(method(b""))
        with pytest.raises(grpc.RpcError) as refused:
            method(b"\xff" * 9)
    error: Any = refused.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == f"{transport.SAID}9 bytes that are no offramp.v1.DescribeRequest message"
    assert (found.protocol_version, found.version) == (frame.PROTOCOL_VERSION, package_version())
    (bundle,) = found.bundles
    assert (bundle.digest, bundle.name, bundle.classes) == (toy_bundle.digest, "toy", 3)
    assert (list(bundle.segments), list(bundle.activation_shape)) == (["tail"], [4, 4, 4])


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
    until(lambda: server.metrics()["offramp_server_open_streams"] == 0, "no open stream")
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


# --- every hostile message of the table, over a real connection ---


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


@pytest.mark.parametrize(
    "junk", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 1000, b"\xff" * 100_000, b"PRI * HTTP/2.0\r\n"]
)
def test_connections_that_speak_no_grpc_change_nothing(
    server: Server, toy_bundle: Bundle, junk: bytes
) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        try:
            connection.sendall(junk)
            still_serves(server.address, toy_bundle)
        except OSError:
            pass  # it hung up on the junk
    still_serves(server.address, toy_bundle)


def test_an_unknown_method_is_unimplemented(server: Server) -> None:
    with channel_to(server.address) as channel:
        method: Any = channel.unary_unary(f"/{transport.SERVICE}/Other")
        with pytest.raises(grpc.RpcError) as refused:
            method(b"")
    error: Any = refused.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


# --- frames and limits ---


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
    answered = [reply for reply in found if not reply.HasField("error")]
    assert answered
    assert {frame.reason_name(r.error.reason) for r in found if r.HasField("error")} <= {"overloaded"}
    still_serves_one_by_one(server, toy_bundle)


def still_serves_one_by_one(server: Server, bundle: Bundle) -> None:
    with stream_to(server.address, bundle) as stream:
        stream.hello()
        writer = FrameWriter()
        for each in good_frames(bundle, 3):
            stream.send(writer.pack([each]))
            (reply,) = stream.replies(1)
            assert not reply.HasField("error")


def test_streams_over_the_limit_are_refused(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--max-streams", 2)
    with stream_to(server.address, toy_bundle) as first, stream_to(server.address, toy_bundle) as second:
        first.hello()
        second.hello()
        with stream_to(server.address, toy_bundle) as third:
            third.send(frame.hello(toy_bundle.digest))
            with pytest.raises(Ended) as ended:
                third.receive()
        assert ended.value.status == "RESOURCE_EXHAUSTED"
        assert ended.value.details == "2 streams are open already, the most that may"
        assert server.metrics()["offramp_server_open_streams"] == 2
        assert first.end() == []
        still_serves(server.address, toy_bundle)
        second.send(good_message(toy_bundle))
        second.replies(1)
    until(lambda: server.metrics()["offramp_server_open_streams"] == 0, "no open stream")
    assert server.metrics()["offramp_server_streams_aborted_total{status=RESOURCE_EXHAUSTED}"] == 1


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
    until(lambda: server.metrics()["offramp_server_open_streams"] == 0, "no open stream")
    still_serves(server.address, toy_bundle)
    assert server.drain() == 0


# --- devices that go away ---


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
    until(lambda: server.metrics()["offramp_server_open_streams"] == 0, "no open stream")
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
    until(lambda: server.metrics()["offramp_server_open_streams"] == 0, "no open stream")
    still_serves(server.address, toy_bundle)
    assert server.drain() == 0


@pytest.mark.parametrize(
    "leave", ["in good order", "cancelled", "before hello", "garbage", "no replies read"]
)
def test_no_task_outlives_its_stream(toy_bundle: Bundle, toy_engine: Engine, leave: str) -> None:
    async def scenario(service: InferenceService, port: int) -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

        def open_streams() -> float | None:
            return service.metrics.registry.get_sample_value("offramp_server_open_streams")

        before = asyncio.all_tasks()
        options = transport.device_options()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            method: Any = channel.stream_stream(transport.OFFLOAD)
            for _ in range(3):
                call = method()
                if leave != "before hello":
                    await call.write(frame.hello(toy_bundle.digest))
                    await call.read()
                    await call.write(good_message(toy_bundle, 64))
                if leave == "in good order":
                    await call.done_writing()
                    while await call.read() is not grpc.aio.EOF:
                        pass
                elif leave == "garbage":
                    await call.write(b"\xff")
                    with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT"):
                        while await call.read() is not grpc.aio.EOF:
                            pass
                else:
                    if leave == "no replies read":
                        await call.done_writing()
                    while not open_streams():
                        await asyncio.sleep(0.01)
                    call.cancel()
        while open_streams() or _of_the_service(asyncio.all_tasks() - before):
            await asyncio.sleep(0.01)
        assert complaints == []

    async def served() -> None:
        metrics = ServerMetrics()
        batcher = Batcher(metrics, workers=1, limit=64)
        catalog = Catalog(batcher, metrics)
        catalog.add(Loaded(toy_bundle, toy_engine, Plan(1, 1, max_batch=4, max_wait=0.0, curve={})))
        limits = StreamLimits(
            frames_in_flight=64,
            max_streams=4,
            strikes=128,
            hello_timeout=WAIT,
            idle_timeout=WAIT,
            max_stream_age=math.inf,
            write_timeout=WAIT,
            grace=WAIT,
        )
        service = InferenceService(catalog, batcher, metrics, limits)
        size = transport.message_bytes(toy_bundle.codec.raw_bytes)
        server = grpc.aio.server(options=transport.server_options(size, 64))
        server.add_generic_rpc_handlers((handlers(service.offload, service.describe),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with asyncio.timeout(WAIT):
                await scenario(service, port)
        finally:
            await server.stop(0)
            batcher.close()
            service.close()

    asyncio.run(served())


def _of_the_service(tasks: set[asyncio.Task[Any]]) -> list[str]:
    names = [getattr(task.get_coro(), "__qualname__", "") for task in tasks]
    return [name for name in names if name.startswith(("Stream.", "InferenceService.", "Batcher."))]
