"""Ways over links: flags, and one short run over a real shaped link."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ExitCode
from research.links import link, steering
from tests.bench.conftest import namespaces


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for main in (link.main, steering.main):
        assert main([]) == ExitCode.CONFIG
        assert "root" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--links", "50"], ["--links", "x/y"], ["--thresholds", "2"], ["--sent", "0"]]
)
def test_flags_out_of_range_are_named(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert link.main(flags) == ExitCode.CONFIG
    assert flags[0] in capsys.readouterr().err


@namespaces
def test_a_short_run(
    toy_bundle: Bundle, labelled_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--bundle", str(toy_bundle.path), "--images", str(labelled_images)]
    command += ["--links", "1000/20", "--sent", "3", "--json", "--out", str(tmp_path)]

    assert link.main(command) == ExitCode.OK

    result = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "link.json").read_text()) == result
    for name in ("link-latency", "link-bytes"):
        assert all((tmp_path / f"{name}.{kind}").stat().st_size for kind in ("png", "svg"))
    rows = {row["way"]: row for row in result["rows"]}
    assert all(row["answers_that_differ"] == 0 for row in rows.values())
    raw = rows["raw INT8 activation"]
    assert raw["payload_bytes_mean"] == toy_bundle.codec.raw_bytes
    # Each way has its four segments at least, of 66 bytes of headers.
    assert raw["interface_bytes_mean"] > raw["payload_bytes_mean"] + 4 * 66
    assert raw["latency_ms_sent"]["p50"] >= 20
    everything = rows["Offramp, T_c = 1"]
    assert everything["offload_share"] == 1 and everything["runs_sent"] == 3
    for way in ("early exit alone", "whole model on the device"):
        assert rows[way]["interface_bytes_mean"] == 0 and rows[way]["runs_sent"] == 0
    assert any(name.startswith("WebP ") for name in rows)
    assert any(name.startswith("early exit + WebP ") for name in rows)
