"""A short run of the fuzz targets. The long ones: ``tests/fuzz/run.sh SECONDS``."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SECONDS = 12


def test_nothing_is_found_in_a_short_run(tmp_path: Path) -> None:
    if shutil.which("clang") is None:
        pytest.skip("clang, which has libFuzzer, is not installed")
    probe = tmp_path / "probe.c"
    probe.write_text("int LLVMFuzzerTestOneInput(const char *d, long n) { return d == 0 && n; }\n")
    linked = subprocess.run(
        ["clang", "-fsanitize=fuzzer,address", "-o", str(tmp_path / "probe"), str(probe)],
        capture_output=True,
        check=False,
    )
    if linked.returncode:
        pytest.skip("this clang has no libFuzzer (Debian: libclang-rt-14-dev)")

    found = subprocess.run(
        [str(HERE / "run.sh"), str(SECONDS), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    assert found.returncode == 0, found.stdout[-4000:]
    runs = [int(count) for count in re.findall(r"stat::number_of_executed_units: (\d+)", found.stdout)]
    assert len(runs) == 4
    assert min(runs) > 0
