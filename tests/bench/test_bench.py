"""``offramp bench``: what it names, and what it says is missing."""

from __future__ import annotations

import pytest

pytest.importorskip("constriction")
pytest.importorskip("lz4")
pytest.importorskip("matplotlib")
pytest.importorskip("zstandard")

from offramp.cli import app
from offramp.common.errors import ExitCode


def test_an_unknown_benchmark_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["bench", "toast"]) == ExitCode.CONFIG
    assert "toast" in capsys.readouterr().err


def test_a_missing_peer_names_its_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError("No module named 'zstandard'", name="zstandard")

    monkeypatch.setattr("offramp.bench.bench.importlib.import_module", missing)

    assert app.main(["bench", "codec"]) == ExitCode.CONFIG
    assert "offramp[device,server,bench]" in capsys.readouterr().err
