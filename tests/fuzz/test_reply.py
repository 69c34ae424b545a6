"""A short run of the replies' fuzz. The long one: ``python -m tests.fuzz.reply SECONDS``."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.libfuzzer import require_libfuzzer
from tests.fuzz.reply import build, fuzz


def test_nothing_is_found_in_a_second(tmp_path: Path) -> None:
    require_libfuzzer(tmp_path)
    program = build(tmp_path)
    assert fuzz(program, 1) == 0
