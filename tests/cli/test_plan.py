"""``offramp plan`` asks the export what a bundle's head needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.cli import plan
from offramp.cli.export_c.program import make_program
from offramp.common.bundle.load import load_bundle
from offramp.training.split.board import Needs

ROOT = Path(__file__).parents[2]


def test_needs_are_those_of_the_export(tmp_path: Path) -> None:
    digits = ROOT / "models/digits-mobilenetv2-exit12"
    program = make_program(load_bundle(digits))
    assert plan.needs(digits) == Needs(program.ram_bytes, program.flash_bytes)
    assert plan.needs(tmp_path) is None


def test_the_command_takes_its_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--runs", str(tmp_path), "--ram", "1q"]) == 2
    assert "--ram: '1q': expected bytes, as 65536, 64k or 1m" in capsys.readouterr().err
