import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from offramp.common.errors import ConfigError, DataError
from offramp.training.data.datasets import Dataset
from offramp.training.hardware import Hardware
from offramp.training.loop import Trained, train
from offramp.training.progress import Epoch, Progress
from offramp.training.recipe import Recipe
from tests.kill import Killed, before_the_checkpoint, in_the_middle, killed_and_resumed

SCHEDULE = [("base", 1), ("base", 2), ("exit", 1), ("regularised", 1)]


def digest(trained: Trained) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in trained.model.state_dict().items()}


def test_epochs_come_in_the_papers_order(recipe: Recipe, few: Dataset, tmp_path: Path) -> None:
    epochs: list[Epoch] = []
    trained = train(recipe, few, tmp_path, progress=Progress(epoch=epochs.append))
    assert list(trained.epochs) == epochs
    assert [step for step, _ in trained.entropy] == [0, 1, 2, 3]
    assert all(0 < bits < 8 for _, bits in trained.entropy)
    assert [(epoch.stage, epoch.number) for epoch in epochs] == SCHEDULE
    assert set(epochs[0].figures) == {"final"}
    assert set(epochs[-1].figures) == {"early", "final", "entropy_bits"}
    assert not trained.model.training
    assert len(list(tmp_path.glob("*.pt"))) == 3
    assert not list(tmp_path.glob("*.partial"))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def whole(recipe_words: str, few: Dataset, tiny_backbone: None, checkpoints: Path) -> Trained:
    """``recipe`` trained in one go; only read it."""
    return train(Recipe.parse(recipe_words), few, checkpoints)


@pytest.fixture
def done(whole: Trained, checkpoints: Path, tmp_path: Path) -> Path:
    """A copy of its checkpoints."""
    return Path(shutil.copytree(checkpoints, tmp_path / "done"))


def test_the_same_seed_gives_the_same_bits(
    recipe: Recipe, few: Dataset, whole: Trained, tmp_path: Path
) -> None:
    assert digest(train(recipe, few, tmp_path / "same")) == digest(whole)
    other = recipe.model_copy(update={"seed": 4})
    assert digest(train(other, few, tmp_path / "other")) != digest(whole)


@pytest.mark.parametrize("moment", [*SCHEDULE, "mid-epoch"])
def test_a_killed_and_resumed_run_ends_with_the_same_bits(
    recipe: Recipe, few: Dataset, whole: Trained, tmp_path: Path, moment: tuple[str, int] | str
) -> None:
    fatal = in_the_middle("base", 2) if isinstance(moment, str) else before_the_checkpoint(*moment)
    resumed, again = killed_and_resumed(recipe, few, tmp_path / "broken", fatal)
    assert digest(resumed) == digest(whole)
    assert (resumed.epochs, resumed.entropy) == (whole.epochs, whole.entropy)
    first = ("base", 2) if moment == "mid-epoch" else moment
    assert again == SCHEDULE[SCHEDULE.index(first) :]  # type: ignore[arg-type]


def test_recipes_share_the_stages_in_which_they_agree(recipe: Recipe, few: Dataset, done: Path) -> None:
    harder = recipe.train.regularised.model_copy(update={"entropy": 5.0})
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"regularised": harder})})
    epochs: list[Epoch] = []
    lines: list[str] = []
    train(other, few, done, resume=True, progress=Progress(epoch=epochs.append, say=lines.append))
    assert [epoch.stage for epoch in epochs] == ["regularised"]
    # And says why one of them begins at the start.
    (line,) = lines
    assert line.startswith("regularised: begins at the start: regularised-")
    assert line.endswith(" has train.regularised.entropy = 1.0, now 5.0")


def test_what_trained_a_stage_is_kept_with_it(recipe: Recipe, few: Dataset, done: Path) -> None:
    (path,) = done.glob("regularised-*.pt")
    state = torch.load(path, weights_only=True)
    state["machine"]["device"] = "another machine"
    torch.save(state, path)
    trained = train(recipe, few, done, resume=True)
    assert trained.machine == {
        "device": "another machine",
        "precision": "float32",
        "torch": torch.__version__,
    }


def test_a_stage_begun_on_a_gpu_goes_on_without_one(recipe: Recipe, few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(recipe, few, tmp_path, progress=in_the_middle("base", 2))
    (path,) = tmp_path.glob("base-*.pt")
    state = torch.load(path, weights_only=True)
    state["machine"] = {"device": "a GPU", "precision": "bfloat16", "torch": "2"}
    # As long as that of a GPU's generator.
    state["generator"] = torch.zeros(16, dtype=torch.uint8)
    torch.save(state, path)
    trained = train(recipe, few, tmp_path, resume=True)
    assert [(epoch.stage, epoch.number) for epoch in trained.epochs][:3] == [
        ("base", 1),
        ("base", 2),
        ("exit", 1),
    ]
    own = Hardware().describe()["device"]
    state = torch.load(path, weights_only=True)
    assert state["machine"]["device"] == f"a GPU in bfloat16, then {own}"


def test_without_resume_training_starts_again(recipe: Recipe, few: Dataset, done: Path) -> None:
    epochs: list[Epoch] = []
    lines: list[str] = []
    train(recipe, few, done, progress=Progress(epoch=epochs.append, say=lines.append))
    assert [(epoch.stage, epoch.number) for epoch in epochs] == SCHEDULE
    assert [line.partition(";")[0] for line in lines] == [
        "base: begins again", "exit: begins again", "regularised: begins again"
    ]  # fmt: skip


def test_rho_needs_a_weight_for_each_exit(recipe: Recipe, few: Dataset, tmp_path: Path) -> None:
    settings = recipe.train.model_copy(update={"rho": [1.0]})
    with pytest.raises(ConfigError, match="2 exits, got 1"):
        train(recipe.model_copy(update={"train": settings}), few, tmp_path)


def test_a_diverged_run_says_so(recipe: Recipe, few: Dataset, tmp_path: Path) -> None:
    wild = recipe.train.base.model_copy(update={"learning_rate": 1e30})
    settings = recipe.train.model_copy(update={"base": wild})
    with pytest.raises(ConfigError, match="diverged in stage base, epoch 1: lower its learning_rate"):
        train(recipe.model_copy(update={"train": settings}), few, tmp_path)


def test_fewer_images_than_a_batch(recipe: Recipe, few: Dataset, tmp_path: Path) -> None:
    few = replace(few, train=few.train.take(torch.arange(20).numpy()))
    with pytest.raises(DataError, match="20 images to train on are too few for one batch of 32"):
        train(recipe, few, tmp_path)
