"""Data that are no pictures: normalised, varied, and refused where flags do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.common.errors import ConfigError
from offramp.training.data.photos import Columns
from offramp.training.data.tensors import Kind, Options
from offramp.training.split.taken import Taken, take
from tests.training.split.tiny import write_photos, write_sounds


def taken(folder: Path, options: Options = Options(seconds=0.3), kind: Kind = "auto") -> Taken | None:  # noqa: B008
    return take(
        folder, kind, options, seed=0, columns=Columns(), counted=lambda _: lambda: None, skipped=None
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Taken:
    made = taken(write_sounds(tmp_path_factory.mktemp("data") / "sounds", 12))
    assert made is not None
    return made


def test_values_are_normalised_by_their_own_mean_and_deviation(found: Taken) -> None:
    x = found.normalise(torch.from_numpy(found.data.train.images))
    assert abs(float(x.mean())) < 1e-3 and abs(float(x.std()) - 1) < 1e-3
    assert any("(--value-mean and" in note for note in found.notes)


def test_given_values_are_in_the_tensors_own_units(tmp_path: Path) -> None:
    made = taken(write_sounds(tmp_path / "sounds", 6), Options(seconds=0.3, mean=(0.0,), std=(1.0,)))
    assert made is not None
    images = made.data.train.images
    wanted = -80 + images.astype(np.float32) * (80 / 255)
    assert np.abs(made.normalise(torch.from_numpy(images)).numpy() - wanted).max() < 1e-4


def test_variations_are_small_changes_that_a_seed_repeats(found: Taken) -> None:
    x = found.normalise(torch.from_numpy(found.data.train.images))

    def varied(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return found.normalise.augmented(x, flip=True, mix=False, generator=generator)

    assert torch.equal(varied(1), varied(1)) and not torch.equal(varied(1), varied(2))
    assert varied(1).shape == x.shape
    # Frequencies are not mirrored: what is loud stays in its band, but for hidden ones.
    same = x.mean(3)[:, 0].argmax(1) == varied(3).mean(3)[:, 0].argmax(1)
    assert float(same.float().mean()) > 0.5


def test_pictures_are_left_to_others_and_flags_of_sounds_then_refused(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 1)
    assert taken(photos, Options()) is None
    with pytest.raises(ConfigError, match="holds pictures; flags of sounds and tensors say nothing of them"):
        taken(photos, Options(rate=8000))


def test_one_of_mean_and_deviation_is_refused(tmp_path: Path) -> None:
    sounds = write_sounds(tmp_path / "sounds", 6)
    with pytest.raises(ConfigError, match="--value-mean and --value-std: expected both or neither"):
        taken(sounds, Options(mean=(0.0,)))
    with pytest.raises(ConfigError, match="2 and 2 numbers; expected one"):
        taken(sounds, Options(mean=(0.0, 0.0), std=(1.0, 1.0)))
