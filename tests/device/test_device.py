"""Two processes against one: the same predictions at every T_c, and every byte accounted for."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from offramp.common.bundle.load import Bundle
from offramp.common.errors import (
    BundleError,
    ConfigError,
    ExitCode,
    UnavailableError,
)
from offramp.common.part.answer import both_exits
from offramp.common.part.engine import Engine
from offramp.common.wire import frame
from offramp.device import Correction, Device, LinkOptions, SpoolOptions, SteeringOptions
from offramp.v1 import inference_pb2 as pb
from tests import toy
from tests.device import hostile
from tests.processes import WAIT, Processes, closed_port, counting_proxy, scrape, until
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


def test_predictions_are_those_of_one_process(run: Processes, toy_engine: Engine, toy_npz: Path) -> None:
    server = run.server()
    exits = []
    flags = ("--server", server.address, "--timeout", 60, "--json", toy_npz)
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


def test_old_streams_are_changed_for_new_ones_and_lose_no_frame(run: Processes, tmp_path: Path) -> None:
    path = tmp_path / "many.npz"
    np.savez(path, images=toy.images(20_000, seed=4).transpose(0, 2, 3, 1))
    server = run.server("--max-stream-age", 0.5)
    device = run.start_device("--server", server.address, "--threshold", 1, "--json", "--rate", 300, path)
    # The device says so of the first only: the next ones come too soon after it.
    until(lambda: server.metrics()["offramp_server_streams_total"] > 3, "new streams")
    until(lambda: len(device.stdout) > 300, "answers")
    assert "is draining; connecting again" in device.errors
    device.send(signal.SIGTERM)
    assert device.wait() == ExitCode.INTERRUPTED
    assert sorted(a["index"] for a in device.answers) == list(range(len(device.answers)))
    assert device.summary["server"] == device.summary["images"] > 300
    assert server.drain() == 0


# --- the Python API ---


def test_importing_it_loads_nothing() -> None:
    code = (
        "import sys, offramp.device\n"
        "assert not {'numpy', 'grpc', 'onnxruntime', 'PIL'} & sys.modules.keys()\n"
        "from offramp.device import Correction, Device, Result\n"
        "from offramp.device.device import Device as D\n"
        "assert Device is D\n"
        "try: offramp.device.Nothing\n"
        "except AttributeError: pass\n"
        "else: raise SystemExit('an attribute that is not there')\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_default_threshold_is_the_bundles(toy_bundle: Bundle) -> None:
    with Device(toy_bundle, server="127.0.0.1:1") as device:
        assert device.threshold == toy_bundle.manifest.threshold == 0.8


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


def expected(engine: Engine, images: NDArray[np.uint8], threshold: float) -> list[tuple[str, int]]:
    symbols, early = engine.head(images)
    late = engine.tail(symbols)
    return [
        ("early_exit", int(mine.argmax())) if mine.max() > threshold else ("server", int(theirs.argmax()))
        for mine, theirs in zip(early, late, strict=True)
    ]


def test_from_an_event_loop(run: Processes, toy_bundle: Bundle, toy_engine: Engine) -> None:
    images = toy.images(60)
    address = run.server().address

    async def camera() -> AsyncIterator[NDArray[np.uint8]]:
        for image in images:
            await asyncio.sleep(0)
            yield image

    async def work() -> tuple[list[tuple[str, int]], list[tuple[str, int]], list[tuple[str, int]]]:
        async with Device(
            toy_bundle, server=address, threshold=0.7, link=LinkOptions(timeout=WAIT)
        ) as device:
            plain = [r async for r in device.map_async(images)]
            streamed = [r async for r in device.map_async(camera())]
            together = await asyncio.gather(*(device.infer_async(image) for image in images))
        return tuple([(r.source, r.class_index) for r in each] for each in (plain, streamed, together))  # type: ignore[return-value]

    wanted = expected(toy_engine, images, 0.7)
    assert asyncio.run(work()) == (wanted, wanted, wanted)


def test_the_event_loop_goes_on_meanwhile(toy_bundle: Bundle) -> None:
    """While an image waits for a server that is silent, other tasks run."""

    async def work() -> int:
        ticks = 0
        with hostile.hostile(hostile.first_messages(hostile.accepted())) as server:
            async with Device(
                toy_bundle,
                server=f"127.0.0.1:{server.port}",
                threshold=1,
                link=LinkOptions(timeout=0.5, window=1),
            ) as device:
                waiting = [asyncio.ensure_future(device.infer_async(image)) for image in toy.images(2)]
                while not all(each.done() for each in waiting):
                    ticks += 1
                    await asyncio.sleep(0.01)
                assert {each.result().source for each in waiting} == {"fallback"}
        return ticks

    assert asyncio.run(work()) > 5


def test_a_task_that_is_cancelled_costs_its_own_answer_only(run: Processes, toy_bundle: Bundle) -> None:
    address = run.server().address

    async def work() -> str:
        async with Device(toy_bundle, server=address, threshold=1, link=LinkOptions(timeout=WAIT)) as device:
            images = toy.images(8)
            doomed = [asyncio.ensure_future(device.infer_async(image)) for image in images]
            await asyncio.sleep(0)
            for each in doomed:
                each.cancel()
            await asyncio.gather(*doomed, return_exceptions=True)
            return (await device.infer_async(images[0])).source

    assert asyncio.run(work()) == "server"


def test_a_correction_names_its_image(toy_bundle: Bundle) -> None:
    go = threading.Event()

    def script(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield hostile.accepted()
        numbers = hostile.sequences(requests)
        slow = next(numbers)
        yield hostile.reply(next(numbers))
        go.wait(WAIT)
        yield hostile.reply(slow, class_index=2, probability=0.5)
        hostile.hold(context)

    seen: list[Correction] = []

    def note(correction: Correction) -> None:
        seen.append(correction)
        raise RuntimeError("somebody else's bug")

    with hostile.hostile(script) as server:
        device = Device(
            toy_bundle,
            server=f"127.0.0.1:{server.port}",
            threshold=1,
            on_correction=note,
            link=LinkOptions(timeout=0.5),
        )
        with device:
            images = toy.images(2)
            first = device.submit(images[0], name="door.png", index=17)
            second = device.submit(images[1])
            assert (first.result().source, second.result().source) == ("fallback", "server")
            go.set()
            until(lambda: seen, "the correction")
    assert seen == [Correction(17, "door.png", toy.CLASSES[2], 2, 0.5, spooled=False)]


def test_both_exits_correct_what_was_spooled(
    run: Processes, both_bundle: Bundle, toy_engine: Engine, tmp_path: Path
) -> None:
    """An earlier run's early exit is heard too."""
    images, seen = toy.images(40), dict[int, int]()

    def note(correction: Correction) -> None:
        seen[correction.index] = correction.class_index

    flags: dict[str, Any] = {"threshold": 1, "spool": SpoolOptions(tmp_path / "spool"), "on_correction": note}
    with closed_port() as port, Device(both_bundle, server=f"127.0.0.1:{port}", **flags) as device:
        assert {result.source for result in device.map(images)} == {"fallback"}
    server = run.server(bundle=both_bundle.path)
    with Device(both_bundle, server=server.address, **flags) as device:
        assert device.wait_spool(WAIT)
    symbols, early = toy_engine.head(images)
    late = toy_engine.tail(symbols)
    folded = both_exits(early, late.argmax(axis=1), late.max(axis=1)).argmax(axis=1)
    assert [seen[index] for index in range(len(images))] == folded.tolist()
    assert folded.tolist() != late.argmax(axis=1).tolist()


