"""What the benchmarks may load: no torch, and nothing of the server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAINS = {"plan"}
"""Modules that read what trainings wrote."""
MODULES = sorted(
    f"offramp.bench.{path.stem}" for path in (ROOT / "bench").glob("*.py") if path.stem not in TRAINS
)
PEERS = {"constriction", "lz4", "matplotlib", "zstandard"}
LOADED = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(list(sys.modules)))
"""


@pytest.mark.parametrize("module", MODULES)
def test_a_module_needs_no_torch_and_no_server(module: str) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOADED, module], capture_output=True, text=True, check=False
    )
    if "No module named" in run.stderr and any(peer in run.stderr for peer in PEERS):
        pytest.skip("needs the peers of offramp[bench]")
    assert run.returncode == 0, run.stderr
    loaded = set(json.loads(run.stdout))

    assert loaded.isdisjoint({"torch", "onnx", "sklearn", "grpc"})
    ours = {name for name in loaded if name.startswith("offramp.")}
    assert not {name for name in ours if name.startswith("offramp.server")}
    sources = {name for name in ours if name.startswith("offramp.device.")}
    assert all(name.startswith("offramp.device.sources") for name in sources)


def test_comparing_a_bundle_s_coders_needs_no_peers() -> None:
    run = subprocess.run(
        [sys.executable, "-c", LOADED, "offramp.bench.codec_compare"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert PEERS.isdisjoint(json.loads(run.stdout))
