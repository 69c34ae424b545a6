"""T_c over a link that changes: its arithmetic, and one short run over a real shaped link."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ExitCode
from research.links.steering import BINS, by_time, main
from tests.bench.conftest import namespaces


def record(at: float, source: str = "early_exit", size: float = 0.0) -> dict[str, Any]:
    return {"at": at, "source": source, "threshold": at / 10, "wire_bytes": size, "latency_seconds": 0.002}


def test_phases_have_the_means_of_their_images() -> None:
    records = [
        record(0.0),
        record(1.0, "server", 100.0),
        record(7.0, "fallback"),
        record(9.0, "server", 50.0),
    ]
    found = by_time(records, [30, 90], 4.0, [1e6, 8e3])

    first, last = found["phases"]
    assert (first["images"], first["server"], first["fallback"]) == (2, 1, 0)
    assert first["threshold"] == pytest.approx(0.05) and first["latency_ms"] == pytest.approx(2.0)
    assert (first["bytes_per_second"], first["interface_bytes_per_second"]) == (50.0, 15.0)
    # What comes after the end belongs to the last phase.
    assert (last["images"], last["server"], last["fallback"]) == (2, 1, 1)
    assert last["link_bit_per_second"] == 8e3 and last["interface_bytes_per_second"] == 45.0
    assert len(found["slices"]) == BINS and sum(row["images"] for row in found["slices"]) == 4
    assert found["slices"][1]["threshold"] is None


@namespaces
def test_a_short_run(
    toy_bundle: Bundle, toy_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--bundle", str(toy_bundle.path), "--images", str(toy_images), "--json"]
    command += ["--seconds", "2", "--rate", "20", "--round-trip", "5", "--out", str(tmp_path)]

    assert main(command) == ExitCode.OK

    result = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "steering.json").read_text()) == result
    for name in ("steering-threshold", "steering-bytes", "steering-latency"):
        assert all((tmp_path / f"{name}.{kind}").stat().st_size for kind in ("png", "svg"))
    for run in result["runs"].values():
        assert sum(row["images"] for row in run["phases"]) == 40
        assert [row["link_bit_per_second"] for row in run["phases"]] == [1e6, 8e3, 1e6, 1e6]
        for row in run["slices"]:
            assert row["threshold"] is None or 0.5 <= row["threshold"] <= 0.9999


def test_flags_out_of_range_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rate", "0"]) == ExitCode.CONFIG
    assert "--rate" in capsys.readouterr().err
