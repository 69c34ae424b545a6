"""``offramp pull``: where it writes, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.cli.app import main
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.errors import ExitCode
from tests.processes import closed_port


def test_from_a_directory(toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, place = f"oci-layout:{tmp_path / 'layout'}:stable", tmp_path / "bundle"
    assert main(["push", str(toy_bundle.path), reference]) == 0
    assert main(["pull", reference, "--out", str(place)]) == 0
    assert toy_bundle.digest.hex() in capsys.readouterr().out.splitlines()[1]
    assert load_bundle(place).digest == toy_bundle.digest
    assert main(["pull", reference, "--out", str(place)]) == ExitCode.CONFIG
    assert "is there already" in capsys.readouterr().err
    assert main(["pull", reference[:-1], "--out", str(tmp_path / "b")]) == ExitCode.BUNDLE
    assert "is not there" in capsys.readouterr().err


def test_nowhere_to_write_is_said_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closed_port() as port:
        reference = f"oci://127.0.0.1:{port}/toy:a"
        assert main(["pull", reference, "--out", str(tmp_path / "no" / "bundle")]) == ExitCode.CONFIG
        assert "is not a directory" in capsys.readouterr().err
        (tmp_path / "link").symlink_to("nowhere")
        assert main(["pull", reference, "--out", str(tmp_path / "link")]) == ExitCode.CONFIG
        assert "is there already" in capsys.readouterr().err
        assert main(["pull", reference, "--out", str(tmp_path / "bundle")]) == ExitCode.UNAVAILABLE
