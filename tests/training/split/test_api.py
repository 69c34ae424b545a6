"""Arguments of `offramp.split`; tests/docs/test_notebooks.py has a whole run of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offramp
from offramp.common.errors import ConfigError
from offramp.training.data.datasets import Dataset, Labelled
from offramp.training.split import api
from offramp.training.split.run import Display, Job
from tests.training.split import tiny


class Stopped(Exception):
    """In place of a run."""


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What was to be run, after a line and a step of progress."""
    found: list[Job] = []

    def run(job: Job, display: Display) -> None:
        found.append(job)
        display.say("a line")
        with display.bar("code") as bar:
            bar(1, 2, "loss 3")
        raise Stopped

    monkeypatch.setattr(api, "run", run)
    return found


def test_arguments_become_a_job(jobs: list[Job], tmp_path: Path) -> None:
    lines: list[str] = []
    steps: list[offramp.Progress] = []
    (tmp_path / "device.toml").write_text("flash_bytes = 1000\n")
    module = tiny.build()
    with pytest.raises(Stopped):
        offramp.split(
            module, str(tmp_path), tmp_path / "out", mean=0.5, std=(0.1, 0.2, 0.3), side=32, bytes=12,
            head_memory="500kB", profile=tmp_path / "device.toml", budget=20, flip=False, classes=["a", "b"],
            say=lines.append, progress=steps.append,
        )  # fmt: skip
    (job,) = jobs
    assert (
        job.module is module and job.dataset is None and job.model == "torch.nn.modules.container:Sequential"
    )
    assert (job.data, job.out, job.side, job.bytes) == (tmp_path, tmp_path / "out", 32, 12.0)
    assert (job.mean, job.std, job.head_memory) == ((0.5,) * 3, (0.1, 0.2, 0.3), 500_000)
    assert (job.drop, job.budget, job.minutes, job.flip) == (None, 20.0, 30.0, False)
    assert job.profile is not None and job.profile.flash_bytes == 1000
    assert tuple(job.columns.classes) == ("a", "b")
    assert lines == ["a line"] and steps == [offramp.Progress("code", 1, 2, "loss 3")]


def test_a_data_set_in_memory_and_a_model_by_name(jobs: list[Job], tmp_path: Path) -> None:
    part = Labelled(np.zeros((3, 3, 32, 32), np.uint8), np.arange(3))
    data = Dataset("mine", ("a", "b", "c"), part, part, part, "0" * 64)
    with pytest.raises(Stopped):
        offramp.split("mobilenetv2", data, tmp_path)
    assert jobs[0].dataset is data and jobs[0].module is None
    assert (jobs[0].model, jobs[0].data, jobs[0].drop) == ("mobilenetv2", Path("mine"), 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"side": 4}, "side=4: expected a whole number, 8 … 4096"),
        ({"drop": 0.01}, "drop=0.01: expected points, 0 or 0.1 … 100; 1 is one of 100"),
        ({"drop": 0, "budget": 0}, "drop and budget: expected one of them"),
        ({"mean": (1, 2)}, "mean=(1, 2): expected one or three numbers from 0 to 1"),
        ({"flip": "no"}, "flip='no': expected true or false"),
        ({"out": ""}, "out='': expected a folder"),
        ({"data": "nowhere"}, "data=nowhere: no such folder or file"),
        ({"weights": "w.pth"}, "weights and pretrained: expected neither for a module"),
        ({"profile": "nowhere.toml"}, "cannot read profile nowhere.toml"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": tiny.build(), "data": tmp_path, "out": tmp_path} | arguments
    with pytest.raises(ConfigError) as caught:
        offramp.split(**given)
    assert str(caught.value).startswith(message)
