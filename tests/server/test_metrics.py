"""What the server counts, on its metrics page."""

from __future__ import annotations

import socket

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.wire import frame
from offramp.common.wire.frame import FrameWriter
from tests.attacks.frames import message
from tests.processes import Processes, scrape
from tests.server.client import Ended, good_frames, stream_to


def test_the_metrics_tell_what_was_sent(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server()
    frames = good_frames(toy_bundle, 30)
    writer = FrameWriter()
    messages = [frame.hello(toy_bundle.digest)]
    messages += [writer.pack(frames[start : start + 10]) for start in (0, 10, 20)]
    messages.append(message(*[b"wrong checksum"] * 5))
    received = 0
    with stream_to(server.address, toy_bundle) as stream:
        for data in messages:
            stream.send(data)
        stream.half_close()
        while (reply := stream.receive()) is not None:
            received += reply.ByteSize()
        with stream_to(server.address, toy_bundle) as other:
            other.send(b"\xff")
            with pytest.raises(Ended):
                other.receive()
        with stream_to(server.address, toy_bundle) as third:
            third.hello()
            page = server.metrics()
    first = third_hello = len(frame.hello(toy_bundle.digest))
    accepted = page["offramp_server_message_bytes_total{direction=sent}"] - received
    assert 0 < accepted < 30
    assert page["offramp_server_message_bytes_total{direction=received}"] == (
        sum(map(len, messages)) + len(b"\xff") + third_hello
    )
    assert first == third_hello
    assert page["offramp_server_frames_total{result=answered}"] == 30
    assert page["offramp_server_frames_total{result=refused}"] == 5
    assert page["offramp_server_rejected_total{reason=checksum}"] == 5
    reasons = ("sequence", "codec", "payload", "overloaded", "internal")
    assert all(page[f"offramp_server_rejected_total{{reason={reason}}}"] == 0 for reason in reasons)
    assert page["offramp_server_payload_bytes_total"] == sum(len(each.payload) for each in frames)
    assert page["offramp_server_streams_aborted_total{status=INVALID_ARGUMENT}"] == 1
    assert page["offramp_server_open_streams"] == 1
    assert page["offramp_server_decode_seconds_count"] == 30
    assert page["offramp_server_queue_seconds_count"] == 30
    assert page["offramp_server_batch_size_sum"] == 30
    assert page["offramp_server_batch_size_count"] == page["offramp_server_inference_seconds_count"]
    assert page[f"offramp_bundle_info{{digest={toy_bundle.digest.hex()},name=toy}}"] == 1
    assert sum(name.startswith("offramp_build_info{") for name in page) == 1
    assert not any(name.endswith("_created") for name in page)


def test_labels_do_not_grow_with_what_clients_send(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server()

    def provoke(seed: int) -> None:
        for attack in (
            frame.hello(bytes([seed]) * 32),
            bytes([255, seed]),
            frame.hello(toy_bundle.digest).replace(b"tail", bytes([97 + seed]) * 4),
        ):
            with stream_to(server.address, toy_bundle) as stream:
                stream.send(attack)
                with pytest.raises(Ended):
                    stream.receive()

    provoke(1)
    names = server.metrics().keys()
    for seed in range(2, 12):
        provoke(seed)
    assert server.metrics().keys() == names


def test_the_metrics_page_is_for_everyone_at_once(run: Processes) -> None:
    """A client that connects to the metrics port and says nothing delays nobody."""
    server = run.server()
    port = int(server.metrics_url.rsplit(":", 1)[1].split("/")[0])
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
    try:
        idle[0].sendall(b"GET /met")
        assert "offramp_server_open_streams" in scrape(server.metrics_url)
        assert server.drain() == 0
    finally:
        for connection in idle:
            connection.close()
