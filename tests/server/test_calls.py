"""Calls of any method, over connections without manners: each is limited, ended, counted and logged."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.wire import frame, transport
from offramp.server import calls
from offramp.v1 import inference_pb2 as pb
from tests.processes import WAIT, Processes, Server, until
from tests.server.client import Ended, channel_to, good_message, still_serves, stream_to
from tests.server.raw import Raw

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
LIST = "/grpc.health.v1.Health/List"
REFLECTION = "/grpc.reflection.{}.ServerReflection/ServerReflectionInfo"
CALLS = "offramp_server_calls_total"
OPEN = "offramp_server_open_calls"
GARBAGE = b"\xff" * 9


def peak_bytes(pid: int) -> int:
    """The most that a process's resident memory has been."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(line) * 1024


def calls_counted(server: Server) -> float:
    """Of all methods, however they ended."""
    return sum(value for name, value in server.metrics().items() if name.startswith(CALLS))


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("a-token-of-thirty-two-characters\n")
    return path


# --- a stranger does not hold up the end ---


def test_calls_that_take_nothing_do_not_hold_up_the_end(run: Processes, toy_bundle: Bundle) -> None:
    """Zero windows: no answer can be written. Devices are asked to drain all the same, and the end comes."""
    server = run.server("--grace", 1)
    with stream_to(server.address, toy_bundle) as stream, ExitStack() as strangers:
        stream.hello()
        methods = (WATCH, CHECK, transport.DESCRIBE, transport.OFFLOAD)
        for method in methods:
            raw = strangers.enter_context(Raw(server.port, window=0))
            for number in range(1, 9, 2):
                raw.call(number, method, frame.hello(toy_bundle.digest) if "Offload" in method else b"")
        until(lambda: server.metrics()[OPEN] >= 4 * len(methods), "their calls")
        process = threading.Thread(target=server.drain, daemon=True)
        process.start()
        asked = stream.receive()
        assert asked is not None and asked.HasField("draining")
        assert stream.end() == []
        process.join(20)
        assert not process.is_alive(), "alive 20 s after SIGTERM with a grace of 1 s"
    assert server.wait() == 0
    assert server.errors.splitlines()[-1].endswith("stopped")


# --- calls that no limit counted ---


def test_open_calls_are_bounded(run: Processes, toy_bundle: Bundle) -> None:
    """Each call took 25 KB for as long as its peer liked."""
    server = run.server("--max-streams", 32, "--hello-timeout", 1)
    still_serves(server.address, toy_bundle)
    for method in (WATCH, transport.DESCRIBE, CHECK, REFLECTION.format("v1"), "/other/Other"):
        before, counted, said = peak_bytes(server.pid), calls_counted(server), len(server.errors)
        body = b"" if method == WATCH else None
        with Raw(server.port) as one, Raw(server.port) as two:
            for raw in (one, two):
                for start in range(1, 8001, 400):
                    try:
                        for number in range(start, start + 400, 2):
                            raw.call(number, method, body)
                    except OSError:
                        break  # it may hang up on such a peer
            still_serves(server.address, toy_bundle)
            assert peak_bytes(server.pid) - before < 32 << 20, method
            if method != WATCH:
                until(lambda: server.metrics()[OPEN] == 0, "calls without a request to be ended")
            else:
                assert server.metrics()[OPEN] <= 64
        until(lambda: server.metrics()[OPEN] == 0, "no open call")
        assert calls_counted(server) - counted > 64, method
        assert len(server.errors) - said < 20_000, method
    assert server.drain() == 0


def test_a_call_without_its_request_is_ended(run: Processes) -> None:
    server = run.server("--hello-timeout", 0.3)
    with Raw(server.port) as raw:
        methods = [CHECK, LIST, WATCH, transport.DESCRIBE, REFLECTION.format("v1alpha")]
        for index, method in enumerate(methods):
            raw.call(2 * index + 1, method)
        for index, method in enumerate(methods):
            until(lambda number=2 * index + 1: raw.ended(number), f"{method} to end")  # type: ignore[misc]
    page = server.metrics()
    assert page[f"{CALLS}{{method=Check,status=INVALID_ARGUMENT}}"] == 1
    assert "no request within 0.3 s" in server.errors
    assert server.drain() == 0


# --- every ending is seen, by a line at most ---


