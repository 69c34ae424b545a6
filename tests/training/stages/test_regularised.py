from pathlib import Path

import pytest

from offramp.common.errors import ConfigError
from offramp.training.data.datasets import Dataset
from offramp.training.loop import Trained, train
from offramp.training.progress import Epoch, Progress
from offramp.training.recipe import Recipe
from tests.training.coded import CODE


def digest(trained: Trained) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in trained.model.state_dict().items()}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "entropy = 1.0",
            "rate = 1.0",
            "train.regularised.rate is the price of a code: needs model.bottleneck",
        ),
        ("entropy = 1.0", "entropy = 1.0\n" + CODE, "model.bottleneck takes train.regularised.rate"),
        (
            "epochs = 1\nlearning_rate = 0.05\nentropy = 1.0",
            f"epochs = 0\nlearning_rate = 1\n{CODE}",
            "epochs is 0",
        ),
        ("entropy = 1.0", CODE.replace("stride = 2", "stride = 3"), "model.bottleneck.stride"),
    ],
)
def test_recipes_that_make_no_sense(recipe_text: str, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.parse(recipe_text.replace(old, new))


def test_a_plain_split_has_nobody_who_answers_for_pasted_images(recipe_text: str) -> None:
    text = recipe_text.replace("entropy = 1.0", "cutmix = 0.5")
    with pytest.raises(ConfigError, match=r"train\.regularised\.cutmix .* needs model\.bottleneck"):
        Recipe.parse(text)


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


@pytest.mark.parametrize("setting", ["webp = [10, 50]", "crop = 0.5", "weight_decay = 0.1"])
def test_a_last_stage_of_its_own_pictures_or_weight_decay(
    setting: str, recipe_text: str, few: Dataset, tmp_path: Path
) -> None:
    plain, other = (Recipe.parse(recipe_text.replace("entropy = 1.0", text)) for text in ("", setting))
    bits = [digest(train(one, few, tmp_path, resume=True)) for one in (plain, other, other)]
    assert bits[0] != bits[1] == bits[2]
    # One base, one exit, two last stages.
    assert len(list(tmp_path.glob("*.pt"))) == 4
