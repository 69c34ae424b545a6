"""A short run of the replies' fuzz. The long one: ``python -m tests.fuzz.reply SECONDS``."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fuzz.reply import build, fuzz


def test_nothing_is_found_in_a_second(tmp_path: Path) -> None:
    if shutil.which("clang") is None:
        pytest.skip("clang, which has libFuzzer, is not installed")
    try:
        program = build(tmp_path)
    except subprocess.CalledProcessError:
        probe = tmp_path / "probe.c"
        probe.write_text("int LLVMFuzzerTestOneInput(const char *d, long n) { return d == 0 && n; }\n")
        linked = subprocess.run(["clang", "-fsanitize=fuzzer", "-o", tmp_path / "probe", probe], check=False)
        if linked.returncode:
            pytest.skip("this clang has no libFuzzer (Debian: libclang-rt-14-dev)")
        raise
    assert fuzz(program, 1) == 0
