"""What the server's page says of its streams: who they are of, what they sent, and no more than fit."""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import Any

import pytest

from offramp.common.bundle.load import Bundle
from offramp.server.live import SHOWN, fleet, shown_peer
from offramp.server.stream import StreamSummary
from tests.processes import WAIT, Processes
from tests.server.client import good_message, stream_to


def summary(peer: str, taken: int = 1) -> StreamSummary:
    return StreamSummary(peer, "toy", 1.26, taken, 0, 0)


@pytest.mark.parametrize(
    ("peer", "shown"),
    [("ipv4:127.0.0.1:80", "127.0.0.1:80"), ("ipv6:%5B::1%5D:80", "[::1]:80"), ("unix:", "unix:")],
)
def test_a_peer_is_shown_as_flags_take_it(peer: str, shown: str) -> None:
    assert shown_peer(peer) == shown


def test_streams_of_one_host_are_of_one_host() -> None:
    found = fleet([summary("ipv4:10.0.0.1:1"), summary("ipv4:10.0.0.1:2", 7), summary("ipv6:%5B::1%5D:1")])
    assert found["hosts"] == 2
    assert [one["taken"] for one in found["streams"]] == [7, 1, 1]
    assert found["streams"][0] == {
        "peer": "10.0.0.1:2", "bundle": "toy", "seconds": 1.3, "taken": 7, "unanswered": 0, "strikes": 0,
    }  # fmt: skip


def test_of_very_many_streams_those_with_most_frames_are_shown() -> None:
    found = fleet([summary(f"ipv4:10.0.0.1:{number}", number) for number in range(2000)])
    assert [one["taken"] for one in found["streams"]] == list(range(1999, 1999 - SHOWN, -1))
    assert len(json.dumps(found)) < 10_000


def state_of(url: str) -> Any:
    """The first state of a page."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url.replace("/metrics", "/events"), timeout=WAIT) as response:
        return json.loads(response.readline().removeprefix(b"data: "))


def test_a_real_server_shows_a_real_stream(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--page")
    assert f"page on {server.metrics_url.removesuffix('metrics')}" in server.errors
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        stream.send(good_message(toy_bundle, 3))
        stream.replies(3)
        state = state_of(server.metrics_url)
        assert state["program"] == "cloud-server"
        assert state["bundle"] == toy_bundle.manifest.name
        (shown,) = state["streams"]
        assert shown["peer"].startswith("127.0.0.1:")
        assert (shown["bundle"], shown["taken"], shown["unanswered"]) == (toy_bundle.manifest.name, 3, 0)
        assert state["metrics"]['offramp_server_frames_total{result="answered"}'] == 3
        assert state["control"]["settable"] is False
    assert server.drain() == 0


def test_a_page_needs_a_port(run: Processes, toy_bundle: Bundle) -> None:
    flags = ["--bundle", str(toy_bundle.path), "--listen", "127.0.0.1:0", "--page"]
    program = run.start([sys.executable, "-m", "offramp.server.app", *flags])
    assert program.wait() == 2
    assert program.errors == "cloud-server: --page needs --metrics-port"
