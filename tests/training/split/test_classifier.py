"""The classifier that is split: kept, given a new last layer, tuned, and resumed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from offramp.common.errors import ConfigError
from offramp.training.data.datasets import Dataset
from offramp.training.data.photos import read_photos
from offramp.training.split import classifier
from offramp.training.split.capture import capture
from offramp.training.split.classifier import Made, Settings, make_classifier
from offramp.training.split.photos import Normalise, answers
from offramp.training.split.work import Clock, Stage
from tests.training.split import tiny

SHAPE = (3, tiny.SIDE, tiny.SIDE)
NORMALISE = Normalise((tiny.MEAN,) * 3, (tiny.STD,) * 3)
TUNED = Settings("auto", 25, False, 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tiny.write_photos(tmp_path_factory.mktemp("classifier") / "photos")
    return read_photos(folder, size=tiny.SIDE, seed=0).data


def make(
    module: nn.Module, data: Dataset, folder: Path, settings: Settings = TUNED, lines: list[str] | None = None
) -> Made:
    return make_classifier(
        module, capture(module, SHAPE), data, NORMALISE, settings, Stage(folder, {}, print), Clock(None),
        until=1, name="tiny", say=(lines if lines is not None else []).append,
    )  # fmt: skip


def accuracy(made: Made, data: Dataset) -> float:
    found = answers(classifier.module_logits(made.captured), data.test, NORMALISE)
    return float((found.argmax(1) == data.test.labels).mean())


def test_other_classes_get_a_new_layer_that_learns_and_is_then_kept(data: Dataset, tmp_path: Path) -> None:
    lines: list[str] = []
    made = make(tiny.build(), data, tmp_path / "a", lines=lines)
    assert lines[0] == "the model has 7 classes, the photos 3: a new last layer"
    assert made.captured.classes == 3 and made.how == "a new last layer; all weights tuned for 25 epochs"
    assert accuracy(made, data) > 0.6 and not made.module.training
    # The same module, which now answers these photos, stays as it is.
    before = {name: value.clone() for name, value in made.module.state_dict().items()}
    again = make(made.module, data, tmp_path / "b", Settings("auto", None, False, 0), lines := [])
    assert "its own classifier is kept" in lines[0] and again.how == lines[0]
    assert all(torch.equal(value, before[name]) for name, value in made.module.state_dict().items())
    # A new layer alone, on features that are learned, is as good.
    probed = make(made.module, data, tmp_path / "c", Settings("new", 0, False, 0))
    assert probed.how == "a new last layer only" and accuracy(probed, data) > 0.6
    assert not torch.equal(made.module[6].weight, before["6.weight"])  # type: ignore[index]


def test_as_many_classes_that_answer_nothing_get_a_new_layer(data: Dataset, tmp_path: Path) -> None:
    lines: list[str] = []
    make(tiny.knows(), data, tmp_path, Settings("auto", 0, False, 0), lines)
    assert lines[0].startswith("its 3 classes are not the photos' (")


def test_what_was_interrupted_ends_with_the_same_weights(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(TUNED, epochs=4)
    whole = make(tiny.build(), data, tmp_path / "whole", few)
    monkeypatch.setattr(classifier, "SAVE_SECONDS", 0.0)
    seen = 0

    def stop(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == 5:
            raise KeyboardInterrupt

    module = tiny.build()
    with pytest.raises(KeyboardInterrupt):
        make_classifier(
            module, capture(module, SHAPE), data, NORMALISE, few, Stage(tmp_path / "broken", {}, print),
            Clock(None), until=1, name="tiny", tick=stop,
        )  # fmt: skip
    again = make(tiny.build(), data, tmp_path / "broken", few)
    for name, value in again.module.state_dict().items():
        assert np.array_equal(value.numpy(), whole.module.state_dict()[name].numpy()), name


def test_a_last_step_that_cannot_be_replaced_is_one_clear_error(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tiny: its last step is not a linear layer"):
        make(tiny.without_linear(), data, tmp_path)
