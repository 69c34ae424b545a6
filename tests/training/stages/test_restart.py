"""The joint stage once more, and images with parts of others in them, which nobody has labelled."""

from pathlib import Path

import torch

from offramp.training.data.datasets import Dataset
from offramp.training.loop import train
from offramp.training.recipe import Recipe
from tests.kill import ends_as_unbroken, in_the_middle
from tests.training.coded import TAIL, with_code

RESTART = """
[train.restart]
epochs = 2
learning_rate = 0.01
rate = 1.0
distill = 0.5
cutmix = 0.5
"""


def kept(checkpoints: Path, stage: str) -> dict[str, torch.Tensor]:
    (path,) = checkpoints.glob(f"{stage}-*.pt")
    best: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["best"]
    return best


def test_it_goes_on_from_the_best_epoch_of_the_joint_stage(
    recipe_text: str, small: Dataset, begun: Path
) -> None:
    first = train(with_code(recipe_text), small, begun, resume=True)
    # At no learning rate to speak of, all that moves are batch norm's running statistics.
    still = RESTART.replace("epochs = 2", "epochs = 1").replace("0.01", "1e-9")
    last = train(with_code(recipe_text, still), small, begun, resume=True)
    assert [epoch.stage for epoch in last.epochs] == [*(e.stage for e in first.epochs), "restart"]
    assert last.epochs[:-1] == first.epochs
    for name, weight in first.model.named_parameters():
        assert torch.allclose(weight, last.model.get_parameter(name), atol=1e-6), name


def test_its_settings_are_its_own(recipe_text: str, small: Dataset, begun: Path) -> None:
    text = recipe_text.replace("[train.regularised]", "[train.regularised]\nhead = 0.5")
    train(with_code(text, RESTART), small, begun, resume=True)
    before, after = kept(begun, "regularised"), kept(begun, "restart")
    # Of the tiny backbone, exit 5: blocks 0 … 5 are on the device, and here head is 0.
    device = [name for name in before if name.startswith("model.backbone.blocks.0.")]
    learns = ("model.backbone.top.", "model.bottleneck.encoder.", "model.branch.")
    assert device and all(torch.equal(before[name], after[name]) for name in device)
    for part in learns:
        assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith(part))


def test_a_higher_rate_sends_fewer_bits(recipe_text: str, small: Dataset, begun: Path) -> None:
    bits = []
    for rate in ("0.0", "300.0"):
        recipe = with_code(recipe_text, RESTART.replace("rate = 1.0", f"rate = {rate}"))
        bits.append(train(recipe, small, begun, resume=True).epochs[-1].figures["entropy_bits"])
    assert 0 < bits[1] < 0.9 * bits[0]


def test_killed_and_resumed_it_ends_with_the_same_bits(recipe_text: str, small: Dataset, begun: Path) -> None:
    recipe = with_code(recipe_text, RESTART, TAIL)
    again = ends_as_unbroken(recipe, small, begun, in_the_middle("restart", 2))
    assert again == [("restart", 2), ("tail", 1)]


def test_without_a_code_there_is_no_such_stage(recipe_text: str, small: Dataset, begun: Path) -> None:
    trained = train(Recipe.parse(recipe_text + RESTART), small, begun, resume=True)
    assert trained.epochs[-1].stage == "regularised"


def test_checkpoints_before_it_are_shared(recipe_text: str) -> None:
    without, with_it = with_code(recipe_text, TAIL), with_code(recipe_text, TAIL, RESTART)
    assert without.stage_sha256("regularised") == with_it.stage_sha256("regularised")
    assert without.stage_sha256("tail") != with_it.stage_sha256("tail")
    # What it would do in no epochs decides nothing.
    none = with_code(recipe_text, TAIL, RESTART.replace("epochs = 2", "epochs = 0"))
    assert without.stage_sha256("tail") == none.stage_sha256("tail")
