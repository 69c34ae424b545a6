"""No answer depends on stderr, and nobody who reads stdout is needed to end a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offramp.common.bundle.load import Bundle
from tests.processes import Processes, until


def command(bundle: Bundle, *arguments: object) -> list[str]:
    program = [sys.executable, "-m", "offramp.device.app", "--bundle", str(bundle.path), "--threshold", "0"]
    return [*program, *map(str, arguments)]


@pytest.mark.parametrize("broken", ["full", "dead", "stuck"])
def test_a_stderr_that_takes_nothing_costs_no_answer(
    toy_bundle: Bundle, toy_images: Path, tmp_path: Path, broken: str
) -> None:
    """A full log disk, a log pipe whose reader is gone, one whose reader does not read."""
    for number in range(50):
        (tmp_path / f"{number:02}.png").write_bytes(b"no picture")
    reading, writing = os.pipe()
    if broken == "dead":
        os.close(reading)
    elif broken == "stuck":
        os.set_blocking(writing, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(writing, bytes(4096))
        os.set_blocking(writing, True)
    elif not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    stderr = os.open("/dev/full", os.O_WRONLY) if broken == "full" else writing
    done = subprocess.run(
        command(toy_bundle, "--json", tmp_path, toy_images),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        check=False,
        timeout=60,
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 5
    assert (records[-1]["summary"]["images"], records[-1]["summary"]["unreadable"]) == (40, 50)
    assert len(records) == 91


@pytest.mark.parametrize("flags", [["--repeat"], []], ids=["repeat", "once"])
def test_a_signal_ends_a_run_whose_stdout_nobody_reads(
    run: Processes, toy_npz: Path, toy_images: Path, flags: list[str]
) -> None:
    reading, writing = os.pipe()
    device = run.start_device(
        *("--threshold", 0, "--json", "--metrics-port", 0, *flags, *[toy_npz, toy_images] * 12),
        stdout=writing,
    )
    os.close(writing)
    device.wait_for("metrics on")
    until(lambda: _is_full(reading), "a pipe that takes no more")
    device.send(signal.SIGTERM)
    status = device.process.wait(30)
    os.close(reading)
    assert status == 130


def test_what_waits_for_a_reader_of_stdout_is_bounded(toy_bundle: Bundle, toy_images: Path) -> None:
    """Images are not read on and on while nobody takes their answers."""
    code = (
        "import sys; from offramp.device import app, printer; printer.PENDING = 300;"
        "from offramp.device.sources import source; read = source.Source._read; count = [0];\n"
        "def counted(*arguments):\n"
        "    count[0] += 1\n"
        "    print(count[0], file=sys.stderr)\n"
        "    yield from read(*arguments)\n"
        "source.Source._read = counted; sys.exit(app.main(sys.argv[1:]))"
    )
    reading, writing = os.pipe()
    arguments = command(toy_bundle, "--json", "--repeat", toy_images)[3:]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert process.stderr is not None
    try:
        first = [int(process.stderr.readline()) for _ in range(300)]
        assert first[-1] == 300
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=30)
    finally:
        process.kill()
        os.close(reading)
    # A pipe holds some 300 records.
    assert process.returncode == 130
    assert max(map(int, (line for line in rest.splitlines() if line.isdigit())), default=300) < 2000


def _is_full(pipe: int) -> bool:
    """Whether nothing was added for a second. How much a pipe takes differs from system to system."""
    held = _held(pipe)
    for _ in range(10):
        time.sleep(0.1)
        if _held(pipe) != held:
            return False
    return held > 1000


def _held(pipe: int) -> int:
    """Bytes that wait in a pipe."""
    import array
    import fcntl
    import termios

    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]
