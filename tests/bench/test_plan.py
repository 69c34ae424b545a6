"""Choosing a split for a device: costs by hand, the Pareto set, what is modelled, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest

from offramp.bench import plan
from offramp.training.models.mobilenet import mobilenet_v2
from offramp.training.models.split_model import SplitModel
from offramp.training.profile import Profile
from offramp.training.record import RECORD, SHIPPED, Cost, Record, measure_cost
from offramp.training.split.board import Needs
from tests.records import record

PROFILE = Profile(
    macs_per_second=1e9,
    memory_bytes=1e9,
    link_bits_per_second=8000,
    round_trip_seconds=0.25,
    server_seconds=0.05,
    joules_per_mac=1e-11,
    joules_per_byte=1e-4,
)


def real(exit_number: int, **figures: float) -> Record:
    """A made-up run with the true costs of its split."""
    cost = measure_cost(SplitModel(mobilenet_v2(10), exit_number))
    return record(exit_number, **figures).model_copy(update={"cost": cost})  # type: ignore[arg-type]


def test_costs_of_a_split_are_table_iis() -> None:
    cost = measure_cost(SplitModel(mobilenet_v2(10), 5))
    assert round(cost.device_weights * 4 / 1024, 1) == 235.8
    assert round(cost.device_macs / 1e6, 1) == 6.6
    # Block 2's two wide tensors, of 96 channels each.
    assert cost.activations == 2 * 96 * 32 * 32


def test_latency_and_energy_by_hand() -> None:
    run = record(5)
    (curve,) = [plan.measured_curve(run)]
    found = {choice.threshold: choice for choice in plan.choices([curve], PROFILE)}
    # The made-up run has 10 M MACs, an exit rate of 1 - T_c, and half of 24,576 bytes shipped.
    payload = run.bytes[SHIPPED]
    frame = curve.offloaded_bytes - payload
    assert frame == 7
    half = found[0.5]
    assert half.message_bytes == pytest.approx(0.5 * (payload + 7))
    assert half.latency_seconds == pytest.approx(0.01 + 0.5 * (0.25 + (payload + 7) / 1000 + 0.05))
    assert half.energy_joules == pytest.approx(10e6 * 1e-11 + 0.5 * (payload + 7) * 1e-4)
    assert found[0.0].latency_seconds == 0.01


def test_the_set_has_what_no_other_beats() -> None:
    good, worse = record(5, early=0.7, final=0.9), record(12, early=0.6, final=0.8)
    curves = [plan.measured_curve(one) for one in (good, worse)]
    found = plan.pareto_set(plan.choices(curves, PROFILE))
    # Exit 12 has more MACs, the same bytes and less accuracy at each threshold.
    assert {choice.curve.exit_number for choice in found} == {5}
    assert [choice.accuracy for choice in found] == sorted((c.accuracy for c in found), reverse=True)
    assert len(found) == len(good.curve.threshold)


def test_what_does_not_fit_the_memory_is_left_out() -> None:
    curves = [plan.measured_curve(record(number)) for number in (5, 12)]
    small = PROFILE.model_copy(update={"memory_bytes": 500_000})
    assert {choice.curve.exit_number for choice in plan.choices(curves, small)} == {5}


def test_exits_between_measured_ones_are_modelled() -> None:
    runs = [real(5, early=0.6, final=0.9), real(12, early=0.8, final=0.9)]
    found = {curve.exit_number: curve for curve in plan.modelled_curves(runs)}
    assert set(found) == {6, 7, 8, 9, 10, 11}
    assert not any(curve.measured for curve in found.values())
    at_home = [found[n].accuracy[0] for n in sorted(found)]
    assert at_home == sorted(at_home)
    assert 0.6 < at_home[0] < at_home[-1] < 0.8
    exact = measure_cost(SplitModel(mobilenet_v2(10), 8))
    assert (found[8].device_macs, found[8].device_weights) == (exact.device_macs, exact.device_weights)
    assert plan.modelled_curves(runs[:1]) == []


def test_rows_are_spread_over_the_accuracies() -> None:
    found = plan.pareto_set(plan.choices([plan.measured_curve(record(5))], PROFILE))
    few = plan.thinned(found, 3)
    assert (few[0], few[-1]) == (found[0], found[-1])
    assert len(few) == 3
    assert plan.thinned(found, 100) == found


def test_flash_and_time_of_a_profile_count() -> None:
    curve = plan.measured_curve(real(5))
    weights, macs = curve.device_weights, curve.device_macs
    small = {"memory_bytes": curve.memory_bytes - weights}

    def fits(**update: object) -> bool:
        return bool(plan.choices([curve], PROFILE.model_copy(update=update)))

    assert not fits(**small) and fits(**small, flash_bytes=weights) and not fits(flash_bytes=weights - 1)
    assert fits(head_seconds=1.01 * macs / 1e9) and not fits(head_seconds=0.99 * macs / 1e9)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for one in (real(5, early=0.6, final=0.9), real(12, early=0.8, final=0.9)):
        folder = tmp_path / "runs" / one.name
        folder.mkdir(parents=True)
        (folder / RECORD).write_text(one.model_dump_json())
    return tmp_path / "runs"


def test_the_command(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        plan.main(["--runs", str(runs), "--json", "--out", str(tmp_path / "out"), "--accuracy", "0.7"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert {row["basis"] for row in found["rows"]} <= {"measured", "modelled"}
    assert all(row["accuracy"] >= 70 for row in found["rows"])
    assert 2 <= len(found["rows"]) <= 20
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"plan.md", "plan.json", "plan.png", "plan.svg"}
    assert plan.main(["--runs", str(runs), "--measured", "--limit", "5"]) == 0
    assert "modelled |" not in capsys.readouterr().out


def test_heads_that_fit_a_microcontroller(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def needs(bundle: Path) -> Needs | None:
        return Needs(60_000, 150_000) if bundle.name == real(5).name else None

    wanted = ["--runs", str(runs), "--json", "--ram"]
    assert plan.main([*wanted, "60000", "--flash", "256k"], needs) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)["rows"]} == {real(5).name}
    assert plan.main([*wanted, "59999"], needs) == 5
    error = capsys.readouterr().err
    assert "no head fits --ram and --flash: " in error
    assert "needs 60,000 bytes of RAM and 150,000 bytes of flash" in error
    assert f"{real(12).name} is not in C" in error


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--accuracy", "0.99"], 5, "nothing reaches --accuracy 0.99: the best has 0.9000"),
        (["--accuracy", "7"], 2, "--accuracy 7, expected 0 … 1"),
        (["--limit", "1"], 2, "--limit 1, expected 2 or more"),
        (["--set", "memory_bytes=1000"], 5, "nothing fits memory_bytes = 1,000: the smallest head takes"),
        (["--profile", "/nowhere.toml"], 2, "cannot read profile /nowhere.toml"),
    ],
)
def test_errors_are_one_line(
    runs: Path, flags: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan.main(["--runs", str(runs), *flags]) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_costs_are_numbers_that_json_keeps() -> None:
    cost = measure_cost(SplitModel(mobilenet_v2(10), 12))
    assert Cost.model_validate_json(cost.model_dump_json()) == cost
    assert isinstance(np.log(cost.device_macs), float)
