"""Two processes against one: the same predictions at every T_c, and every byte accounted for."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from offramp.common.bundle.load import Bundle
from offramp.common.errors import (
    BundleError,
    ConfigError,
    ExitCode,
    MismatchError,
    OfframpError,
    PeerError,
    UnavailableError,
)
from offramp.common.part.answer import both_exits
from offramp.common.part.engine import Engine
from offramp.common.wire import frame
from offramp.device.device import Device, exit_code
from offramp.v1 import inference_pb2 as pb
from tests import toy
from tests.processes import Processes, closed_port, counting_proxy, scrape, until
from tests.toy import BundleFolder

THRESHOLDS = [0, 0.3, 0.5, 0.7, 0.9, 1]


def in_one_process(engine: Engine, threshold: float, *, both: bool = False) -> list[tuple[str, int, float]]:
    """Source, class and confidence of each of the 300 images."""
    symbols, early = engine.head(toy.images(300, seed=3))
    late: NDArray[np.floating] = engine.tail(symbols)
    if both:
        late = both_exits(early, late.argmax(axis=1), late.max(axis=1))
    return [
        ("early_exit", int(mine.argmax()), float(mine.max()))
        if mine.max() > threshold
        else ("server", int(theirs.argmax()), float(theirs.max()))
        for mine, theirs in zip(early, late, strict=True)
    ]


def check_predictions(answers: list[dict[str, Any]], expected: list[tuple[str, int, float]]) -> None:
    answers = sorted(answers, key=lambda answer: int(answer["index"]))
    assert [answer["index"] for answer in answers] == list(range(len(expected)))
    assert [(a["source"], a["class_index"]) for a in answers] == [(s, c) for s, c, _ in expected]
    np.testing.assert_allclose([a["confidence"] for a in answers], [p for _, _, p in expected], atol=2e-6)


@pytest.mark.parametrize("window", [1, 16])
def test_predictions_are_those_of_one_process(
    run: Processes, toy_engine: Engine, toy_npz: Path, window: int
) -> None:
    server = run.server()
    exits = []
    flags = ("--server", server.address, "--window", window, "--timeout", 60, "--json", toy_npz)
    devices = [run.start_device("--threshold", threshold, *flags) for threshold in THRESHOLDS]
    for threshold, device in zip(THRESHOLDS, devices, strict=True):
        assert device.wait() == 0 and device.errors == ""
        check_predictions(device.answers, in_one_process(toy_engine, threshold))
        exits.append(device.summary["early_exit"])
        assert device.summary["threshold"] == threshold
        assert all(a["payload_bytes"] == 0 for a in device.answers if a["source"] == "early_exit")
    assert exits[0] == 300 and exits[-1] == 0
    assert exits == sorted(exits, reverse=True) and len(set(exits)) >= 4
    # The last device sent every image once; the first one nothing.
    metrics = server.metrics()
    assert metrics["offramp_server_frames_total{result=answered}"] == sum(300 - count for count in exits)
    assert metrics["offramp_server_frames_total{result=refused}"] == 0


def test_the_default_threshold_is_the_bundles(run: Processes, toy_engine: Engine, toy_npz: Path) -> None:
    _, device = run.device("--server", run.server().address, "--json", toy_npz)
    assert device.summary["threshold"] == 0.8
    check_predictions(device.answers, in_one_process(toy_engine, 0.8))


def test_both_exits_answer_what_was_sent(
    run: Processes, both_bundle: Bundle, toy_engine: Engine, toy_npz: Path
) -> None:
    server = run.server(bundle=both_bundle.path)
    flags = ("--server", server.address, "--timeout", 60, "--json", toy_npz)
    status, device = run.device("--threshold", 0.7, *flags, bundle=both_bundle.path)
    together = in_one_process(toy_engine, 0.7, both=True)
    assert status == 0
    check_predictions(device.answers, together)
    assert [best for _, best, _ in together] != [best for _, best, _ in in_one_process(toy_engine, 0.7)]


def test_a_raw_bundle_sends_raw_symbols(run: Processes, raw_bundle: Bundle, toy_images: Path) -> None:
    server = run.server(bundle=raw_bundle.path)
    status, device = run.device(
        "--server", server.address, "--threshold", 1, "--json", toy_images, bundle=raw_bundle.path
    )
    assert status == 0 and {answer["payload_bytes"] for answer in device.answers} == {64}


def test_a_threshold_of_0_connects_to_nothing(run: Processes, toy_npz: Path) -> None:
    with closed_port() as port:
        status, device = run.device("--server", f"127.0.0.1:{port}", "--threshold", 0, "--json", toy_npz)
    assert status == 0 and device.errors == ""
    assert device.summary["early_exit"] == device.summary["images"] == 300
    assert device.summary["wire_bytes"] == {"sent": 0, "received": 0}
    with counting_proxy(1) as proxy:
        status, _ = run.device("--server", f"127.0.0.1:{proxy.port}", "--threshold", 0, "--json", toy_npz)
    assert status == 0 and proxy.connections == 0


@pytest.mark.parametrize("window", [1, 16])
def test_every_byte_is_counted(run: Processes, toy_bundle: Bundle, toy_npz: Path, window: int) -> None:
    server = run.server()
    with counting_proxy(server.port) as proxy:
        device = run.start_device(
            *("--server", f"127.0.0.1:{proxy.port}", "--threshold", 1, "--window", window),
            *("--json", "--metrics-port", 0, "--hold", toy_npz),
        )
        url = "http://" + device.wait_for(r"metrics on (\S+)")[1] + "/metrics"
        until(lambda: device.stdout and "summary" in device.stdout[-1], "the summary")
        page = scrape(url)
        device.send(signal.SIGTERM)
        assert device.wait() == 0
    summary, answers = device.summary, device.answers
    assert proxy.connections == 1 and summary["server"] == len(answers) == 300

    # The kernel's count, the process's and an outsider's.
    wire = summary["wire_bytes"]
    assert wire["sent"] == page["offramp_device_wire_bytes_total{direction=sent}"]
    assert wire["received"] == page["offramp_device_wire_bytes_total{direction=received}"]
    assert wire["sent"] == pytest.approx(proxy.up, rel=0.02)
    assert wire["received"] == pytest.approx(proxy.down, rel=0.02)

    # The images' shares add up to the messages, less the first one of each side.
    messages = {
        direction: page[f"offramp_device_message_bytes_total{{direction={direction}}}"]
        for direction in ("sent", "received")
    }
    theirs = server.metrics()
    assert messages["sent"] == theirs["offramp_server_message_bytes_total{direction=received}"]
    assert messages["received"] == theirs["offramp_server_message_bytes_total{direction=sent}"]
    limits = pb.Limits(frames_in_flight=64, message_bytes=16_384, frames_per_message=64)
    first = (
        len(frame.hello(toy_bundle.digest)),
        len(pb.ServerMessage(accepted=pb.Accepted(limits=limits)).SerializeToString()),
    )
    # Each share is rounded to a tenth.
    shares = sum(answer["message_bytes"] for answer in answers)
    assert shares == pytest.approx(sum(messages.values()) - sum(first), abs=0.05 * len(answers) + 1)
    wires = sum(answer["wire_bytes"] for answer in answers)
    assert shares < wires <= sum(wire.values())

    # Payload ≤ message ≤ wire, for each image and in all.
    for answer in answers:
        assert 0 < answer["payload_bytes"] < answer["message_bytes"] < answer["wire_bytes"]
    payload = sum(answer["payload_bytes"] for answer in answers)
    assert payload == summary["payload_bytes"] == page["offramp_device_payload_bytes_total"]
    assert payload == theirs["offramp_server_payload_bytes_total"]
    assert payload < messages["sent"] < wire["sent"]
    raw = 300 * toy_bundle.codec.raw_bytes
    assert summary["raw_activation_bytes"] == page["offramp_device_raw_activation_bytes_total"] == raw
    assert payload < raw

    assert page["offramp_device_images_total{source=server}"] == 300
    assert page["offramp_device_images_total{source=fallback}"] == 0
    assert page["offramp_device_round_trip_seconds_count"] == 300
    for stage in ("head", "encode"):
        assert page[f"offramp_device_stage_seconds_count{{stage={stage}}}"] == 300
    assert page["offramp_device_connects_total"] == 1 and page["offramp_device_reconnects_total"] == 0
    assert page["offramp_device_threshold_ratio"] == 1
    digest = toy_bundle.digest.hex()
    assert page[f"offramp_bundle_info{{digest={digest},name=toy}}"] == 1
    assert any(name.startswith("offramp_build_info{") for name in page)


# --- servers that die, stop and drain ---


def running(run: Processes, address: str, images: Path, *flags: object) -> Any:
    """A device that offloads all, slowly enough to be in mid-run for a while."""
    return run.start_device("--server", address, "--threshold", 1, "--rate", 100, "--json", *flags, images)


def answered_by(device: Any, source: str) -> int:
    return sum(answer["source"] == source for answer in device.answers)


def check_once(device: Any, count: int) -> None:
    """Every image has exactly one answer, and the summary tells the same."""
    assert sorted(answer["index"] for answer in device.answers) == list(range(count))
    for source in ("early_exit", "server", "fallback"):
        assert device.summary[source] == answered_by(device, source)


@pytest.fixture(scope="module")
def many_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More images than a run at its rate needs for the test: it is interrupted when all is seen."""
    path = tmp_path_factory.mktemp("npz") / "many.npz"
    np.savez(path, images=toy.images(20_000, seed=4).transpose(0, 2, 3, 1))
    return path


