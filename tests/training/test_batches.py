from pathlib import Path

import pytest

from offramp.training.data.datasets import Dataset
from offramp.training.loop import Trained, train
from offramp.training.recipe import Recipe


def digest(trained: Trained) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in trained.model.state_dict().items()}


def test_a_stage_that_is_done_makes_no_pictures(
    recipe_text: str, few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.parse(recipe_text.replace("entropy = 1.0", "webp = [10]"))
    first = digest(train(recipe, few, tmp_path))

    def never(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr("offramp.training.batches.recompressed", never)
    assert digest(train(recipe, few, tmp_path, resume=True)) == first
