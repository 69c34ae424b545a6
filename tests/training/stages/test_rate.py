from pathlib import Path

import pytest
import torch

from offramp.training.data.datasets import Dataset
from offramp.training.loop import train
from offramp.training.models.bottleneck import (
    Bottleneck,
    BottleneckShape,
)
from offramp.training.models.networks import BACKBONES
from offramp.training.models.split_model import Outputs, SplitModel
from offramp.training.recipe import Recipe
from offramp.training.stages.rate import RateTask, price
from tests.training.coded import CODE, with_code

RESTART = """
[train.restart]
epochs = 2
learning_rate = 0.01
rate = 1.0
distill = 0.5
cutmix = 0.5
"""


def narrowed(text: str, rate: float, density: str = "channel") -> Recipe:
    return with_code(text, f'density = "{density}"\n', rate=rate)


def stages(recipe: Recipe, data: Dataset, checkpoints: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Each stage's best model, by stage and the parameter's name."""
    train(recipe, data, checkpoints)
    return {
        path.name.split("-")[0]: {
            name.removeprefix("model."): value
            for name, value in torch.load(path, weights_only=True)["best"].items()
        }
        for path in checkpoints.glob("*.pt")
    }


@pytest.mark.parametrize("density", ["channel", "context"])
def test_a_higher_rate_sends_fewer_bits(
    recipe_text: str, small: Dataset, tmp_path: Path, density: str
) -> None:
    # A context has many weights to learn before it is worth anything.
    epochs = {"channel": 1, "context": 3}[density]
    at = recipe_text.index("[train.regularised]")
    text = recipe_text[:at] + recipe_text[at:].replace("epochs = 1", f"epochs = {epochs}")
    bits = {}
    for rate in (0.0, 300.0):
        trained = train(narrowed(text, rate, density), small, tmp_path, resume=True)
        last = trained.epochs[-1].figures
        bits[rate] = last["entropy_bits"]
        assert trained.model.bottleneck is not None
        done = ["base", "base", "exit", *["regularised"] * epochs]
        assert [epoch.stage for epoch in trained.epochs] == done
    assert 0 < bits[300.0] < 0.9 * bits[0.0]
    # Base and exit are the same for both, so their checkpoints are shared.
    assert len(list(tmp_path.glob("*.pt"))) == 4


@pytest.mark.parametrize(("head", "tail"), [(0.0, 0.5), (0.5, 0.5), (0.0, 0.0)])
def test_only_what_has_a_share_of_the_learning_rate_learns(
    recipe_text: str, small: Dataset, tmp_path: Path, head: float, tail: float
) -> None:
    text = recipe_text + "[train.code]\nepochs = 1\nlearning_rate = 0.002\n"
    text = text.replace("entropy = 1.0", f"entropy = 1.0\nhead = {head}\ntail = {tail}")
    found = stages(narrowed(text, 1.0), small, tmp_path)

    def moved(before: str, after: str, *names: str) -> bool:
        shared = [name for name in found[before] if name.startswith(names)]
        assert shared
        return any(not torch.equal(found[before][name], found[after][name]) for name in shared)

    # Of the tiny backbone, exit 5: blocks 0 … 5 are on the device.
    device, server = ("backbone.blocks.0.", "backbone.blocks.5."), ("backbone.blocks.6.", "backbone.top.")
    assert not moved("exit", "code", *device, *server)
    assert moved("code", "regularised", *device) == (head > 0)
    assert moved("code", "regularised", *server) == (tail > 0)
    assert moved("code", "regularised", "bottleneck.encoder.", "bottleneck.density.", "branch.")


def test_an_early_exit_before_the_encoder_learns_with_the_head(
    recipe_text: str, small: Dataset, tmp_path: Path
) -> None:
    recipe = Recipe.parse(
        recipe_text.replace("entropy = 1.0", "head = 0.0").replace("exit = 3", "exit = 5")
        + CODE
        + "exit_behind = false\n"
    )
    found = stages(recipe, small, tmp_path)
    for name in ("branch.linear.weight", "branch.linear.bias"):
        assert torch.equal(found["exit"][name], found["regularised"][name])


@pytest.mark.parametrize("exit", ["early", "final"])
def test_each_exit_learns_from_the_unsplit_model_by_its_own_share(exit: str, recipe_text: str) -> None:
    """An exit that has all of its loss from a teacher with the same answers has none."""
    own = "distill_early" if exit == "early" else "distill"
    text = recipe_text.replace("entropy = 1.0", f"rate = 1.0\n{own} = 1.0").replace("exit = 3", "exit = 5")
    recipe = Recipe.parse(text + CODE)
    torch.manual_seed(0)
    teacher = BACKBONES["tiny"](10, 32)
    model = SplitModel(teacher, 5)
    model.insert(Bottleneck(model.exit_shape, BottleneckShape(4, 2, 16)), exit_behind=True)
    task = RateTask(model, recipe.train.rho, recipe.train.regularised, teacher)
    labels = torch.arange(4)
    taught, other = torch.randn(2, 4, 10)
    cross = torch.nn.functional.cross_entropy(other, labels)
    answers = (taught, other) if exit == "early" else (other, taught)
    early, final = recipe.train.rho or [0.5, 0.5]
    wanted = cross * (final if exit == "early" else early)
    torch.testing.assert_close(task.answers(Outputs(*answers, other), labels, taught), wanted)


def test_the_price_of_the_code_is_that_of_the_last_joint_stage(recipe_text: str) -> None:
    plain, again = with_code(recipe_text), with_code(recipe_text, RESTART.replace("rate = 1.0", "rate = 7.0"))
    assert (price(plain.train.stages), price(again.train.stages)) == (1.0, 7.0)
