"""The Python API: one image or many, plainly or from an event loop, and what comes too late."""

from __future__ import annotations

import asyncio
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
from offramp.common.part.answer import both_exits
from offramp.common.part.engine import Engine
from offramp.device import Correction, Device
from tests import toy
from tests.device import hostile
from tests.processes import WAIT, Processes, closed_port, until


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


def expected(engine: Engine, images: NDArray[np.uint8], threshold: float) -> list[tuple[str, int]]:
    symbols, early = engine.head(images)
    late = engine.tail(symbols)
    return [
        ("early_exit", int(mine.argmax())) if mine.max() > threshold else ("server", int(theirs.argmax()))
        for mine, theirs in zip(early, late, strict=True)
    ]


def test_map_keeps_the_order(run: Processes, toy_bundle: Bundle, toy_engine: Engine) -> None:
    images = toy.images(120)
    with Device(toy_bundle, server=run.server().address, threshold=0.7, link=LinkOptions(timeout=WAIT)) as device:
        results = list(device.map(images))
    assert [(r.source, r.class_index) for r in results] == expected(toy_engine, images, 0.7)


def test_map_is_lazy(toy_bundle: Bundle) -> None:
    taken: list[int] = []

    def endless() -> Iterator[NDArray[np.uint8]]:
        while True:
            taken.append(1)
            yield toy.images(1)[0]

    with Device(toy_bundle, server="127.0.0.1:1", threshold=0) as device:
        results = device.map(endless())
        for _ in range(3):
            next(results)
    assert len(taken) <= 4


def test_from_an_event_loop(run: Processes, toy_bundle: Bundle, toy_engine: Engine) -> None:
    images = toy.images(60)
    address = run.server().address

    async def camera() -> AsyncIterator[NDArray[np.uint8]]:
        for image in images:
            await asyncio.sleep(0)
            yield image

    async def work() -> tuple[list[tuple[str, int]], list[tuple[str, int]], list[tuple[str, int]]]:
        async with Device(toy_bundle, server=address, threshold=0.7, link=LinkOptions(timeout=WAIT)) as device:
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
            async with Device(toy_bundle, server=f"127.0.0.1:{server.port}", threshold=1, link=LinkOptions(timeout=0.5, window=1)) as device:
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


def test_a_correction_is_told_with_its_image(toy_bundle: Bundle) -> None:
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
        device = Device(toy_bundle, server=f"127.0.0.1:{server.port}", threshold=1, on_correction=note, link=LinkOptions(timeout=0.5))
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

    flags: dict[str, Any] = {"threshold": 1, "spool": tmp_path / "spool", "on_correction": note}
    with closed_port() as port, Device(both_bundle, server=f"127.0.0.1:{port}", **flags) as device:
        assert {result.source for result in device.map(images)} == {"fallback"}
    server = run.server(bundle=both_bundle.path)
    with Device(both_bundle, server=server.address, **flags) as device:
        assert device.wait_spool(WAIT)
    symbols, early = toy_engine.head(images)
    late = toy_engine.tail(symbols)
    told = both_exits(early, late.argmax(axis=1), late.max(axis=1)).argmax(axis=1)
    assert [seen[index] for index in range(len(images))] == told.tolist()
    assert told.tolist() != late.argmax(axis=1).tolist()


def test_several_threads_share_a_device(run: Processes, toy_bundle: Bundle, toy_engine: Engine) -> None:
    images = toy.images(100)
    found: dict[int, tuple[str, int]] = {}
    with Device(toy_bundle, server=run.server().address, threshold=0.8, link=LinkOptions(timeout=WAIT)) as device:

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


def test_a_steered_threshold_is_told_and_stays_inside(toy_bundle: Bundle) -> None:
    with (
        closed_port() as port,
        Device(toy_bundle, server=f"127.0.0.1:{port}", steering=SteeringOptions(byte_budget=100, threshold_floor=0.4, threshold_ceiling=0.9)) as device,
    ):
        results = [device.infer(image) for image in toy.images(50)]
        assert all(r.threshold is not None and 0.4 <= r.threshold <= 0.9 for r in results)
        gauge = device.metrics.registry.get_sample_value("offramp_device_threshold_ratio")
        assert gauge == device.threshold == results[-1].threshold


def test_a_byte_budget_holds_on_the_wire(run: Processes, toy_bundle: Bundle) -> None:
    """By the kernel's count: what the budget allows in this time, and one bucket."""
    rate = 4000.0
    with Device(toy_bundle, server=run.server().address, threshold=1, steering=SteeringOptions(byte_budget=rate, threshold_floor=0, threshold_ceiling=1), link=LinkOptions(timeout=WAIT)) as device:
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
