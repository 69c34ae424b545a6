from pathlib import Path

import pytest
import torch

from offramp.common.errors import ConfigError
from offramp.training.data.datasets import Dataset
from offramp.training.loop import train
from offramp.training.recipe import Recipe
from tests.kill import before_the_checkpoint, killed_and_resumed
from tests.training.coded import CODE, with_code


def narrowed(text: str, rate: float, density: str = "channel") -> Recipe:
    return with_code(text, f'density = "{density}"\n', rate=rate)


def test_what_does_not_fit_is_known_before_training(recipe_text: str, small: Dataset, tmp_path: Path) -> None:
    recipe = Recipe.parse(recipe_text.replace("entropy = 1.0", "rate = 1.0") + CODE)
    with pytest.raises(ConfigError, match="exit 3 is inside a residual block"):
        train(recipe, small, tmp_path)
    assert not list(tmp_path.glob("*.pt"))


def test_an_early_exit_that_does_not_fit_behind_the_encoder(
    recipe_text: str, small: Dataset, tmp_path: Path
) -> None:
    text = CODE.replace("stride = 2", "stride = 8")
    recipe = Recipe.parse(
        recipe_text.replace("entropy = 1.0", "rate = 1.0").replace("exit = 3", "exit = 7") + text
    )
    with pytest.raises(ConfigError, match="no early exit fits a 1x1 activation"):
        train(recipe, small, tmp_path)
    assert not list(tmp_path.glob("*.pt"))


def test_the_code_alone_learns_to_hand_on_the_activation(
    recipe_text: str, small: Dataset, tmp_path: Path
) -> None:
    text = recipe_text + "[train.code]\nepochs = 12\nlearning_rate = 0.005\n"
    trained = train(narrowed(text, 1.0), small, tmp_path)
    figures = {epoch.number: epoch.figures for epoch in trained.epochs if epoch.stage == "code"}
    assert figures[12]["error"] < 0.7 * figures[1]["error"]
    assert figures[12]["error"] < 0.5


def test_what_has_to_come_out_right_lies_behind_the_split(
    recipe_text: str, few: Dataset, tmp_path: Path
) -> None:
    text = recipe_text + "[train.code]\nepochs = 1\nlearning_rate = 0.005\nat = {at}\n"
    errors = {}
    for at in (5, 7):
        trained = train(narrowed(text.format(at=at), 1.0), few, tmp_path / str(at))
        (errors[at],) = [epoch.figures["error"] for epoch in trained.epochs if epoch.stage == "code"]
    assert errors[5] != errors[7]
    for at in (4, 8):
        with pytest.raises(ConfigError, match=rf"train\.code\.at: expected 5 \(the exit\) … 7, got {at}"):
            train(narrowed(text.format(at=at), 1.0), few, tmp_path / "none")


@pytest.mark.parametrize("killed", ["exit", "code"])
def test_a_killed_and_resumed_run_ends_with_the_same_bits(
    recipe_text: str, few: Dataset, tmp_path: Path, killed: str
) -> None:
    text = recipe_text + "[train.code]\nepochs = 1\nlearning_rate = 0.002\n"
    recipe = narrowed(text, 1.0)
    whole = train(recipe, few, tmp_path / "whole")

    resumed, _ = killed_and_resumed(recipe, few, tmp_path / "broken", before_the_checkpoint(killed))
    again = train(recipe, few, tmp_path / "broken", resume=True)
    for other in (resumed, again):
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name]), name
