"""One process at a time has a spool's file, whatever else that process does with its descriptors."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.processes import WAIT, Processes, Program, scrape, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="locks as Linux has them")

COUNT = "SELECT COUNT(*) FROM activations"

LOOK = f"import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('{COUNT}')"


def count_rows(path: Path) -> int:
    with closing(sqlite3.connect(path, timeout=0)) as database:
        return int(database.execute(COUNT).fetchone()[0])


def start(run: Processes, address: str, spool: Path, *arguments: object) -> tuple[Program, str]:
    """A device that goes on until a signal, and its metrics page."""
    device = run.start_device(
        "--server", address, "--spool", spool, "--threshold", 1, "--repeat", "--rate", 50, "--quiet",
        "--metrics-port", 0, *arguments,
    )  # fmt: skip
    address = device.wait_for(r"metrics on (\S+)")[1]
    return device, f"http://{address}/metrics"


def test_the_lock_holds_while_the_connection_is_counted(
    run: Processes, toy_images: Path, tmp_path: Path
) -> None:
    """The counter looks at all descriptors as soon as a stream is there, and at each scrape."""
    spool, server = tmp_path / "spool", run.server()
    first, page = start(run, server.address, spool, toy_images)
    until(lambda: scrape(page)["offramp_device_connects_total"], "a stream")
    until(lambda: scrape(page)["offramp_device_wire_bytes_total{direction=sent}"] > 1000, "bytes")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        count_rows(spool)
    second, other_page = start(run, server.address, spool, toy_images)
    second.wait_for("database is locked: another process has it open")
    until(lambda: scrape(other_page)["offramp_device_images_total{source=server}"] > 20, "its answers")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        count_rows(spool)
    for device in (first, second):
        device.send(signal.SIGTERM)
        device.wait()
    assert second.errors.count("the spool ") == 1 and "the spool " not in first.errors
    assert count_rows(spool) == 0


def test_looking_beside_a_device_that_is_killed_loses_no_row(
    run: Processes, toy_images: Path, tmp_path: Path
) -> None:
    spool, server = tmp_path / "spool", run.server("--frames-in-flight", 64)
    device, page = start(run, server.address, spool, toy_images)
    until(lambda: scrape(page)["offramp_device_wire_bytes_total{direction=sent}"] > 1000, "bytes")
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: scrape(page)["offramp_device_spooled_total"] > 50, "spooled rows")
    for _ in range(20):
        # Refused while the device has the file: to read it here would fold its log in, under the device.
        subprocess.run(
            [sys.executable, "-c", LOOK, spool],
            stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    values = scrape(page)
    device.process.kill()
    device.wait()
    counted = (
        values["offramp_device_spooled_total"] - values["offramp_device_spool_dropped_total{cause=full}"]
    )
    assert count_rows(spool) >= counted
    with closing(sqlite3.connect(spool)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


HOST = """
import fcntl, sqlite3, subprocess, sys
from offramp.common.bundle.load import load_bundle
from offramp.device import Device, LinkOptions
sys.path.insert(0, sys.argv[4])
from tests import toy

log = open(sys.argv[2], "w")
fcntl.lockf(log, fcntl.LOCK_EX)
own = sqlite3.connect(sys.argv[2] + ".db", isolation_level=None)
own.execute("CREATE TABLE t (x)")
own.execute("BEGIN EXCLUSIVE")
patient = LinkOptions(timeout=60)
with Device(load_bundle(sys.argv[1]), server=sys.argv[3], threshold=1, link=patient) as device:
    assert {device.infer(image).source for image in toy.images(20)} == {"server"}
    assert device.wire_bytes().sent > 1000
    print("ready", flush=True)
    sys.stdin.read()
"""
TAKE = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def test_a_host_applications_own_locks_outlive_a_device(run: Processes, tmp_path: Path) -> None:
    path = tmp_path / "host.log"
    root = Path(__file__).resolve().parents[2]
    host = run.start(
        [sys.executable, "-c", HOST, str(run.bundle), str(path), run.server().address, str(root)],
        stdin=subprocess.PIPE,
    )
    until(lambda: host.stdout or host.process.poll() is not None, "its answers")
    assert host.stdout == ["ready"], host.errors
    taken = subprocess.run(
        [sys.executable, "-c", TAKE, str(path)], capture_output=True, text=True, check=False
    )
    assert "BlockingIOError" in taken.stderr
    with (
        closing(sqlite3.connect(f"{path}.db", timeout=0)) as database,
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        database.execute("SELECT * FROM t").fetchall()
    assert host.process.stdin is not None
    host.process.stdin.close()
    assert host.process.wait(WAIT) == 0
