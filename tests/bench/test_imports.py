"""What the benchmarks may load: no torch, and nothing of the server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRAINS = {"plan"}
"""Modules that read what trainings wrote."""
MODULES = sorted(
    f"offramp.bench.{path.stem}" for path in (ROOT / "bench").glob("*.py") if path.stem not in TRAINS
)
PEERS = {"constriction", "lz4", "matplotlib", "zstandard"}
LOADED = """
import importlib, json, sys
found = {}
for name in json.loads(sys.argv[1]):
    before = set(sys.modules)
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert error.name in json.loads(sys.argv[2]), error
    found[name] = sorted(set(sys.modules) - before)
print(json.dumps(found))
"""


def loaded(*modules: str) -> dict[str, list[str]]:
    """What each of these adds in one fresh process that imports them in turn, where it has what it needs."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOADED, json.dumps(modules), json.dumps(sorted(PEERS))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, list[str]] = json.loads(run.stdout)
    return found


def test_no_module_needs_torch_or_the_server() -> None:
    for module, new in loaded(*MODULES).items():
        assert {"torch", "onnx", "sklearn", "grpc"}.isdisjoint(new), module
        assert not [name for name in new if name.startswith("offramp.server")], module
        device = [name for name in new if name.startswith("offramp.device.")]
        assert all(name.startswith("offramp.device.sources") for name in device), module


def test_comparing_a_bundle_s_coders_needs_no_peers() -> None:
    assert PEERS.isdisjoint(loaded("offramp.bench.codec_compare")["offramp.bench.codec_compare"])
