"""``grpc.health.v1`` over a real socket."""

from __future__ import annotations

import signal

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from offramp.common.bundle.load import Bundle
from offramp.common.wire import transport
from tests.processes import WAIT, Processes, until
from tests.server.client import channel_to, stream_to
from tests.server.raw import Raw

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
OPEN = "offramp_server_open_calls"


def test_health_is_serving_until_it_drains(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server()
    with channel_to(server.address) as channel, stream_to(server.address, toy_bundle) as stream:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", transport.SERVICE):
            request = health_pb2.HealthCheckRequest(service=service)
            assert health.Check(request, timeout=WAIT).status == SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            health.Check(health_pb2.HealthCheckRequest(service="other"), timeout=WAIT)
        assert "NOT_FOUND" in str(unknown.value)
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT)
        assert next(watch).status == SERVING
        stream.hello()
        server.send(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        watch.cancel()
        asked = stream.receive()
        assert asked is not None and asked.HasField("draining")
        assert stream.end() == []
    assert server.wait() == 0


def test_a_watch_hears_of_the_end_and_is_ended(run: Processes, toy_bundle: Bundle) -> None:
    """The grace is long: nothing waits for it where nobody has frames on the way."""
    server = run.server("--grace", WAIT)
    with channel_to(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=WAIT)
        assert next(watch).status == SERVING
        assert server.drain() == 0
        assert [each.status for each in watch] == [NOT_SERVING]


def test_health_lists_and_knows_what_it_does_not_know(run: Processes) -> None:
    server = run.server()
    with channel_to(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        found = stub.List(health_pb2.HealthListRequest(), timeout=WAIT)
        assert dict(found.statuses.items()) == {
            name: health_pb2.HealthCheckResponse(status=SERVING) for name in ("", transport.SERVICE)
        }
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="other"), timeout=WAIT)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


def test_one_more_watch_is_refused(run: Processes) -> None:
    server = run.server()
    with Raw(server.port) as raw, channel_to(server.address) as channel:
        for number in range(1, 129, 2):
            raw.call(number, "/grpc.health.v1.Health/Watch", b"")
        until(lambda: server.metrics()[OPEN] == 64, "its calls")
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Load balancers that ask go on being answered.
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT).status == 1
    assert server.drain() == 0
