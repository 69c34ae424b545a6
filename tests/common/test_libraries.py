"""ONNX Runtime's own telemetry is off: nothing is written to the home folder, and nobody is called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from offramp.common.bundle.load import Bundle
from tests.processes import WAIT, Server

SWITCH = "ORT_DISABLE_TELEMETRY"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder. This process has the switch set already: what it starts must not inherit it."""
    monkeypatch.delenv(SWITCH, raising=False)
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def written(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file()]


def test_a_device_leaves_nothing_behind(toy_bundle: Bundle, toy_images: Path, home: Path) -> None:
    command = [sys.executable, "-m", "offramp.device.app", "--bundle", str(toy_bundle.path), "--quiet"]
    subprocess.run(
        [*command, "--threshold", "0", str(toy_images)], check=True, timeout=WAIT, capture_output=True
    )
    assert written(home) == []


def test_a_server_leaves_nothing_behind(toy_bundle: Bundle, home: Path) -> None:
    server = Server(toy_bundle.path)
    try:
        assert server.drain() == 0
    finally:
        server.end()
    assert written(home) == []


@pytest.mark.parametrize(
    "program",
    [
        "from offramp.device import Device",
        "import offramp.common.part.engine",
        "import offramp.server.app",
        "import offramp.cli.app",
    ],
)
def test_it_is_off_before_onnxruntime_is_imported(program: str, home: Path) -> None:
    code = f"{program}\nimport onnxruntime"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=WAIT)
    assert written(home) == []
