"""Chains of `offramp split` in a plan: what each hop adds, by hand; and which of them a profile can run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.bench import plan
from offramp.bench.messages import framed_bytes
from offramp.bench.plan_chains import read_curves
from offramp.bench.plan_curves import Between, SplitCurve
from offramp.common.errors import DataError
from offramp.training.profile import Gateway, Profile
from tests.toy import write as write_toy

PROFILE = Profile(
    macs_per_second=1e6,
    memory_bytes=1e9,
    link_bits_per_second=8000,
    round_trip_seconds=0.25,
    server_seconds=0.05,
    gateways=(
        Gateway(macs_per_second=1e8, queue_seconds=0.002, link_bits_per_second=8e6, round_trip_seconds=0.02),
    ),
)


def curve(*between: Between) -> SplitCurve:
    exits = np.array([0.5])
    return SplitCurve(
        "a", 1, True, 10_000, 10, 20, np.array([0.7]), np.array([0.9]), exits, 50 * (1 - exits), 50, between
    )


def test_each_hop_adds_what_reaches_it() -> None:
    between = Between(1_000_000, np.array([0.2]), np.array([0.2 * 40]), 40)
    (found,) = plan.choices([curve(between)], PROFILE)
    radio = 0.5 * (0.25 + 50 * 8 / 8000)
    gateway = 0.5 * (0.002 + 0.01)
    wire = 0.2 * (0.02 + 40 * 8 / 8e6 + 0.05)
    assert found.latency_seconds == pytest.approx(0.01 + radio + gateway + wire)
    assert found.message_bytes == 25 and found.later_bytes == 8
    # Two more parts are more than there are machines.
    assert plan.choices([curve(between, between)], PROFILE) == []


def test_what_a_pair_sends_passes_the_gateways() -> None:
    (found,) = plan.choices([curve()], PROFILE)
    both = 0.25 + 50 * 8 / 8000 + 0.02 + 50 * 8 / 8e6
    assert found.latency_seconds == pytest.approx(0.01 + 0.5 * (both + 0.05))


def report(**changed: Any) -> dict[str, Any]:
    parts = [{"macs": m, "payload_bytes_mean": b} for m, b in ((10_000, 60.0), (20_000, 30.0), (50_000, 0.0))]
    points = [
        {"thresholds": t, "accuracy": 0.8, "answered": [0.5, 0.3, 0.2], "sent_bytes_mean": [30.0, 6.0]}
        for t in ([0.5, 0.6], [0.7, 0.8])
    ]
    device = {"macs": 10_000, "peak_bytes": 500}
    return {"bundle": "three", "device": device, "parts": parts, "points": points} | changed


def write(folder: Path, **changed: Any) -> Path:
    write_toy(folder / "three")
    (folder / "three" / "report.json").write_text(json.dumps(report(**changed)))
    return folder


def test_a_report_becomes_a_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = read_curves(write(tmp_path))
    assert found.name == "three, 3 parts" and found.rest_of_thresholds == ((0.6,), (0.8,))
    assert found.message_bytes.tolist() == [30 + 0.5 * (framed_bytes(60) - 60)] * 2
    (between,) = found.between
    assert between.sent == pytest.approx([0.2, 0.2]) and between.macs == 20_000
    profile = tmp_path / "p.toml"
    profile.write_text("[[gateways]]\nmacs_per_second = 1e9\n")
    assert plan.main(["--runs", str(tmp_path), "--profile", str(profile)]) == 0
    assert "| B on later hops |" in (shown := capsys.readouterr().out) and "0.50 0.60" in shown
    assert plan.main(["--runs", str(tmp_path)]) == 5
    assert "expected a table [[gateways]] in the profile" in capsys.readouterr().err


def test_a_pair_is_read_from_its_manifest_and_damage_is_one_line(tmp_path: Path) -> None:
    (found,) = read_curves(write(tmp_path, parts=[], points=[]))
    assert found.between == () and found.name == "three" and found.accuracy.tolist() == [0.7]
    (tmp_path / "three" / "report.json").write_text("{")
    with pytest.raises(DataError, match=r"three/report\.json: "):
        read_curves(tmp_path)
    (tmp_path / "three" / "report.json").write_text(json.dumps(report(points=[])))
    with pytest.raises(DataError, match="points: is empty; expected what"):
        read_curves(tmp_path)
