"""What the Python API refuses: wrong arguments, a closed device, a device of the process before a fork."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.common.arguments import check_argument
from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError
from offramp.common.settings import DeviceSettings
from offramp.device import Device
from tests import toy
from tests.processes import WAIT, Processes, closed_port, until

NAN, INF = float("nan"), float("inf")
WRONG: dict[str, tuple[object, ...]] = {
    "threshold": (NAN, 3, -1, INF, -INF, True, "0.5", [0.5], 1 + 1e-9, np.float32(2), np.bool_(True), 1j),
    "timeout": (NAN, 0, -1, INF, None, "2", 1e9, False),
    "window": (0, -1, 1.5, NAN, 4097, True, None, "16", np.float64(3)),
    "threads": (0, -4, 1.0, 1000, 10**400, None),
    "insecure": ("no", 0, None),
    "coalesce": (NAN, -0.001, 60.5, INF, None, True),
    "coalesce_frames": (0, 5000, 2.5),
    "breaker": (0, -1, NAN, 1e3),
    "byte_budget": (0, -5, NAN, INF, "2kB/s", True),
    "target_latency": (0, NAN, -1, 3601, "fast"),
    "accuracy_floor": (NAN, 85, -0.1),
    "threshold_floor": (NAN, 2, -1),
    "threshold_ceiling": (NAN, 2, -1),
    "spool": (5, b"spool", "", object()),
    "spool_bytes": (0, -1, 1e9, NAN, 1 << 50),
    "picture_threshold": (NAN, 2, -1),
    "picture_quality": (-1, 101, 20.0, None),
    "server": (50051, [], [1], None, b"a:1", "nonsense", ["a:1", None]),
    "on_correction": (5, "print"),
    "bundle": ("models/x", None, Path("models")),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in WRONG.items() for value in values],
    ids=lambda value: repr(value)[:20],
)
def test_a_wrong_argument_is_refused_by_its_name(toy_bundle: Bundle, name: str, value: object) -> None:
    before = threading.active_count()
    given: dict[str, Any] = {"bundle": toy_bundle, "server": "127.0.0.1:1", name: value}
    with pytest.raises(ConfigError) as error:
        Device(given.pop("bundle"), **given)
    assert name in str(error.value) and "expected" in str(error.value) and "\n" not in str(error.value)
    assert threading.active_count() == before


def test_what_is_in_range_is_taken_whatever_kind_of_number_it_is(toy_bundle: Bundle) -> None:
    thresholds: list[Any] = [0, 1, 0.5, np.float32(0.5), np.float64(1), np.int64(0), None]
    for threshold in thresholds:
        given: dict[str, Any] = {"threshold": threshold, "window": np.int64(4), "timeout": 1}
        with Device(toy_bundle, server=("127.0.0.1:1",), **given) as device:
            assert 0 <= device.threshold <= 1


def test_the_range_is_that_of_the_flag_in_the_arguments_unit() -> None:
    check_argument(DeviceSettings, "target_latency", 3600, per_unit=1000)
    with pytest.raises(ConfigError, match=r"target_latency=3601: expected a number, more than 0 … 3600$"):
        check_argument(DeviceSettings, "target_latency", 3601, per_unit=1000)
    with pytest.raises(ConfigError, match=r"window=4097: expected a whole number, 1 … 4096$"):
        check_argument(DeviceSettings, "window", 4097)


@pytest.mark.parametrize(
    "given", [{"index": -1}, {"index": 1 << 63}, {"index": 1.5}, {"name": b"x"}, {"name": 3}]
)
def test_an_image_that_no_row_could_hold_is_refused(
    toy_bundle: Bundle, tmp_path: Path, given: dict[str, Any]
) -> None:
    with Device(toy_bundle, server="127.0.0.1:1", threshold=1, spool=SpoolOptions(tmp_path / "spool")) as device:
        with pytest.raises(ConfigError, match=r"(index|name)=.*expected"):
            device.submit(toy.images(1)[0], **given)
        assert device.infer(toy.images(1)[0]).source == "fallback"


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
        device = Device(toy_bundle, server=f"127.0.0.1:{port}", threshold=1, spool=SpoolOptions(tmp_path / "spool"))

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
from offramp.device import Device
from tests import toy
from tests.device.test_api_misuse import USES

bundle = load_bundle(sys.argv[1])
device = Device(bundle, server=sys.argv[2], threshold=float(sys.argv[5]), timeout=60, spool=sys.argv[3])
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
from offramp.device import Device
from tests import toy

device = Device(load_bundle(sys.argv[1]), server="127.0.0.1:1", threshold=1, spool=sys.argv[2])
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