def test_a_killed_servers_images_are_fallbacks_until_another_takes_over(
    run: Processes, many_images: Path
) -> None:
    server = run.server()
    device = running(run, server.address, many_images, "--window", 4)
    until(lambda: answered_by(device, "server") >= 20, "answers of the first server")
    server.send(signal.SIGKILL)
    server.wait()
    before = answered_by(device, "server")
    until(lambda: answered_by(device, "fallback") >= 20, "fallbacks")
    run.server(listen=server.address)
    until(lambda: answered_by(device, "server") >= before + 20, "answers of the second server")
    device.send(signal.SIGINT)
    assert device.wait() == ExitCode.INTERRUPTED
    check_once(device, len(device.answers))
    fallbacks = [answer["index"] for answer in device.answers if answer["source"] == "fallback"]
    # One outage: at most the frames of a window lie between its first and last fallback.
    inside = [a for a in device.answers if min(fallbacks) < a["index"] < max(fallbacks)]
    assert sum(answer["source"] == "server" for answer in inside) <= 4
    assert all("127.0.0.1" in a["reason"] for a in device.answers if a["source"] == "fallback")
    assert device.errors.count("WARNING") == 1 and device.errors.count("accepted the stream") == 1


def test_a_killed_server_tells_in_the_exit_status(run: Processes, toy_npz: Path) -> None:
    server = run.server()
    device = running(run, server.address, toy_npz, "--rate", 200)
    until(lambda: answered_by(device, "server") >= 20, "answers")
    server.send(signal.SIGKILL)
    assert device.wait() == ExitCode.UNAVAILABLE
    check_once(device, 300)
    assert answered_by(device, "server") + answered_by(device, "fallback") == 300