def test_several_threads_share_a_device(run: Processes, toy_bundle: Bundle, toy_engine: Engine) -> None:
    images = toy.images(100)
    found: dict[int, tuple[str, int]] = {}
    with Device(
        toy_bundle, server=run.server().address, threshold=0.8, link=LinkOptions(timeout=WAIT)
    ) as device:

        def work(start: int) -> None:
            for index in range(start, 100, 4):
                result = device.infer(images[index])
                found[index] = (result.source, result.class_index)

        threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    assert [found[index] for index in range(100)] == expected(toy_engine, images, 0.8)


def test_a_steered_threshold_is_shown_and_stays_inside(toy_bundle: Bundle) -> None:
    with (
        closed_port() as port,
        Device(
            toy_bundle,
            server=f"127.0.0.1:{port}",
            steering=SteeringOptions(byte_budget=100, threshold_floor=0.4, threshold_ceiling=0.9),
        ) as device,
    ):
        results = [device.infer(image) for image in toy.images(50)]
        assert all(r.threshold is not None and 0.4 <= r.threshold <= 0.9 for r in results)
        gauge = device.metrics.registry.get_sample_value("offramp_device_threshold_ratio")
        assert gauge == device.threshold == results[-1].threshold


def test_a_byte_budget_holds_on_the_wire(run: Processes, toy_bundle: Bundle) -> None:
    """By the kernel's count: what the budget allows in this time, and one bucket."""
    rate = 4000.0
    with Device(
        toy_bundle,
        server=run.server().address,
        threshold=1,
        steering=SteeringOptions(byte_budget=rate, threshold_floor=0, threshold_ceiling=1),
        link=LinkOptions(timeout=WAIT),
    ) as device:
        start = time.monotonic()
        results = list(device.map(toy.images(3000)))
        seconds = time.monotonic() - start
        wire = device.wire_bytes()
    assert wire is not None
    in_flight = 16 * 200
    assert wire.sent + wire.received <= rate * seconds + rate * 10 + in_flight
    assert {r.source for r in results} >= {"early_exit", "server"}


@pytest.mark.parametrize("count", [0, 1])
def test_closing_twice_or_unused_is_fine(toy_bundle: Bundle, count: int) -> None:
    device = Device(toy_bundle, server="127.0.0.1:1", threshold=0)
    for image in toy.images(count):
        device.infer(image)
    device.close()
    device.close()


@pytest.mark.parametrize(
    "given", [{"index": -1}, {"index": 1 << 63}, {"index": 1.5}, {"name": b"x"}, {"name": 3}]
)
def test_an_image_that_no_row_could_hold_is_refused(
    toy_bundle: Bundle, tmp_path: Path, given: dict[str, Any]
) -> None:
    with Device(
        toy_bundle, server="127.0.0.1:1", threshold=1, spool=SpoolOptions(tmp_path / "spool")
    ) as device:
        with pytest.raises(ConfigError, match=r"(index|name)=.*expected"):
            device.submit(toy.images(1)[0], **given)
        assert device.infer(toy.images(1)[0]).source == "fallback"
