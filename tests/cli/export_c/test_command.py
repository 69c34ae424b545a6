"""``offramp export-c``: its report, its files, and wrong flags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offramp.cli.app import main
from tests.cli.export_c import toy_heads

DIGITS = str(Path(__file__).parents[3] / "models/digits-mobilenetv2-exit12")


def test_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-c", DIGITS]) == 0
    text = capsys.readouterr().out
    assert "MACs    20,005,984" in text
    assert "block3.C2" in text

    assert main(["export-c", DIGITS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [layer["name"] for layer in found["layers"]][:2] == ["stem", "block1.C2"]


def test_the_files_and_a_second_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_heads.write(tmp_path / "bundle")
    arguments = ["export-c", str(tmp_path / "bundle"), "--ram", "64k", "--out", str(tmp_path / "new" / "c")]
    assert main(arguments) == 0
    names = {each.name for each in (tmp_path / "new" / "c").iterdir()}
    assert names >= {"offramp.h", "offramp.c", "offramp_model.c", "rans.c", "Makefile", "size.json"}
    assert not any(name.startswith("context") for name in names)
    assert main(arguments) == 2
    assert "is not empty, expected a new or an empty directory" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "64q", "-1", "k", "1.5k", "99999999m", ""])
def test_a_wrong_size_is_refused(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-c", DIGITS, f"--ram={size}"]) == 2
    assert f"'{size}': expected bytes, as 65536, 64k or 1m" in capsys.readouterr().err
