"""Every command prints into a pipe that may close, or onto a disk that may be full."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from offramp.cli.demo import Row, offramp_row, print_saving
from offramp.common.bundle import Bundle
from offramp.common.errors import DataError

OFFRAMP = [sys.executable, "-m", "offramp.cli.app"]


@pytest.mark.parametrize("kind", ["dead pipe", "full disk"])
@pytest.mark.parametrize("flags", [["inspect", "--json"], ["inspect"], ["--help"], ["train", "--help"]])
def test_a_stdout_that_takes_no_more_is_one_error(toy_bundle: Bundle, kind: str, flags: list[str]) -> None:
    if kind == "full disk" and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    reading, writing = os.pipe()
    os.close(reading)
    stdout = os.open("/dev/full", os.O_WRONLY) if kind == "full disk" else writing
    bundle = [] if "--help" in flags else [str(toy_bundle.path)]
    done = subprocess.run(
        [*OFFRAMP, *flags, *bundle], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
    )
    reason = "Broken pipe" if kind == "dead pipe" else "No space left on device"
    (line,) = done.stderr.splitlines()
    assert line.startswith("offramp") and line.endswith(f": stdout: {reason}; stopped")
    assert done.returncode == 130 or "--help" in flags


def test_a_closed_stdout_is_no_bug(toy_bundle: Bundle) -> None:
    command = ["sh", "-c", '"$@" >&-', "sh", *OFFRAMP, "inspect", str(toy_bundle.path)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_baseline_that_sends_nothing_divides_nothing() -> None:
    """At T_c = 0 every image exits early."""
    said: list[str] = []
    chosen = Row("T_c = 0", 0.9, 1.0, 0.0, None)
    print_saving(said.append, [chosen], [Row("WebP quality 20, T_c = 0", 0.9, 1.0, 0.0, None)], 0.0)
    assert "as WebP quality 20, T_c = 0 sends nothing, 0.0 B more (90.00%)" in said[-1]


def test_a_run_without_images_has_no_accuracy() -> None:
    with pytest.raises(DataError, match="no pictures"):
        offramp_row([], {}, {"a.png": "cat"})
    with pytest.raises(DataError, match="b.png: is not in labels.csv"):
        offramp_row([{"image": "x/b.png", "label": "cat"}], {}, {"a.png": "cat"})
