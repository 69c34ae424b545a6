from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from offramp.common.errors import ConfigError, DataError
from offramp.training.data.datasets import Dataset, recompressed
from offramp.training.hardware import Hardware
from offramp.training.loop import Trained, train
from offramp.training.models.backbone import Backbone
from offramp.training.models.layers import Flow
from offramp.training.models.networks import BACKBONES
from offramp.training.models.split_model import SplitModel
from offramp.training.progress import Clock, Epoch, OutOfTime, Progress
from offramp.training.recipe import Recipe
from tests.kill import Killed, before_the_checkpoint, in_the_middle, killed_and_resumed

SCHEDULE = [("base", 1), ("base", 2), ("exit", 1), ("regularised", 1)]


def digest(trained: Trained) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in trained.model.state_dict().items()}


@pytest.fixture(scope="module")
def small(digits: Dataset) -> Dataset:
    """Few enough images for an epoch of a few steps."""
    return Dataset(
        digits.name,
        digits.classes,
        digits.train.take(torch.arange(0, 1024, 8).numpy()),
        digits.validation,
        digits.test,
        digits.sha256,
    )


def test_epochs_come_in_the_papers_order(recipe: Recipe, small: Dataset, tmp_path: Path) -> None:
    epochs: list[Epoch] = []
    trained = train(recipe, small, tmp_path, progress=Progress(epoch=epochs.append))
    assert list(trained.epochs) == epochs
    assert [step for step, _ in trained.entropy] == [0, 1, 2, 3]
    assert all(0 < bits < 8 for _, bits in trained.entropy)
    assert [(epoch.stage, epoch.number) for epoch in epochs] == SCHEDULE
    assert set(epochs[0].figures) == {"final"}
    assert set(epochs[-1].figures) == {"early", "final", "entropy_bits"}
    assert not trained.model.training
    assert len(list(tmp_path.glob("*.pt"))) == 3
    assert not list(tmp_path.glob("*.partial"))


def test_the_same_seed_gives_the_same_bits(recipe: Recipe, small: Dataset, tmp_path: Path) -> None:
    first, second = (digest(train(recipe, small, tmp_path / name)) for name in ("a", "b"))
    assert first == second
    other = recipe.model_copy(update={"seed": 4})
    assert digest(train(other, small, tmp_path / "c")) != first


def test_the_first_epochs_of_base_see_smaller_images(
    recipe: Recipe, small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []
    whole = Backbone.finish

    def finish(self: Backbone, flow: Flow, start: int) -> Tensor:
        seen.append((self.training, flow.x.shape[-1]))
        return whole(self, flow, start)

    monkeypatch.setattr(Backbone, "finish", finish)
    base = recipe.train.base.model_copy(update={"sides": [16]})
    smaller = recipe.model_copy(update={"train": recipe.train.model_copy(update={"base": base})})
    whole_side = small.train.images.shape[-1]
    train(smaller, small, tmp_path)
    steps = len(small.train) // recipe.train.batch_size
    trained = [side for training, side in seen if training]
    assert trained[: 2 * steps] == [16] * steps + [whole_side] * steps
    assert smaller.stage_sha256("exit") != recipe.stage_sha256("exit")


@pytest.mark.parametrize("moment", [*SCHEDULE, "mid-epoch"])
def test_a_killed_and_resumed_run_ends_with_the_same_bits(
    recipe: Recipe, small: Dataset, tmp_path: Path, moment: tuple[str, int] | str
) -> None:
    whole = train(recipe, small, tmp_path / "whole")

    fatal = in_the_middle("base", 2) if isinstance(moment, str) else before_the_checkpoint(*moment)
    resumed, again = killed_and_resumed(recipe, small, tmp_path / "broken", fatal)
    assert digest(resumed) == digest(whole)
    assert (resumed.epochs, resumed.entropy) == (whole.epochs, whole.entropy)
    first = ("base", 2) if moment == "mid-epoch" else moment
    assert again == SCHEDULE[SCHEDULE.index(first) :]  # type: ignore[arg-type]


def test_recipes_share_the_stages_in_which_they_agree(recipe: Recipe, small: Dataset, tmp_path: Path) -> None:
    train(recipe, small, tmp_path)
    harder = recipe.train.regularised.model_copy(update={"entropy": 5.0})
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"regularised": harder})})
    epochs: list[Epoch] = []
    train(other, small, tmp_path, resume=True, progress=Progress(epoch=epochs.append))
    assert [epoch.stage for epoch in epochs] == ["regularised"]


