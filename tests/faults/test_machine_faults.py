"""A clock that is set and a disk that is full, under real processes: each image has its one answer."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from offramp.cli.samples import read
from offramp.device.samples.folder import Folder
from offramp.device.samples.record import read_file
from offramp.link.backoff import SAY_SECONDS
from tests.faults.load import FAST, frames_of, load
from tests.processes import WAIT, Processes, closed_port, until

ROOT = Path(__file__).parents[2]
FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
STEPS = ("+400d", "-3000d", "+0", "+9000d", "-1s", "+2s")
"""Of the wall clock."""


@pytest.mark.skipif(FAKETIME is None, reason="needs Debian's package libfaketime")
def test_clocks_that_are_set_change_nothing(run: Processes, toy_images: Path, tmp_path: Path) -> None:
    """The wall clocks of both processes jump by years, back and forth, while frames are under way."""
    offset = tmp_path / "offset"
    offset.write_text("+0")
    environment = {
        **os.environ,
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        # The times of files stay: to fake one is to read the offset's file, and Python looks at thousands.
        "NO_FAKE_STAT": "1",
    }
    server = run.server(*FAST, "--log-format", "json", "--reload-interval", 0.05, env=environment)
    flags = ("--server", server.address, "--timeout", WAIT / 3, "--spool", tmp_path / "spool")
    with load(run, toy_images, *flags, env=environment) as device:
        device.warmed_up()
        for step in STEPS:
            offset.with_name("new").write_text(step)
            os.replace(offset.with_name("new"), offset)
            device.more("server", 15)
        account = device.finish()
    assert not account.fell_back and account.status == 0
    assert account.value("connects_total") == 1 and account.value("reconnects_total") == 0
    assert frames_of(server) == {
        "answered": account.answered,
        "refused": 0,
        "abandoned": 0,
        "total": account.answered,
    }
    assert account.summary["latency_seconds_p99"] < WAIT
    # The clock did jump: the server's last word is of another year than its first.
    offset.write_text(STEPS[3])
    assert server.drain() == 0
    years = [datetime.fromisoformat(json.loads(line)["time"]).year for line in server.stderr]
    assert years[-1] - years[0] > 20


def test_only_what_is_shown_reads_the_wall_clock() -> None:
    """Everything that waits or decides goes by the monotonic clock."""
    found = {
        str(path.relative_to(ROOT))
        for package in ("common", "device", "server")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"\btime\.time(_ns)?\(|\bdatetime\b|\blocaltime\b", path.read_text())
    }
    # The time of a log line, of a spooled row, of a sample and of a signature, for whoever reads them.
    readers = {
        "common/bundle/signature.py",
        "common/logs.py",
        "device/samples/record.py",
        "device/spool/store.py",
    }
    assert found == readers


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Until the disk says that it is full: what was free a moment ago may be the spool's by now."""
    with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError) as full:
        while True:
            filler.write(bytes(4096))
    assert full.value.errno == errno.ENOSPC


def test_a_full_disk_stops_no_answer(run: Processes, toy_images: Path, small_disk: Path) -> None:
    began = time.monotonic()
    with closed_port() as port:
        flags = ("--server", f"127.0.0.1:{port}", "--spool", small_disk / "spool")
        with load(run, toy_images, *flags, keep=small_disk / "kept") as device:
            until(lambda: device.value("spooled_total") > 0, "a spooled activation")
            until(lambda: device.value("samples_entries") > 0, "a sample")
            fill(small_disk)
            until(lambda: device.value("spool_errors_total") > 0, "a full disk")
            until(lambda: device.value("samples_dropped_total{cause=disk}") > 0, "a sample that is lost")
            device.more("fallback", 100)
            account = device.finish()
    assert account.by["fallback"] + account.by["early_exit"] == account.sent and account.status == 3
    kept, lost = account.value("spooled_total"), account.value("spool_dropped_total{cause=busy}")
    assert kept > 0 and lost > 0 and kept + lost == account.by["fallback"]
    # The spool says so once, and the samples.
    assert account.errors.count("fails: ") == 2
    # The link so often as it may, on a machine that is slow.
    assert 1 <= account.errors.count("is unreachable") <= 1 + (time.monotonic() - began) / SAY_SECONDS


def test_a_device_that_dies_leaves_whole_samples(run: Processes, toy_images: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with closed_port() as port:
        device = run.start_device(
            *("--server", f"127.0.0.1:{port}", "--threshold", 0, "--keep", kept, "--keep-share", 1),
            *("--repeat", "--quiet", toy_images),
        )
        until(lambda: kept.is_dir() and len(list(kept.glob("*.json"))) > 5, "samples")
        device.send(signal.SIGKILL)
        device.wait()
    found = read(kept)
    assert len(found.samples) > 5 and not found.unusable
    assert all(read_file(sample, kept) for sample in found.samples)
    # The lock went with the device, and what it left half written goes with the next one's start.
    folder = Folder(kept, 1 << 30)
    folder.open()
    folder.scan()
    folder.close()
    assert folder.entries == len(found.samples) == (len(list(kept.iterdir())) - 1) / 2
