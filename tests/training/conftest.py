"""A backbone and a recipe that are small enough to train in seconds, registered under the name "tiny"."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.training.calibrate import context_model
from offramp.training.data.datasets import Dataset
from offramp.training.data.recipe import DigitsRecipe
from offramp.training.data.sources import load
from offramp.training.loop import train
from offramp.training.models.backbone import Backbone
from offramp.training.models.layers import Add, ConvUnit, SubBlock
from offramp.training.models.networks import BACKBONES
from offramp.training.recipe import Recipe
from tests.training.coded import with_code

RECIPE = """
name = "tiny-digits"
seed = 3

[data]
source = "sklearn-digits"
validation = 0.2
test = 0.2
shift = 1

[model]
backbone = "tiny"
exit = 3

[train]
batch_size = 32

[train.base]
epochs = 2
learning_rate = 0.1

[train.exit]
epochs = 1
learning_rate = 0.05

[train.regularised]
epochs = 1
learning_rate = 0.05
entropy = 1.0
"""


def tiny(classes: int, size: int = 32) -> Backbone:
    """Exits 1 (16x16x16), 2 to 4 inside a residual block (5 after it), 6 and 7 with a stride of 2."""
    blocks = [
        SubBlock("a.C2", ConvUnit(8, 16, 1)),
        SubBlock("b.C1", ConvUnit(16, 32, 1), opens=True),
        SubBlock("b.C2", ConvUnit(32, 32, 3, groups=32)),
        SubBlock("b.C3", ConvUnit(32, 16, 1, relu=False)),
        SubBlock("b.add", Add()),
        SubBlock("c.C2", ConvUnit(16, 16, 3, stride=2, groups=16)),
        SubBlock("c.C3", ConvUnit(16, 24, 1, relu=False)),
    ]
    return Backbone(
        ConvUnit(3, 8, 3, stride=2),
        blocks,
        [ConvUnit(24, 32, 1)],
        channels=32,
        classes=classes,
        input_shape=(3, size, size),
    )


@contextmanager
def with_tiny() -> Iterator[None]:
    """The tiny backbone is known, and torch has one thread."""
    threads = torch.get_num_threads()
    # Small tensors: more threads only wait for one another.
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", tiny)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def tiny_backbone() -> Iterator[None]:
    with with_tiny():
        yield


@pytest.fixture
def coarse_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """A context model is fitted in a tenth of its steps, for tests that do not ask how good it is."""
    monkeypatch.setattr(context_model, "STEPS", 100)


@pytest.fixture
def recipe_text() -> str:
    return RECIPE


@pytest.fixture(scope="session")
def recipe_words() -> str:
    """``recipe_text`` for fixtures that live longer than a test."""
    return RECIPE


@pytest.fixture
def recipe(tiny_backbone: None) -> Recipe:
    return Recipe.parse(RECIPE)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load(DigitsRecipe(source="sklearn-digits", validation=0.2, test=0.2), seed=3)


@pytest.fixture(scope="session")
def small(digits: Dataset) -> Dataset:
    """Half of the training images."""
    return replace(digits, train=digits.train.take(np.arange(0, 1024, 2)))


@pytest.fixture(scope="session")
def few(digits: Dataset) -> Dataset:
    """Few enough training images for an epoch of a few steps."""
    return replace(digits, train=digits.train.take(np.arange(0, 1024, 8)))


@pytest.fixture(scope="session")
def all_begun(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of ``recipe`` and of `with_code`'s recipe, trained once on ``small``. Only read them."""
    folder = tmp_path_factory.mktemp("begun")
    with with_tiny():
        for one in (Recipe.parse(RECIPE), with_code(RECIPE)):
            train(one, small, folder, resume=True)
    return folder


@pytest.fixture
def begun(all_begun: Path, tmp_path: Path) -> Path:
    """A copy of them to go on from."""
    return Path(shutil.copytree(all_begun, tmp_path / "begun"))