def test_a_stopped_servers_images_are_fallbacks_until_it_goes_on(run: Processes, many_images: Path) -> None:
    server = run.server()
    device = running(run, server.address, many_images, "--timeout", 1)
    until(lambda: answered_by(device, "server") >= 20, "answers")
    server.send(signal.SIGSTOP)
    try:
        until(lambda: answered_by(device, "fallback") >= 50, "fallbacks")
        before = answered_by(device, "server")
    finally:
        server.send(signal.SIGCONT)
    until(lambda: answered_by(device, "server") >= before + 20, "answers once more")
    device.send(signal.SIGINT)
    assert device.wait() == ExitCode.INTERRUPTED
    check_once(device, len(device.answers))
    assert "silent for" in device.errors


def test_a_draining_server_loses_no_frame(run: Processes, many_images: Path) -> None:
    server = run.server()
    device = run.start_device("--server", server.address, "--threshold", 1, "--json", many_images)
    until(lambda: answered_by(device, "server") >= 200, "answers")
    assert server.drain() == 0
    until(lambda: answered_by(device, "fallback") >= 20, "fallbacks")
    before = answered_by(device, "server")
    following = run.server(listen=server.address)
    until(lambda: answered_by(device, "server") > before, "answers of the next server")
    device.send(signal.SIGTERM)
    assert device.wait() == ExitCode.INTERRUPTED
    assert following.drain() == 0
    check_once(device, len(device.answers))
    # Whatever has no answer never left the device.
    lost = [a for a in device.answers if a["source"] == "fallback" and a["payload_bytes"]]
    assert lost == []
    assert "is draining; connecting again" in device.errors


