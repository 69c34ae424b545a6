"""Whether what a fuzz target is built with is here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def require_libfuzzer(folder: Path) -> None:
    """Skip the test without clang, or where its libFuzzer is missing; the folder is for a trial."""
    if shutil.which("clang") is None:
        pytest.skip("clang, which has libFuzzer, is not installed")
    probe = folder / "probe.c"
    probe.write_text("int LLVMFuzzerTestOneInput(const char *d, long n) { return d == 0 && n; }\n")
    linked = subprocess.run(
        ["clang", "-fsanitize=fuzzer,address", "-o", str(folder / "probe"), str(probe)],
        capture_output=True,
        check=False,
    )
    if linked.returncode:
        pytest.skip("this clang has no libFuzzer (Debian: libclang-rt-14-dev)")
