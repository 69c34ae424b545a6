"""A real local Ray Serve with the shipped configuration, and the unchanged ``edge-device`` against it.

Skipped where Ray is not installed; ``make test-ray`` installs it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.wire.frame import FrameWriter
from offramp.v1 import inference_pb2 as pb
from tests.processes import WAIT, Processes, Program, processes, scrape, until
from tests.server.client import Ended, good_frames, stream_to

pytest.importorskip("ray.serve")

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "models" / "digits-mobilenetv2-exit12"
IMAGES = ROOT / "examples" / "digits"
TOKEN = "a-token-of-the-fleet"
AUTHORIZATION = (("authorization", f"Bearer {TOKEN}"),)
STREAMS = 3


class Cluster:
    """``serve run`` on a Ray of its own."""

    def __init__(self, folder: Path, toy: Bundle) -> None:
        self.port, self.metrics_port, http_port, dashboard = free_ports(4)
        self.address = f"127.0.0.1:{self.port}"
        self.toy = toy
        self.token_file = folder / "token"
        self.token_file.write_text(TOKEN)
        config = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())
        config["grpc_options"]["port"] = self.port
        config["http_options"]["port"] = http_port
        (application,) = config["applications"]
        application["args"] = {
            "bundle": [str(BUNDLE), str(toy.path)],
            "token_file": str(self.token_file),
            "max_streams": STREAMS,
            "metrics_port": self.metrics_port,
        }
        ingress, digits = application["deployments"]
        ingress["ray_actor_options"] = digits["ray_actor_options"] = {"num_cpus": 0.1}
        digits["autoscaling_config"] = {"min_replicas": 2, "max_replicas": 2}
        # So little room that Serve itself refuses calls of the toy bundle's tail.
        one = {"autoscaling_config": None, "num_replicas": 1, "ray_actor_options": {"num_cpus": 0.1}}
        application["deployments"].append(
            {"name": "toy", "max_ongoing_requests": 1, "max_queued_requests": 1, **one}
        )
        path = folder / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        environment = os.environ | {
            "RAY_TMPDIR": str(folder),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(4 << 20),
            "RAY_DASHBOARD_PORT": str(dashboard),
        }
        self.program = Program([str(Path(sys.executable).with_name("serve")), "run", str(path)],
                               env=environment, cwd=ROOT)  # fmt: skip
        try:
            until(lambda: self.serves(toy) and self.serves(load_bundle(BUNDLE)), "Ray to serve")
        except BaseException:
            self.end()
            raise

    def serves(self, bundle: Bundle) -> bool:
        """Whether a frame of this bundle is answered."""
        assert self.program.process.poll() is None, self.program.errors
        try:
            with stream_to(self.address, bundle, AUTHORIZATION) as stream:
                stream.hello()
                stream.send(FrameWriter().pack(good_frames(bundle, 1)))
                return not stream.replies(1)[0].HasField("error")
        except Ended:
            return False

    def metrics(self) -> dict[str, float]:
        """The ingress's metrics page."""
        return scrape(f"http://127.0.0.1:{self.metrics_port}/metrics")

    def replicas(self, deployment: str) -> list[int]:
        """Process ids of a deployment's replicas."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                title = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(f"ray::ServeReplica:offramp:{deployment}".encode()):
                found.append(int(process.name))
        return found

    def end(self) -> None:
        """What Ctrl-C does, and no process is left."""
        self.program.send(signal.SIGINT)
        try:
            self.program.process.wait(WAIT)
        finally:
            self.program.end()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def cluster(toy_bundle: Bundle) -> Iterator[Cluster]:
    # Sockets lie in it: its path has to be short.
    folder = Path(tempfile.mkdtemp(prefix="offramp-ray-", dir="/tmp"))
    try:
        started = Cluster(folder, toy_bundle)
        try:
            yield started
        finally:
            started.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def run() -> Iterator[Processes]:
    with processes(BUNDLE) as started:
        yield started


@pytest.fixture(scope="module")
def plain() -> dict[str, tuple[str, float]]:
    """What the unchanged ``cloud-server`` answers: image → class and probability."""
    with processes(BUNDLE) as started:
        server = started.server()
        status, device = started.device("--server", server.address, "--threshold", 1, "--json", IMAGES)
    assert status == 0
    return {each["image"]: (each["label"], each["confidence"]) for each in device.answers}


def device_flags(cluster: Cluster) -> list[Any]:
    return ["--server", cluster.address, "--token-file", cluster.token_file, "--json"]


def assert_same(device: Program, plain: dict[str, tuple[str, float]]) -> None:
    """Every answer of the server is the plain server's."""
    for each in device.answers:
        if each["source"] == "server":
            label, confidence = plain[each["image"]]
            assert each["label"] == label
            assert each["confidence"] == pytest.approx(confidence, abs=1e-5)


def test_the_unchanged_device_gets_the_same_answers(
    run: Processes, cluster: Cluster, plain: dict[str, tuple[str, float]]
) -> None:
    before = cluster.metrics()
    status, device = run.device(*device_flags(cluster), "--threshold", 1, "--timeout", 60, IMAGES)

    assert status == 0
    assert {each["source"] for each in device.answers} == {"server"}
    assert len(device.answers) == len(plain) == 364
    assert_same(device, plain)
    after, answered = cluster.metrics(), "offramp_server_frames_total{result=answered}"
    assert after[answered] - before[answered] == 364
    payload = "offramp_server_payload_bytes_total"
    assert after[payload] - before[payload] == device.summary["payload_bytes"]
    until(lambda: cluster.metrics()["offramp_server_open_streams"] == 0, "the stream to be closed")


