"""The early exit alone, or a wider one in its place; the transmitted activation stays as it is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.common.errors import ConfigError
from offramp.training.calibrate.measure import run_graphs
from offramp.training.calibrate.measure_float import run_float
from offramp.training.data.datasets import Dataset
from offramp.training.export import export
from offramp.training.loop import train
from offramp.training.models.networks import BACKBONES
from offramp.training.models.split_model import SplitModel
from offramp.training.quantize.quantize import quantize_calibrated
from offramp.training.recipe import Recipe
from offramp.training.stages.branch import BranchRecipe, BranchTask
from offramp.training.stages.taught import answers_loss
from tests.kill import ends_as_unbroken, in_the_middle
from tests.training.coded import TAIL, with_code

BRANCH = """
[train.branch]
epochs = 6
learning_rate = 0.02
distill = 0.5
cutmix = 0.25
"""


WIDE = BRANCH + "widths = [24, 32]\n"


RESTART = """
[train.restart]
epochs = 1
learning_rate = 0.01
"""


def plain(text: str, *more: str) -> Recipe:
    return Recipe.parse("".join([text, *more]))


@pytest.mark.parametrize("recipe_with", [plain, with_code])
@pytest.mark.parametrize("stage", [BRANCH, WIDE])
def test_only_the_early_exit_learns(
    recipe_text: str, small: Dataset, begun: Path, recipe_with: Callable[..., Recipe], stage: str
) -> None:
    before, after = recipe_with(recipe_text), recipe_with(recipe_text, stage)
    first = train(before, small, begun, resume=True)
    last = train(after, small, begun, resume=True)
    assert last.epochs[:-6] == first.epochs
    assert [epoch.stage for epoch in last.epochs[-6:]] == ["branch"] * 6
    old, new = first.model.state_dict(), last.model.state_dict()
    others = {name for name in old if not name.startswith("branch.")}
    assert others == {name for name in new if not name.startswith("branch.")}
    assert all(torch.equal(old[name], new[name]) for name in others)
    linear = "branch.linear.weight"
    assert old[linear].shape != new[linear].shape or not torch.equal(old[linear], new[linear])

    assert last.epochs[-1].figures["early"] > 0.8


@pytest.mark.parametrize("stage", [BRANCH, WIDE])
def test_with_a_code_it_answers_better_and_sends_the_same(
    recipe_text: str, small: Dataset, begun: Path, stage: str
) -> None:
    both = []
    for recipe in (with_code(recipe_text), with_code(recipe_text, stage)):
        model = train(recipe, small, begun, resume=True).model
        graphs = export(quantize_calibrated(model, small.validation, recipe.quantize, recipe.seed))
        both.append((graphs, run_graphs(graphs, small.validation)))
    (old_graphs, old), (graphs, new) = both
    assert graphs.tail == old_graphs.tail
    assert np.array_equal(new.symbols, old.symbols)
    assert new.early_right.mean() > old.early_right.mean() + 0.02


def test_a_wide_early_exit_in_integers_answers_as_in_float(
    recipe_text: str, small: Dataset, begun: Path
) -> None:
    recipe = with_code(recipe_text, WIDE)
    model = train(recipe, small, begun, resume=True).model
    assert [unit.conv.out_channels for unit in model.branch.units()] == [24, 32]
    graphs = export(quantize_calibrated(model, small.validation, recipe.quantize, recipe.seed))
    integers, floats = run_graphs(graphs, small.test), run_float(model, small.test, torch.device("cpu"))
    assert float(np.abs(integers.confidence - floats.confidence).mean()) < 0.02
    assert abs(integers.early_right.mean() - floats.early_right.mean()) < 0.02


def test_a_restart_after_it_trains_the_wide_early_exit_with_the_rest(
    recipe_text: str, small: Dataset, begun: Path
) -> None:
    before = train(with_code(recipe_text, WIDE), small, begun, resume=True)
    after = train(with_code(recipe_text, WIDE, RESTART), small, begun, resume=True)
    assert after.epochs[:-1] == before.epochs and after.epochs[-1].stage == "restart"
    old, new = before.model.state_dict(), after.model.state_dict()
    assert {name: value.shape for name, value in old.items()} == {
        name: value.shape for name, value in new.items()
    }
    for part in ("branch.convolutions.", "bottleneck.encoder.", "backbone.top."):
        assert any(not torch.equal(old[name], new[name]) for name in old if name.startswith(part)), part


def test_killed_and_resumed_it_ends_with_the_same_bits(recipe_text: str, small: Dataset, begun: Path) -> None:
    recipe = with_code(recipe_text, TAIL, WIDE.replace("epochs = 6", "epochs = 2"))
    again = ends_as_unbroken(recipe, small, begun, in_the_middle("branch", 2))
    assert again == [("branch", 2), ("tail", 1)]


def test_its_checkpoint_is_the_early_exit_alone(recipe_text: str, small: Dataset, begun: Path) -> None:
    train(with_code(recipe_text, WIDE.replace("epochs = 6", "epochs = 1")), small, begun, resume=True)
    (path,) = begun.glob("branch-*.pt")
    best = torch.load(path, weights_only=True)["best"]
    assert best and all(name.startswith("branch.") for name in best)


def test_which_checkpoints_it_shares(recipe_text: str) -> None:
    without, with_it = with_code(recipe_text, TAIL), with_code(recipe_text, TAIL, WIDE)
    assert without.stage_sha256("tail") == with_it.stage_sha256("tail")
    # The tail has no part in it; the code and its own settings have.
    no_tail = with_code(recipe_text, WIDE)
    assert no_tail.stage_sha256("branch") == with_it.stage_sha256("branch")
    others = (with_code(recipe_text, WIDE, rate=2.0), with_code(recipe_text, WIDE.replace("32]", "48]")))
    assert len({recipe.stage_sha256("branch") for recipe in (no_tail, *others)}) == 3
    # A restart comes after it, and goes on from what it left.
    restarted = with_code(recipe_text, WIDE, RESTART)
    assert restarted.stage_sha256("branch") == no_tail.stage_sha256("branch")
    assert restarted.stage_sha256("restart") != with_code(recipe_text, RESTART).stage_sha256("restart")
    both = (with_code(recipe_text, TAIL, RESTART), with_code(recipe_text, TAIL, WIDE, RESTART))
    assert len({recipe.stage_sha256("tail") for recipe in both}) == 2


def test_a_new_early_exit_needs_epochs(recipe_text: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.branch: .*widths: expected none where"):
        with_code(recipe_text, WIDE.replace("epochs = 6", "epochs = 0"))
    with pytest.raises(ConfigError, match=r"train\.branch\.widths\.1 = 0: .*greater than or equal to 1"):
        with_code(recipe_text, WIDE.replace("32]", "0]"))


@pytest.mark.parametrize("distill", [0.0, 0.5])
@pytest.mark.parametrize("unlabelled", [0, 2, 6])
def test_the_teacher_answers_only_what_it_is_asked(
    tiny_backbone: None, distill: float, unlabelled: int
) -> None:
    torch.manual_seed(0)
    teacher = BACKBONES["tiny"](10, 32).eval()
    model = SplitModel(BACKBONES["tiny"](10, 32), 7)
    task = BranchTask(model, BranchRecipe(epochs=1, learning_rate=0.1, distill=distill), teacher)
    asked: list[int] = []
    task._teacher[0].register_forward_pre_hook(lambda _module, images: asked.append(len(images[0])))
    images, labels, early = torch.randn(6, 3, 32, 32), torch.arange(6), torch.randn(6, 10)
    with torch.no_grad():
        found = task.answers(early, images, labels, unlabelled)
        wanted = answers_loss(early, labels, teacher(images), distill, 2.0, unlabelled)
    assert float(found) == pytest.approx(float(wanted), abs=1e-5)
    assert asked == ([6] if distill else [unlabelled] * (unlabelled > 0))
