"""``import offramp``: names that load what they need when they are used."""

import subprocess
import sys
from pathlib import Path

import pytest

import offramp
from offramp.device.device import Device

ROOT = Path(__file__).parents[1]


def test_its_names_are_there() -> None:
    assert offramp.Device is Device
    assert set(offramp.__all__) == {"Device", "Pair", "Progress", "load_bundle", "split"}
    with pytest.raises(AttributeError, match="no attribute 'spilt'"):
        offramp.spilt  # noqa: B018


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import offramp", {"numpy", "grpc", "onnxruntime", "torch", "pydantic"}),
        ("from offramp import Device, load_bundle", {"torch", "onnx", "scipy", "sklearn"}),
    ],
)
def test_a_device_needs_no_torch(code: str, absent: set[str]) -> None:
    shown = f"{code}; import sys; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", shown], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert absent.isdisjoint(run.stdout.split())