def test_old_streams_are_changed_for_new_ones_and_lose_no_frame(run: Processes, many_images: Path) -> None:
    server = run.server("--max-stream-age", 0.5, "--metrics-port", 0)
    device = run.start_device(
        "--server", server.address, "--threshold", 1, "--json", "--rate", 300, many_images
    )
    until(lambda: device.errors.count("is draining; connecting again") >= 3, "new streams")
    device.send(signal.SIGTERM)
    assert device.wait() == ExitCode.INTERRUPTED
    check_once(device, len(device.answers))
    assert device.summary["server"] == device.summary["images"] > 300
    assert server.drain() == 0


def test_a_new_server_on_the_same_port_is_used_after_a_drain(run: Processes, many_images: Path) -> None:
    """A rolling restart: where the next server is up at once, few images notice."""
    server = run.server()
    device = running(run, server.address, many_images, "--timeout", 30)
    for _ in range(2):
        seen = answered_by(device, "server")
        until(lambda seen=seen: answered_by(device, "server") >= seen + 20, "answers")  # type: ignore[misc]
        assert server.drain() == 0
        server = run.server(listen=server.address)
    seen = answered_by(device, "server")
    until(lambda: answered_by(device, "server") >= seen + 20, "answers")
    device.send(signal.SIGTERM)
    assert device.wait() == ExitCode.INTERRUPTED
    check_once(device, len(device.answers))
    assert all(a["payload_bytes"] == 0 for a in device.answers if a["source"] == "fallback")


# --- the library ---


def test_infer_gives_one_result(run: Processes, toy_bundle: Bundle, toy_engine: Engine) -> None:
    server = run.server()
    image = toy.images(1)[0]
    with Device(toy_bundle, server=server.address, threshold=1) as device:
        result = device.infer(image)
    symbols, _ = toy_engine.head(image[None])
    assert result.source == "server" and result.reason is None
    assert result.class_index == toy_engine.tail(symbols)[0].argmax()
    assert result.label == toy.CLASSES[result.class_index]
    assert 0 < result.payload_bytes < result.message_bytes < result.wire_bytes
    wire = device.wire_bytes()
    assert wire is not None and wire.sent + wire.received > result.wire_bytes


def test_without_a_server_the_early_exit_answers(toy_bundle: Bundle, toy_engine: Engine) -> None:
    images = toy.images(20)
    with closed_port() as port, Device(toy_bundle, server=f"127.0.0.1:{port}", threshold=1) as device:
        results = [future.result() for future in [device.submit(image) for image in images]]
    _, probabilities = toy_engine.head(images)
    assert [result.class_index for result in results] == probabilities.argmax(axis=1).tolist()
    for result in results:
        assert result.source == "fallback" and "is unreachable" in (result.reason or "")
        assert (result.payload_bytes, result.message_bytes, result.wire_bytes) == (0, 0, 0)
    assert isinstance(device.failure, UnavailableError)


@pytest.mark.parametrize(
    "server", ["nowhere", "host:99999", "::1:5", "[::1:5", ":5", "1.2.3.4:5", "example.org:5"]
)
def test_a_wrong_or_insecure_address_is_refused(toy_bundle: Bundle, server: str) -> None:
    with pytest.raises(ConfigError, match="--server"):
        Device(toy_bundle, server=server)


def test_a_head_that_does_not_run_is_refused(damaged: BundleFolder) -> None:
    from offramp.common.bundle.load import load_bundle

    damaged.edit("preprocessing", "height", value=9)
    with pytest.raises(BundleError, match=r"head\.onnx"):
        Device(load_bundle(damaged.path), server="127.0.0.1:1")


@pytest.mark.parametrize(
    ("fallbacks", "unreadable", "failure", "expected"),
    [
        (0, 0, None, 0),
        (0, 0, UnavailableError("it came back"), 0),
        (0, 1, None, 5),
        (1, 0, None, 3),
        (1, 1, UnavailableError("gone"), 3),
        (1, 0, MismatchError("other bundle"), 6),
        (1, 0, PeerError("nonsense"), 6),
    ],
)
def test_the_exit_status_tells(
    fallbacks: int, unreadable: int, failure: OfframpError | None, expected: int
) -> None:
    assert exit_code(fallbacks, unreadable, failure) == expected


def test_the_device_needs_no_torch(toy_bundle: Bundle, toy_images: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'sklearn', 'onnxscript']));"
        "from offramp.device.app import main;"
        f"sys.exit(main(['--bundle', {str(toy_bundle.path)!r}, '--threshold', '0', {str(toy_images)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