def test_what_trained_a_stage_is_kept_with_it(recipe: Recipe, small: Dataset, tmp_path: Path) -> None:
    train(recipe, small, tmp_path)
    (path,) = tmp_path.glob("regularised-*.pt")
    state = torch.load(path, weights_only=True)
    state["machine"]["device"] = "another machine"
    torch.save(state, path)
    trained = train(recipe, small, tmp_path, resume=True)
    assert trained.machine == {
        "device": "another machine",
        "precision": "float32",
        "torch": torch.__version__,
    }


def test_a_stage_begun_on_a_gpu_goes_on_without_one(recipe: Recipe, small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(recipe, small, tmp_path, progress=in_the_middle("base", 2))
    (path,) = tmp_path.glob("base-*.pt")
    state = torch.load(path, weights_only=True)
    state["machine"] = {"device": "a GPU", "precision": "bfloat16", "torch": "2"}
    # As long as that of a GPU's generator.
    state["generator"] = torch.zeros(16, dtype=torch.uint8)
    torch.save(state, path)
    trained = train(recipe, small, tmp_path, resume=True)
    assert [(epoch.stage, epoch.number) for epoch in trained.epochs][:3] == [
        ("base", 1),
        ("base", 2),
        ("exit", 1),
    ]
    own = Hardware().describe()["device"]
    state = torch.load(path, weights_only=True)
    assert state["machine"]["device"] == f"a GPU in bfloat16, then {own}"


def test_without_resume_training_starts_again(recipe: Recipe, small: Dataset, tmp_path: Path) -> None:
    train(recipe, small, tmp_path)
    epochs: list[Epoch] = []
    train(recipe, small, tmp_path, progress=Progress(epoch=epochs.append))
    assert [(epoch.stage, epoch.number) for epoch in epochs] == SCHEDULE


@pytest.mark.parametrize("damage", ["truncated", "other", "no checkpoint", "hostile"])
def test_a_checkpoint_that_does_not_fit(recipe: Recipe, small: Dataset, tmp_path: Path, damage: str) -> None:
    train(recipe, small, tmp_path)
    base = next(tmp_path.glob("base-*.pt"))
    if damage == "truncated":
        base.write_bytes(base.read_bytes()[:1000])
    elif damage == "other":
        next(tmp_path.glob("exit-*.pt")).replace(base)
    elif damage == "no checkpoint":
        torch.save([1, 2, 3], base)
    else:
        torch.save({"identity": base.stem, "code": Path("/")}, base)
    with pytest.raises(ConfigError, match=r"checkpoint .* remove it"):
        train(recipe, small, tmp_path, resume=True)


def test_rho_needs_a_weight_for_each_exit(recipe: Recipe, small: Dataset, tmp_path: Path) -> None:
    settings = recipe.train.model_copy(update={"rho": [1.0]})
    with pytest.raises(ConfigError, match="2 exits, got 1"):
        train(recipe.model_copy(update={"train": settings}), small, tmp_path)


def test_the_regulariser_lowers_entropy_and_keeps_accuracy(
    recipe_text: str, digits: Dataset, tmp_path: Path
) -> None:
    text = recipe_text.replace("epochs = 2", "epochs = 6").replace("epochs = 1", "epochs = 6")
    text = text.replace("entropy = 1.0", "entropy = 2.0")
    last: dict[str, Epoch] = {}
    train(
        Recipe.parse(text),
        digits,
        tmp_path,
        progress=Progress(epoch=lambda epoch: last.update({epoch.stage: epoch})),
    )
    before, after = last["exit"].figures, last["regularised"].figures
    assert before["final"] > 0.9
    assert after["entropy_bits"] < before["entropy_bits"] - 1
    assert after["final"] > before["final"] - 0.03
    assert after["early"] > before["early"] - 0.03


def test_a_diverged_run_says_so(recipe: Recipe, small: Dataset, tmp_path: Path) -> None:
    wild = recipe.train.base.model_copy(update={"learning_rate": 1e30})
    settings = recipe.train.model_copy(update={"base": wild})
    with pytest.raises(ConfigError, match="diverged in stage base, epoch 1: lower its learning_rate"):
        train(recipe.model_copy(update={"train": settings}), small, tmp_path)


def test_a_run_stops_at_a_checkpoint_when_its_time_is_over(
    recipe: Recipe, small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("offramp.training.progress.time.monotonic", lambda: now[0])
    epochs: list[Epoch] = []

    def tick(epoch: Epoch) -> None:
        epochs.append(epoch)
        now[0] += 10

    with pytest.raises(OutOfTime):
        train(recipe, small, tmp_path, clock=Clock(15), progress=Progress(epoch=tick))
    # A second epoch would have taken until 20.
    assert len(epochs) == 1
    resumed = train(recipe, small, tmp_path, resume=True, progress=Progress(epoch=epochs.append))
    assert [(epoch.stage, epoch.number) for epoch in epochs] == SCHEDULE
    assert digest(resumed) == digest(train(recipe, small, tmp_path / "whole"))


def test_bfloat16_trains_as_well(recipe: Recipe, small: Dataset, tmp_path: Path) -> None:
    trained = train(recipe, small, tmp_path, hardware=Hardware(precision="bfloat16"))
    exact = train(recipe, small, tmp_path / "exact")
    assert digest(trained) != digest(exact)
    for stage in (0, -1):
        assert trained.epochs[stage].loss == pytest.approx(exact.epochs[stage].loss, rel=0.1)
    assert {value.dtype for value in trained.model.parameters()} == {torch.float32}


def test_what_travels_is_computed_in_float32(recipe: Recipe) -> None:
    torch.manual_seed(0)
    model = SplitModel(BACKBONES["tiny"](10, 32), 7).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), Hardware(precision="bfloat16").autocast():
        out = model(images)
    assert out.activation.dtype == torch.float32
    assert len(out.activation.unique()) > len(out.activation.bfloat16().unique())
    assert out.final.dtype == torch.bfloat16


def test_fewer_images_than_a_batch(recipe: Recipe, small: Dataset, tmp_path: Path) -> None:
    few = replace(small, train=small.train.take(torch.arange(20).numpy()))
    with pytest.raises(DataError, match="20 images to train on are too few for one batch of 32"):
        train(recipe, few, tmp_path)


@pytest.mark.parametrize("setting", ["webp = [10, 50]", "crop = 0.5", "weight_decay = 0.1"])
def test_a_last_stage_of_its_own_pictures_or_weight_decay(
    setting: str, recipe_text: str, small: Dataset, tmp_path: Path
) -> None:
    plain, other = (Recipe.parse(recipe_text.replace("entropy = 1.0", text)) for text in ("", setting))
    bits = [digest(train(one, small, tmp_path, resume=True)) for one in (plain, other, other)]
    assert bits[0] != bits[1] == bits[2]
    # One base, one exit, two last stages.
    assert len(list(tmp_path.glob("*.pt"))) == 4


def test_a_stage_that_is_done_makes_no_pictures(
    recipe_text: str, small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.parse(recipe_text.replace("entropy = 1.0", "webp = [10]"))
    first = digest(train(recipe, small, tmp_path))

    def never(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr("offramp.training.batches.recompressed", never)
    assert digest(train(recipe, small, tmp_path, resume=True)) == first


def test_what_webp_leaves_is_further_from_the_image_at_lower_quality(small: Dataset) -> None:
    images = small.train.images[:8]
    apart = [np.abs(recompressed(images, quality).astype(int) - images).mean() for quality in (90, 50, 10)]
    assert 0 < apart[0] < apart[1] < apart[2] < 40
