"""Whoever reads a command's output may leave, and a disk may be full: one line, and a status that says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from offramp.common.errors import ExitCode

BUNDLE = Path(__file__).parents[2] / "models" / "digits-mobilenetv2-exit12"
OFFRAMP = f"{sys.executable} -m offramp.cli.app"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", [f"inspect {BUNDLE} --json", f"inspect {BUNDLE}", "--help"])
def test_a_reader_that_is_gone_ends_a_command(command: str) -> None:
    # It is gone before anything is printed: no race.
    found = shell(f"{{ sleep 1; {OFFRAMP} {command}; echo $? >&2; }} | :")
    *lines, status = found.stderr.splitlines()
    assert lines == ["offramp: stdout: Broken pipe; stopped"]
    assert int(status) == ExitCode.INTERRUPTED


def test_a_full_disk_behind_stdout_is_said() -> None:
    found = shell(f"{OFFRAMP} inspect {BUNDLE} > /dev/full")
    assert found.stderr == "offramp: stdout: No space left on device; stopped\n"
    assert found.returncode == ExitCode.INTERRUPTED


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-"])
def test_results_do_not_depend_on_stderr(stderr: str) -> None:
    found = shell(f"{OFFRAMP} inspect {BUNDLE} {stderr}")
    assert found.returncode == 0 and "digits" in found.stdout
    assert shell(f"{OFFRAMP} inspect {BUNDLE}/none {stderr}").returncode == ExitCode.BUNDLE


def test_closed_streams_are_no_traceback() -> None:
    found = shell(f"{OFFRAMP} inspect {BUNDLE} >&-")
    assert (found.returncode, found.stderr) == (0, "")
