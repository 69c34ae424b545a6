"""Reflection over a real socket."""

from __future__ import annotations

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from offramp.common.wire import transport
from tests.processes import WAIT, Processes
from tests.server.client import channel_to


def test_reflection_lists_the_service(run: Processes) -> None:
    server = run.server()
    with channel_to(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=transport.SERVICE),
        ]
        names, file = stub.ServerReflectionInfo(iter(requests), timeout=WAIT)
    listed = {service.name for service in names.list_services_response.service}
    assert {transport.SERVICE, "grpc.health.v1.Health"} <= listed
    (described,) = map(FileDescriptorProto.FromString, file.file_descriptor_response.file_descriptor_proto)
    (service,) = described.service
    assert [method.name for method in service.method] == ["Offload", "Describe"]
