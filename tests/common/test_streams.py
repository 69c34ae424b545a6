"""Whoever reads a program's output may leave, and a disk may be full: one line, and a status that says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from offramp.common.errors import ExitCode

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "models" / "digits-mobilenetv2-exit12"
IMAGES = ROOT / "examples" / "digits" / "000.png"
OFFRAMP = f"{sys.executable} -m offramp.cli.app"
EDGE_DEVICE = f"{sys.executable} -m offramp.device.app"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "command",
    [
        f"{OFFRAMP} inspect {BUNDLE} --json",
        f"{OFFRAMP} inspect {BUNDLE}",
        f"{OFFRAMP} --help",
        f"{EDGE_DEVICE} --help",
        f"{EDGE_DEVICE} --bundle {BUNDLE} --threshold 0 {IMAGES}",
    ],
)
def test_a_reader_that_is_gone_ends_a_program(command: str) -> None:
    # It is gone before anything is printed: no race.
    found = shell(f"{{ sleep 1; {command}; echo $? >&2; }} | :")
    *lines, status = found.stderr.splitlines()
    program = "edge-device" if EDGE_DEVICE in command else "offramp"
    assert lines == [f"{program}: stdout: Broken pipe; stopped"]
    assert int(status) == ExitCode.INTERRUPTED


@pytest.mark.parametrize(
    ("program", "command"),
    [("offramp", f"{OFFRAMP} inspect {BUNDLE}"), ("edge-device", f"{EDGE_DEVICE} --help")],
)
def test_a_full_disk_behind_stdout_is_said(program: str, command: str) -> None:
    found = shell(f"{command} > /dev/full")
    assert found.stderr == f"{program}: stdout: No space left on device; stopped\n"
    assert found.returncode == ExitCode.INTERRUPTED


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-"])
def test_results_do_not_depend_on_stderr(stderr: str) -> None:
    found = shell(f"{OFFRAMP} inspect {BUNDLE} {stderr}")
    assert found.returncode == 0 and "digits" in found.stdout
    assert shell(f"{OFFRAMP} inspect {BUNDLE}/none {stderr}").returncode == ExitCode.BUNDLE


def test_closed_streams_are_no_traceback() -> None:
    found = shell(f"{OFFRAMP} inspect {BUNDLE} >&-")
    assert (found.returncode, found.stderr) == (0, "")
