from pathlib import Path

import pytest
from torch import Tensor

from offramp.training.data.datasets import Dataset
from offramp.training.loop import train
from offramp.training.models.backbone import Backbone
from offramp.training.models.layers import Flow
from offramp.training.recipe import Recipe


def test_the_first_epochs_of_base_see_smaller_images(
    recipe: Recipe, few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []
    whole = Backbone.finish

    def finish(self: Backbone, flow: Flow, start: int) -> Tensor:
        seen.append((self.training, flow.x.shape[-1]))
        return whole(self, flow, start)

    monkeypatch.setattr(Backbone, "finish", finish)
    base = recipe.train.base.model_copy(update={"sides": [16]})
    smaller = recipe.model_copy(update={"train": recipe.train.model_copy(update={"base": base})})
    whole_side = few.train.images.shape[-1]
    train(smaller, few, tmp_path)
    steps = len(few.train) // recipe.train.batch_size
    trained = [side for training, side in seen if training]
    assert trained[: 2 * steps] == [16] * steps + [whole_side] * steps
    assert smaller.stage_sha256("exit") != recipe.stage_sha256("exit")
