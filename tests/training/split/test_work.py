"""Stages that are kept, what no longer fits and why, and how many steps there is time for."""

from pathlib import Path

import pytest
import torch

from offramp.common.errors import ConfigError
from offramp.training.split.work import Clock, Pace, Stage


def test_a_stage_keeps_its_files_while_its_settings_stay(tmp_path: Path) -> None:
    lines: list[str] = []
    first = Stage(tmp_path / "code", {"cut": "a", "seed": 1}, lines.append)
    assert first.load("code.pt") is None
    first.save("code.pt", {"step": 3})
    again = Stage(tmp_path / "code", {"cut": "a", "seed": 1}, lines.append)
    assert again.load("code.pt") == {"step": 3} and again.digest == first.digest and not lines
    other = Stage(tmp_path / "code", {"cut": "b", "seed": 1}, lines.append)
    assert other.load("code.pt") is None and other.digest != first.digest
    assert lines == ['code: kept from a run with cut "a", now "b"; begins again']


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "code", {}, print)
    (tmp_path / "code" / "code.pt").write_bytes(b"PK nothing")
    with pytest.raises(ConfigError, match=r"code\.pt: a damaged checkpoint .*remove it to begin again"):
        stage.load("code.pt")


def test_a_checkpoint_of_another_code_is_one_clear_error(tmp_path: Path) -> None:
    """As an older release wrote it under the same settings."""
    stage = Stage(tmp_path / "code", {}, print)
    stage.save("code.pt", {"weight": torch.zeros(3)})
    wanted = r"code\.pt: a checkpoint that does not fit.*remove it to begin again"
    kept: dict[str, torch.Tensor] = stage.load("code.pt") or {}
    with pytest.raises(ConfigError, match=wanted) as seen, stage.restoring("code.pt"):
        torch.nn.Linear(2, 2).load_state_dict(kept)
    assert "\n" not in str(seen.value)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("")
    with pytest.raises(ConfigError, match="expected a folder to write to"):
        Stage(tmp_path / "work" / "code", {}, print)


def test_a_clock_ends_shares_of_its_time() -> None:
    now = [10.0]
    clock = Clock(100, lambda: now[0])
    now[0] = 40.0
    assert (clock.spent, clock.left(0.5), clock.left(0.2), clock.left()) == (30, 20, 0, 70)
    assert Clock(None).left(0.1) == float("inf")


def test_a_pace_that_runs_late_still_ends_its_schedule() -> None:
    pace = Pace(None, 1000)
    pace.plan(1.0, 100.0)
    assert pace.steps == 100
    for _ in range(50):
        pace.advance()
    assert pace.progress == pytest.approx(0.5)
    pace.plan(5.0, 50.0)
    assert pace.steps == 60
    other = Pace(None, 1000)
    other.restore(pace.state())
    while not other.done:
        other.advance()
    assert (other.step, other.progress) == (60, 1.0)


def test_fixed_steps_stay() -> None:
    pace = Pace(7, 1000)
    pace.plan(1.0, 2.0)
    pace.restore({"step": 3, "progress": 0.4, "steps": 99})
    assert (pace.step, pace.steps) == (3, 7)
    assert Pace(0, 10).done
