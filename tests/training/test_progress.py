from pathlib import Path

import pytest

from offramp.training.data.datasets import Dataset
from offramp.training.loop import Trained, train
from offramp.training.progress import Clock, Epoch, OutOfTime, Progress
from offramp.training.recipe import Recipe

SCHEDULE = [("base", 1), ("base", 2), ("exit", 1), ("regularised", 1)]


def digest(trained: Trained) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in trained.model.state_dict().items()}


def test_a_run_stops_at_a_checkpoint_when_its_time_is_over(
    recipe: Recipe, few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("offramp.training.progress.time.monotonic", lambda: now[0])
    epochs: list[Epoch] = []

    def tick(epoch: Epoch) -> None:
        epochs.append(epoch)
        now[0] += 10

    with pytest.raises(OutOfTime):
        train(recipe, few, tmp_path, clock=Clock(15), progress=Progress(epoch=tick))
    # A second epoch would have taken until 20.
    assert len(epochs) == 1
    resumed = train(recipe, few, tmp_path, resume=True, progress=Progress(epoch=epochs.append))
    assert [(epoch.stage, epoch.number) for epoch in epochs] == SCHEDULE
    assert digest(resumed) == digest(train(recipe, few, tmp_path / "whole"))
