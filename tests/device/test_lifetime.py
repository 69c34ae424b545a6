"""When a device may be used: not after its end, not in a process that was forked after it was made."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError
from offramp.device import Device, LinkOptions, SpoolOptions
from offramp.device.lifetime import Lifetime
from tests import toy
from tests.device import hostile
from tests.processes import WAIT, Processes, closed_port, until

# --- the rule ---


def test_a_closed_lifetime_lets_nobody_in() -> None:
    lifetime = Lifetime()
    lifetime.enter()
    lifetime.leave()
    lifetime.check()
    lifetime.close()
    for use in (lifetime.enter, lifetime.check):
        with pytest.raises(ConfigError, match="the device is closed"):
            use()
    lifetime.check_process()
    lifetime.close()


def test_closing_waits_for_the_callers_inside() -> None:
    lifetime = Lifetime()
    lifetime.enter()
    closing = threading.Thread(target=lifetime.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    lifetime.leave()
    closing.join(WAIT)
    assert not closing.is_alive()


def test_images_wait_for_room_and_the_end_for_images() -> None:
    lifetime = Lifetime()
    lifetime.start_image(2)
    lifetime.start_image(2)
    third = threading.Thread(target=lifetime.start_image, args=(2,))
    third.start()
    third.join(0.05)
    assert third.is_alive()
    lifetime.end_image()
    third.join(WAIT)
    assert not third.is_alive()
    lifetime.start_image(None)
    waiting = threading.Thread(target=lifetime.wait_for_images)
    waiting.start()
    for _ in range(3):
        assert waiting.is_alive()
        lifetime.end_image()
    waiting.join(WAIT)
    assert not waiting.is_alive()


def test_an_image_that_is_under_way_cannot_be_cancelled_and_the_end_waits_for_it(toy_bundle: Bundle) -> None:
    with hostile.hostile(hostile.first_messages(hostile.accepted())) as server:
        address = f"127.0.0.1:{server.port}"
        device = Device(toy_bundle, server=address, threshold=1, link=LinkOptions(timeout=0.1))
        future = device.submit(toy.images(1)[0])
        assert not future.cancel()
        closing = threading.Thread(target=device.close, daemon=True)
        closing.start()
        closing.join(WAIT)
        assert not closing.is_alive() and future.result().source == "fallback"


def test_a_forked_childs_uses_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lifetime = Lifetime()
    mine = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: mine + 1)
    assert lifetime.is_forked
    for use in (lifetime.enter, lifetime.check, lifetime.check_process, lifetime.close):
        with pytest.raises(ConfigError, match=f"in process {mine}, from which {mine + 1} was forked"):
            use()


# --- after close ---


async def collect(results: AsyncIterator[Any]) -> list[Any]:
    return [each async for each in results]


USES: dict[str, Callable[[Device], object]] = {
    "submit": lambda device: device.submit(toy.images(1)[0]),
    "infer": lambda device: device.infer(toy.images(1)[0]),
    "infer_async": lambda device: asyncio.run(device.infer_async(toy.images(1)[0])),
    "map": lambda device: list(device.map(toy.images(2))),
    "map of nothing": lambda device: device.map([]),
    "map_async": lambda device: asyncio.run(collect(device.map_async(toy.images(2)))),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("threshold", [0, 1])
@pytest.mark.parametrize("loop", [False, True])
def test_a_closed_device_answers_nothing(
    toy_bundle: Bundle, use: Callable[[Device], object], threshold: float, loop: bool
) -> None:
    with Device(toy_bundle, server="127.0.0.1:1", threshold=threshold) as device:
        if loop:
            asyncio.run(device.infer_async(toy.images(1)[0]))
    with pytest.raises(ConfigError, match="the device is closed"):
        use(device)
    device.close()
    assert device.threshold == threshold


def test_closing_beside_other_threads_leaves_no_image_without_an_answer(
    toy_bundle: Bundle, tmp_path: Path
) -> None:
    """Each image has a result or the error, and each fallback is in the spool or counted."""
    answered, refused = [0] * 4, [0] * 4
    with closed_port() as port:
        device = Device(
            toy_bundle, server=f"127.0.0.1:{port}", threshold=1, spool=SpoolOptions(tmp_path / "spool")
        )

        def work(number: int) -> None:
            for image in toy.images(2000):
                try:
                    assert device.infer(image).source == "fallback"
                    answered[number] += 1
                except ConfigError:
                    refused[number] += 1
                    return

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: sum(answered) > 40, "some answers")
        device.close()
        for thread in threads:
            thread.join(WAIT)
    value = device.metrics.registry.get_sample_value
    dropped = sum(
        value("offramp_device_spool_dropped_total", {"cause": cause}) or 0
        for cause in ("full", "refused", "damaged", "busy")
    )
    assert (value("offramp_device_spooled_total") or 0) + dropped == sum(answered)
    assert refused == [1] * 4


# --- in a forked child ---

FORKED = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[4])
from offramp.common.bundle.load import load_bundle
from offramp.common.errors import ConfigError
from offramp.device import Device, LinkOptions, SpoolOptions
from tests import toy
from tests.device.test_lifetime import USES

bundle = load_bundle(sys.argv[1])
options = {"link": LinkOptions(timeout=60), "spool": SpoolOptions(sys.argv[3])}
device = Device(bundle, server=sys.argv[2], threshold=float(sys.argv[5]), **options)
before = device.infer(toy.images(1)[0])
child = os.fork()
if child == 0:
    with device:
        for use in [*USES.values(), Device.close, Device.wire_bytes, Device.late_replies_due]:
            try:
                use(device)
            except ConfigError as error:
                assert "forked" in str(error), error
            else:
                raise SystemExit("a use that the child may not make")
    if sys.argv[6] == "exit":
        sys.exit(0)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
after = [device.infer(image) for image in toy.images(20)]
assert {each.source for each in after} == {before.source}, (before, after)
device.close()
print("ok")
"""


