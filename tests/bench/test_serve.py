"""``offramp bench serve``: its arithmetic, its load, and one short run with real processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from offramp.bench.load import Arrivals
from offramp.bench.serve import batch_cost, split_cores, summary
from offramp.cli import app
from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError, ExitCode


def test_server_and_load_share_no_core() -> None:
    assert split_cores({0, 1, 2, 5}, None) == ({0, 1}, {2, 5})
    assert split_cores({3, 7, 8}, 2) == ({3, 7}, {8})
    for cores, wanted in (({0}, None), ({0, 1}, 2), ({0, 1}, 0)):
        with pytest.raises(ConfigError, match="server-cores"):
            split_cores(cores, wanted)


def test_what_a_batch_costs_is_the_slope_over_its_share() -> None:
    engine = {1: 500.0, 4: 400.0, 16: 380.0}
    server = {batch: us + 90.0 + 240.0 / batch for batch, us in engine.items()}

    assert batch_cost(server, engine) == pytest.approx(240.0)
    assert batch_cost({1: 600.0}, {1: 500.0}) == 0


def test_a_summary_leaves_out_what_was_due_before() -> None:
    arrivals = Arrivals(10.0, 12.0, due=[-0.5, 0.5, 11.5], latency=[9.0, 0.1, 0.3])
    arrivals.resident = [(0.0, 100), (6.0, 300), (12.0, 200)]

    found = summary(arrivals)

    assert found["answered"] == 2 and found["latency_ms"]["p50"] == pytest.approx(200)
    assert [row["from_s"] for row in found["latency_ms_by_time"]] == [0, 11]
    assert found["resident_bytes"] == {"start": 100, "end": 200, "max": 300}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="server and load need a core each")
def test_a_short_run(
    toy_bundle: Bundle, toy_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "serve", "--bundle", str(toy_bundle.path), "--images", str(toy_images), "--json"]
    command += ["--streams", "8", "--batches", "1", "8", "--seconds", "0.1", "--out", str(tmp_path)]

    assert app.main(command) == ExitCode.OK

    result = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "serve.json").read_text()) == result
    for name in ("serve-batching", "serve-latency", "serve-memory"):
        assert all((tmp_path / f"{name}.{kind}").stat().st_size for kind in ("png", "svg"))
    assert set(result["engine"]["images_per_second"]) == set(result["batching"]) == {"1", "8"}
    assert not set(result["cores"]["server"]) & set(result["cores"]["load"])
    for row in result["throughput"].values():
        assert row["frames_per_second"] > 0 and row["refused"] == 0
    for row in (result["load"], *result["peak"], *result["overload"].values()):
        assert row["answered"] and row["lost"] == 0 and row["resident_bytes"]["max"] > 1e6
    assert set(result["overload"]) == {"patient", "impatient"}


@pytest.mark.parametrize(
    ("flags", "named"),
    [(["--seconds", "0"], "--seconds"), (["--streams", "0"], "--streams"), (["--batches", "0"], "--batches")],
)
def test_flags_out_of_range_are_named(
    flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["bench", "serve", *flags]) == ExitCode.CONFIG
    assert named in capsys.readouterr().err