def test_garbage_is_answered_and_counted(run: Processes) -> None:
    """The fixture fails on a traceback."""
    server = run.server()
    methods = (CHECK, LIST, WATCH, REFLECTION.format("v1"), REFLECTION.format("v1alpha"))
    wanted: Counter[str] = Counter()
    with channel_to(server.address) as channel:
        for method in methods:
            call: Any = channel.unary_unary(method)
            for _ in range(200):
                with pytest.raises(grpc.RpcError) as refused:
                    call(GARBAGE, timeout=WAIT)
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            wanted[f"{CALLS}{{method={method.rpartition('/')[2]},status=INVALID_ARGUMENT}}"] += 200
    # Counted once the call is over, a moment after its status has left.
    until(lambda: wanted.items() <= server.metrics().items(), "200 calls of each counted")
    assert server.drain() == 0
    assert 1 <= server.errors.count("INVALID_ARGUMENT") < 50 * len(methods)


def test_strangers_do_not_fill_the_log(run: Processes, token_file: Path) -> None:
    server = run.server("--token-file", token_file)
    with channel_to(server.address) as channel:
        for method in (transport.DESCRIBE, "/other.Service/Method", REFLECTION.format("v1")):
            call: Any = channel.unary_unary(method)
            for _ in range(150):
                with pytest.raises(grpc.RpcError) as refused:
                    call(b"", timeout=WAIT)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    page = server.metrics()
    assert page[f"{CALLS}{{method=other,status=UNAUTHENTICATED}}"] == 150
    assert page["offramp_server_streams_aborted_total{status=UNAUTHENTICATED}"] == 450
    assert server.drain() == 0
    assert 1 <= server.errors.count("UNAUTHENTICATED") < 100


def test_an_unknown_method_is_named_so_and_counted(run: Processes) -> None:
    server = run.server()
    with channel_to(server.address) as channel:
        call: Any = channel.unary_unary("/offramp.v1.Inference/Train")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", timeout=WAIT)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    # Its client has the status before it is counted.
    until(lambda: server.metrics().get(f"{CALLS}{{method=other,status=UNIMPLEMENTED}}") == 1, "its count")
    assert server.drain() == 0


@pytest.mark.parametrize("times", [2, 1000])
def test_a_message_over_the_limit(run: Processes, toy_bundle: Bundle, times: int) -> None:
    """What came before it is answered where it is within gRPC's own limit; it is seen in any case."""
    server = run.server()
    with stream_to(server.address, toy_bundle) as stream:
        limit = stream.hello().message_bytes
        stream.send(good_message(toy_bundle, 3))
        stream.send(b"\0" * (limit * times))
        answered = 0
        with pytest.raises(Ended) as ended:
            while (message := stream.receive()) is not None:
                answered += len(message.replies)
    if times == 2:
        assert answered == 3
        assert ended.value.status == "INVALID_ARGUMENT"
        assert ended.value.details == f"a message of {2 * limit} bytes, expected {limit} at most"
        key = "offramp_server_streams_aborted_total{status=INVALID_ARGUMENT}"
    else:
        assert ended.value.status == "RESOURCE_EXHAUSTED"
        key = f"{CALLS}{{method=Offload,status=CANCELLED}}"
    until(lambda: server.metrics().get(key) == 1, "it to be counted")
    assert server.drain() == 0
    lines = [line for line in server.errors.splitlines() if ended.value.status in line or "CANCELLED" in line]
    assert len(lines) == 1 and "message" in lines[0], lines


def test_a_device_that_leaves_is_counted(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server()
    still_serves(server.address, toy_bundle)
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
    until(
        lambda: server.metrics().get(f"{CALLS}{{method=Offload,status=CANCELLED}}") == 1,
        "its end to be counted",
    )
    assert server.metrics()[f"{CALLS}{{method=Offload,status=OK}}"] == 1
    assert server.drain() == 0


def test_a_request_that_fails_as_the_server_ends_is_a_cancelled_call() -> None:
    """gRPC raises an error of its own where the server stops between two steps of a call."""

    class Stopped:
        async def read(self) -> bytes:
            raise RuntimeError("Server already stopped.")

    async def wait() -> None:
        with pytest.raises(asyncio.CancelledError):
            await calls.request(cast(Any, Stopped()), pb.DescribeRequest, 1.0)

    asyncio.run(wait())
