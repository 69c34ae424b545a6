"""The service over real sockets: its description, its streams together, and what they leave behind."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.part.engine import Engine
from offramp.common.release import package_version
from offramp.common.wire import frame, transport
from offramp.common.wire.frame import FrameWriter
from offramp.server.batch import Batcher
from offramp.server.catalog import Catalog, Loaded
from offramp.server.limits import StreamLimits
from offramp.server.metrics import ServerMetrics
from offramp.server.plan import Plan
from offramp.server.service import InferenceService, handlers
from offramp.v1 import inference_pb2 as pb
from tests.processes import WAIT, Processes, Server, processes, resident_bytes, until
from tests.server.client import Ended, channel_to, good_frames, good_message, still_serves, stream_to


@pytest.fixture(scope="module")
def server(toy_bundle: Bundle) -> Iterator[Server]:
    """One server for all tests here that leave it as it was; at the end it drains and has not complained."""
    with processes(toy_bundle.path) as started:
        server = started.server()
        yield server
        until(lambda: server.metrics()["offramp_server_open_streams"] == 0, "no open stream")
        assert server.drain() == 0


def test_describe_lists_what_is_loaded(server: Server, toy_bundle: Bundle) -> None:
    with channel_to(server.address) as channel:
        method: Any = channel.unary_unary(transport.DESCRIBE)
        found = pb.DescribeResponse.FromString(method(b""))
        with pytest.raises(grpc.RpcError) as refused:
            method(b"\xff" * 9)
    error: Any = refused.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == f"{transport.SAID}9 bytes that are not an offramp.v1.DescribeRequest message"
    assert (found.protocol_version, found.version) == (frame.PROTOCOL_VERSION, package_version())
    (bundle,) = found.bundles
    assert (bundle.digest, bundle.name, bundle.classes) == (toy_bundle.digest, "toy", 3)
    assert (list(bundle.segments), list(bundle.activation_shape)) == (["tail"], [4, 4, 4])


@pytest.mark.parametrize(
    "junk", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 1000, b"\xff" * 100_000, b"PRI * HTTP/2.0\r\n"]
)
def test_connections_that_speak_no_grpc_change_nothing(
    server: Server, toy_bundle: Bundle, junk: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        try:
            connection.sendall(junk)
            still_serves(server.address, toy_bundle)
        except OSError:
            pass  # it hung up on the junk
    still_serves(server.address, toy_bundle)


def test_streams_over_the_limit_are_refused(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--max-streams", 2)
    with stream_to(server.address, toy_bundle) as first, stream_to(server.address, toy_bundle) as second:
        first.hello()
        second.hello()
        with stream_to(server.address, toy_bundle) as third:
            third.send(frame.hello(toy_bundle.digest))
            with pytest.raises(Ended) as ended:
                third.receive()
            trailing = dict(third.call.trailing_metadata())
        assert int(trailing[transport.RETRY_PUSHBACK]) > 0
        assert ended.value.status == "RESOURCE_EXHAUSTED"
        assert ended.value.details == "2 streams are open already, the most that may"
        assert server.metrics()["offramp_server_open_streams"] == 2
        assert first.end() == []
        still_serves(server.address, toy_bundle)
        second.send(good_message(toy_bundle))
        second.replies(1)
    until(lambda: server.metrics()["offramp_server_open_streams"] == 0, "no open stream")
    assert server.metrics()["offramp_server_streams_aborted_total{status=RESOURCE_EXHAUSTED}"] == 1


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
        until(lambda: server.metrics()["offramp_server_open_streams"] == 0, "no open stream")

    visit(150)
    before, memory, running = files(), resident_bytes(server.pid), threads()
    visit(350)
    until(lambda: files() <= before + 5, "its files to be closed")
    assert threads() <= running + 4
    assert resident_bytes(server.pid) - memory < 24 << 20
    assert server.drain() == 0
