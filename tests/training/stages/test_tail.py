"""The last stage of a rate-trained split: the tail alone, on what the INT8 head sends."""

from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.training.calibrate.measure import Answers, run_graphs
from offramp.training.data.datasets import Dataset, to_float
from offramp.training.export import Graphs, export
from offramp.training.loop import Trained, train
from offramp.training.models.split_model import SplitModel
from offramp.training.quantize.quantize import calibration_part, quantize
from offramp.training.recipe import Recipe
from tests.kill import ends_as_unbroken, in_the_middle
from tests.training.coded import with_code

TAIL = """
[train.tail]
epochs = 2
learning_rate = 0.01
"""


def exported(model: SplitModel, recipe: Recipe, data: Dataset) -> Graphs:
    part, _ = calibration_part(len(data.validation), share=recipe.quantize.calibration, seed=recipe.seed)
    return export(quantize(model, to_float(torch.from_numpy(data.validation.images[part]))))


def answered(trained: Trained, recipe: Recipe, data: Dataset) -> tuple[Graphs, Answers]:
    graphs = exported(trained.model, recipe, data)
    return graphs, run_graphs(graphs, data.validation)


def test_the_head_stays_and_the_tail_learns_what_it_sends(
    recipe_text: str, small: Dataset, begun: Path
) -> None:
    before, after = with_code(recipe_text), with_code(recipe_text, TAIL)
    first = train(before, small, begun, resume=True)
    last = train(after, small, begun, resume=True)
    assert [epoch.stage for epoch in last.epochs[-2:]] == ["tail", "tail"]
    assert last.epochs[:-2] == first.epochs
    assert last.entropy == first.entropy

    old, improved_answers = answered(first, before, small)
    new, improved = answered(last, after, small)
    assert new.head == old.head
    assert new.tail != old.tail
    assert np.array_equal(improved.symbols, improved_answers.symbols)
    assert improved.final_right.mean() >= improved_answers.final_right.mean()
    for name, value in first.model.state_dict().items():
        if name.startswith(("branch.", "bottleneck.encoder.", "bottleneck.density.")):
            assert torch.equal(value, last.model.state_dict()[name])


def test_its_figures_are_of_the_int8_head(recipe_text: str, small: Dataset, begun: Path) -> None:
    recipe = with_code(recipe_text, TAIL)
    trained = train(recipe, small, begun, resume=True)
    _, answers = answered(trained, recipe, small)
    kept = next(epoch for epoch in reversed(trained.epochs) if epoch.best).figures
    # The early exit's are those of the graph itself; the tail is still in float.
    assert kept["early"] == pytest.approx(answers.early_right.mean(), abs=1e-12)
    with torch.no_grad():
        code = torch.from_numpy(answers.symbols).float() - 128
        final = trained.model.tail(code).argmax(1).numpy()
    assert kept["final"] == pytest.approx((final == small.validation.labels).mean(), abs=1e-12)


def test_killed_and_resumed_it_ends_with_the_same_bits(recipe_text: str, small: Dataset, begun: Path) -> None:
    recipe = with_code(recipe_text, TAIL)
    again = ends_as_unbroken(recipe, small, begun, in_the_middle("tail", 2))
    assert again == [("tail", 2)]


def test_without_a_code_there_is_no_such_stage(recipe_text: str, small: Dataset, begun: Path) -> None:
    trained = train(Recipe.parse(recipe_text + TAIL), small, begun, resume=True)
    assert trained.epochs[-1].stage == "regularised"


def test_checkpoints_before_it_are_shared(recipe_text: str) -> None:
    without, with_it = with_code(recipe_text), with_code(recipe_text, TAIL)
    assert without.stage_sha256("regularised") == with_it.stage_sha256("regularised")
    assert without.stage_sha256("tail") != with_it.stage_sha256("tail")
    # Of other calibration images the head is another one.
    calibrated = with_code(recipe_text, TAIL, "[quantize]\ncalibration = 0.5\n")
    assert calibrated.stage_sha256("regularised") == with_it.stage_sha256("regularised")
    assert calibrated.stage_sha256("tail") != with_it.stage_sha256("tail")