def test_a_killed_tail_loses_no_answer(
    run: Processes, cluster: Cluster, plain: dict[str, tuple[str, float]]
) -> None:
    until(lambda: len(cluster.replicas(BUNDLE.name)) == 2, "two replicas")
    device = run.start_device(
        *device_flags(cluster), "--threshold", 1, "--timeout", 60, "--rate", 100, IMAGES, IMAGES
    )
    until(lambda: len(device.answers) > 100, "some answers")
    before = cluster.replicas(BUNDLE.name)
    os.kill(before[0], signal.SIGKILL)

    assert device.wait() == 0
    assert len(device.answers) == 2 * len(plain)
    assert {each["source"] for each in device.answers} == {"server"}
    assert_same(device, plain)
    until(lambda: len(set(cluster.replicas(BUNDLE.name)) - {before[0]}) == 2, "a new replica")


def test_what_serve_refuses_is_overload_with_a_time_to_come_back(cluster: Cluster) -> None:
    with stream_to(cluster.address, cluster.toy, AUTHORIZATION) as stream:
        limits = stream.hello()
        writer, first = FrameWriter(), 1
        replies: list[pb.Reply] = []
        # One call runs, one waits; of sixteen at once Serve refuses some, and of so many at least one.
        for _ in range(50):
            for _ in range(limits.frames_in_flight):
                stream.send(writer.pack(good_frames(cluster.toy, 1, first)))
                first += 1
            replies += stream.replies_at_least(first - 1 - len(replies))
            refused = [reply for reply in replies if reply.HasField("error")]
            if refused:
                break
        assert len(replies) == first - 1
        assert {each.error.reason for each in refused} == {pb.FrameError.REASON_OVERLOADED}
        assert {each.error.retry_after_ms for each in refused} == {200}
        assert "the tail's replicas are busy" in refused[0].error.message
        assert len(refused) < len(replies)
        assert stream.end() == []


def test_streams_over_the_limit_are_refused(cluster: Cluster) -> None:
    until(lambda: cluster.metrics()["offramp_server_open_streams"] == 0, "no stream")
    with ExitStack() as opened:
        for _ in range(STREAMS):
            opened.enter_context(stream_to(cluster.address, cluster.toy, AUTHORIZATION)).hello()
        one_more = opened.enter_context(stream_to(cluster.address, cluster.toy, AUTHORIZATION))
        with pytest.raises(Ended) as ended:
            one_more.hello()
        assert ended.value.status == "RESOURCE_EXHAUSTED"
        assert ended.value.details == f"{STREAMS} streams are open already, the most that may"
    # Cancelled, not ended in good order: that reaches the replica as well.
    until(lambda: cluster.metrics()["offramp_server_open_streams"] == 0, "no stream")


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer something-else-altogether"),)])
def test_nobody_gets_in_without_a_token(cluster: Cluster, metadata: tuple[tuple[str, str], ...]) -> None:
    with stream_to(cluster.address, cluster.toy, metadata) as stream, pytest.raises(Ended) as ended:
        stream.hello()
    assert ended.value.status == "UNAUTHENTICATED"
    assert TOKEN not in ended.value.details


def test_a_device_with_another_bundle_is_refused(cluster: Cluster, raw_bundle: Bundle) -> None:
    with stream_to(cluster.address, raw_bundle, AUTHORIZATION) as stream, pytest.raises(Ended) as ended:
        stream.hello()
    assert ended.value.status == "FAILED_PRECONDITION"


def test_garbage_is_answered_and_others_go_on(cluster: Cluster) -> None:
    with (
        stream_to(cluster.address, cluster.toy, AUTHORIZATION) as good,
        stream_to(cluster.address, cluster.toy, AUTHORIZATION) as bad,
    ):
        good.hello()
        bad.hello()
        bad.send(pb.DeviceMessage(frames=[b"no frame at all"]).SerializeToString())
        (reply,) = bad.replies(1)
        assert reply.error.reason == pb.FrameError.REASON_CHECKSUM
        bad.send(b"\xff" * 64)
        with pytest.raises(Ended) as ended:
            bad.receive()
        assert ended.value.status == "INVALID_ARGUMENT"
        good.send(FrameWriter().pack(good_frames(cluster.toy, 1)))
        assert not good.replies(1)[0].HasField("error")


def test_a_killed_ingress_costs_no_answer(
    run: Processes, cluster: Cluster, plain: dict[str, tuple[str, float]]
) -> None:
    device = run.start_device(
        *device_flags(cluster), "--threshold", 1, "--timeout", 10, "-", stdin=subprocess.PIPE
    )
    feed = device.process.stdin
    assert feed is not None
    images, offered = cycle(sorted(plain)), 0

    def offer(count: int) -> None:
        nonlocal offered
        offered += count
        feed.write("".join(f"{next(images)}\n" for _ in range(count)))
        feed.flush()

    offer(100)
    until(lambda: device.answers, "an answer")
    (ingress,) = cluster.replicas("Ingress")
    os.kill(ingress, signal.SIGKILL)
    offer(100)
    until(lambda: len(device.answers) == offered, "the answers of meanwhile")

    def back() -> bool:
        offer(1)
        until(lambda: len(device.answers) == offered, "one more answer")
        return bool(device.answers[-1]["source"] == "server")

    # Serve starts another one, and the device finds it by itself.
    until(back, "the server's answers")
    feed.close()
    device.wait()

    assert sorted(each["index"] for each in device.answers) == list(range(offered))
    # Frames that were on their way are sent again, or answered by the early exit.
    assert_same(device, plain)
    assert cluster.replicas("Ingress") != [ingress]