@pytest.mark.parametrize("end", ["exit", "_exit"])
@pytest.mark.parametrize("threshold", [0, 1])
def test_a_forked_child_is_refused_and_the_parent_goes_on(
    run: Processes, tmp_path: Path, threshold: int, end: str
) -> None:
    root = str(Path(__file__).resolve().parents[2])
    arguments = [str(run.bundle), run.server().address, str(tmp_path / "spool"), root, str(threshold), end]
    parent = run.start([sys.executable, "-c", FORKED, *arguments])
    assert parent.wait() == 0, parent.errors
    assert parent.stdout == ["ok"]


SPOOLED = """
import gc, os, sys, time
sys.path.insert(0, sys.argv[3])
from offramp.common.bundle.load import load_bundle
from offramp.device import Device, SpoolOptions
from tests import toy

device = Device(load_bundle(sys.argv[1]), server="127.0.0.1:1", threshold=1, spool=SpoolOptions(sys.argv[2]))
value = device.metrics.registry.get_sample_value
def spool(count):
    wanted = (value("offramp_device_spooled_total") or 0) + count
    for image in toy.images(count):
        device.infer(image)
    while value("offramp_device_spooled_total") < wanted:
        time.sleep(0.01)
spool(30)
for _ in range(3):
    child = os.fork()
    if child == 0:
        del device, value
        gc.collect()
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    spool(10)
print("ready", flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_child_that_ends_leaves_the_parents_spool_alone(toy_bundle: Bundle, tmp_path: Path) -> None:
    """SQLite would fold the log into the file and delete it, while the parent goes on writing to it."""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", SPOOLED, str(toy_bundle.path), str(tmp_path / "spool"), root],
        capture_output=True, text=True, timeout=WAIT, check=False,
    )  # fmt: skip
    assert done.stdout == "ready\n" and done.returncode == -signal.SIGKILL, done.stderr
    rows = subprocess.run(
        [sys.executable, "-c", COUNT, str(tmp_path / "spool")], capture_output=True, text=True, check=True
    )
    assert rows.stdout == "60\n"


COUNT = (
    "import sqlite3, sys; "
    "print(sqlite3.connect(sys.argv[1]).execute('SELECT COUNT(*) FROM activations').fetchone()[0])"
)
