import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.common.errors import ConfigError, DataError
from offramp.training.data.datasets import (
    Dataset,
    Labelled,
    Source,
    augment,
    cropped,
    pasted,
    recompressed,
    split,
    to_float,
    to_pixels,
    write_images,
)
from offramp.training.data.recipe import DigitsRecipe
from offramp.training.data.sources import load


def test_digits_are_split_by_class_without_overlap(digits: Dataset) -> None:
    assert digits.classes == tuple("0123456789")
    assert len(digits.test) >= 350
    assert len(digits.train) + len(digits.validation) + len(digits.test) == 1797
    for part in (digits.train, digits.validation, digits.test):
        assert part.images.shape == (len(part), 3, 32, 32)
        assert part.images.dtype == np.uint8
        assert part.labels.dtype == np.int64
        shares = np.bincount(part.labels, minlength=10) / len(part)
        np.testing.assert_allclose(shares, 0.1, atol=0.01)


def test_every_image_lands_in_exactly_one_part() -> None:
    images = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None, None], (60, 3, 4, 4)).copy()
    labels = np.arange(60, dtype=np.int64) % 3
    source = Source("numbered", ("a", "b", "c"), Labelled(images, labels))
    parts = split(source, validation=0.25, test=0.25, seed=0)
    seen = [part.images[:, 0, 0, 0].tolist() for part in (parts.train, parts.validation, parts.test)]
    assert sorted(value for part in seen for value in part) == list(range(60))
    for part in (parts.train, parts.validation, parts.test):
        assert (part.images[:, 0, 0, 0] % 3 == part.labels).all()


def test_a_test_part_of_its_own_stays_as_it_is() -> None:
    images, labels = np.zeros((40, 3, 4, 4), np.uint8), np.arange(40, dtype=np.int64) % 2
    own = Labelled(np.ones((6, 3, 4, 4), np.uint8), np.arange(6, dtype=np.int64) % 2)
    parts = split(Source("two", ("a", "b"), Labelled(images, labels), own), validation=0.25, seed=0)
    assert parts.test is own
    assert np.bincount(parts.validation.labels).tolist() == [5, 5]
    assert np.bincount(parts.train.labels).tolist() == [15, 15]
    other = split(Source("two", ("a", "b"), Labelled(images, labels)), validation=0.25, test=0.1, seed=0)
    assert other.sha256 != parts.sha256


def test_the_seed_decides_the_split(digits: Dataset) -> None:
    recipe = DigitsRecipe(source="sklearn-digits", validation=0.2, test=0.2)
    same, other = load(recipe, seed=3), load(recipe, seed=4)
    assert np.array_equal(same.test.images, digits.test.images)
    assert not np.array_equal(other.test.images, digits.test.images)
    assert same.sha256 == other.sha256


def test_bad_requests() -> None:
    few = Source(
        "few", ("many", "one"), Labelled(np.zeros((5, 3, 4, 4), np.uint8), np.array([0, 0, 0, 0, 1]))
    )
    with pytest.raises(ConfigError, match="leave no images to train on"):
        split(few, validation=0.5, test=0.5, seed=0)
    with pytest.raises(DataError, match="class 'one' has 1 images: too few for train, validation and test"):
        split(few, validation=0.2, test=0.2, seed=0)


def test_pixels_become_what_the_graph_assumes() -> None:
    pixels = torch.tensor([0, 64, 128, 255], dtype=torch.uint8)
    assert to_float(pixels).tolist() == [-2.0, -1.0, 0.0, 127 / 64]


def test_augmentation_moves_and_mirrors() -> None:
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).repeat(200, 3, 1, 1)
    generator = torch.Generator().manual_seed(0)
    still = augment(image, shift=0, flip=False, generator=generator)
    assert torch.equal(still, image)
    mirrored = augment(image, shift=0, flip=True, generator=generator)
    flipped = (mirrored == image.flip(3)).all(dim=(1, 2, 3))
    assert bool((flipped | (mirrored == image).all(dim=(1, 2, 3))).all())
    assert 60 < int(flipped.sum()) < 140
    moved = augment(image, shift=1, flip=False, generator=generator)
    corners = {int(value) for value in moved[:, 0, 0, 0]}
    assert corners == {0, 1, 4, 5}
    assert moved.dtype == torch.uint8


def test_a_crop_is_a_part_of_the_image_over_the_whole_frame() -> None:
    # Each pixel is its own place, from -1 to 1 between the outer edges of the image.
    places = (torch.arange(32) + 0.5) / 16 - 1
    image = torch.stack([places.expand(32, 32), places[:, None].expand(32, 32)]).repeat(300, 1, 1, 1)
    seen = cropped(image, area=0.4, generator=torch.Generator().manual_seed(0))
    assert seen.shape == image.shape
    across, down = seen[:, 0, 16], seen[:, 1, :, 16]
    # The middle of the frame is away from the edges, where nothing is left to interpolate.
    width, height = (((line[:, 20] - line[:, 12]) / 8 * 16) for line in (across, down))
    area = width * height
    assert 0.399 < float(area.min()) < 0.45 and 0.9 < float(area.max()) <= 1.001
    shape = width / height
    assert 0.749 < float(shape.min()) < 0.8 and 1.25 < float(shape.max()) < 1.334
    assert float(across.mean(1).min()) < -0.2 and float(across.mean(1).max()) > 0.2
    assert float(down.mean(1).min()) < -0.2 and float(down.mean(1).max()) > 0.2


def test_images_are_written_as_they_are(tmp_path: Path) -> None:
    grey = np.repeat(np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8), 3, axis=1)
    colour = np.arange(192, dtype=np.uint8).reshape(1, 3, 8, 8)
    write_images(Labelled(np.concatenate([grey, colour]), np.array([1, 0])), ("cat", "dog"), tmp_path)
    with (tmp_path / "labels.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["file", "label"], ["0.png", "dog"], ["1.png", "cat"]]
    with Image.open(tmp_path / "0.png") as first, Image.open(tmp_path / "1.png") as second:
        assert first.mode == "L"
        assert np.array_equal(np.asarray(first), grey[0, 0])
        assert np.array_equal(np.asarray(second).transpose(2, 0, 1), colour[0])


def test_each_image_has_a_rectangle_of_the_one_before() -> None:
    images = torch.arange(64.0)[:, None, None, None].expand(64, 3, 12, 16)
    seen = pasted(images, generator=torch.Generator().manual_seed(0))
    again = pasted(images, generator=torch.Generator().manual_seed(0))
    assert torch.equal(seen, again)
    own = seen == images
    assert bool((own | (seen == images.roll(1, 0))).all())
    assert torch.equal(own[:, 0], own[:, 1]) and torch.equal(own[:, 0], own[:, 2])
    theirs = ~own[:, 0]
    # A rectangle: the rows and the columns that it touches, all of them.
    assert torch.equal(theirs, theirs.any(2)[:, :, None] & theirs.any(1)[:, None, :])
    covered = theirs.float().mean((1, 2))
    assert covered.min() < 0.05 and covered.max() > 0.6 and 0.2 < covered.mean() < 0.5


def test_pixels_survive_being_numbers() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_pixels(to_float(pixels)), pixels)
    assert to_pixels(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_what_webp_leaves_is_further_from_the_image_at_lower_quality(few: Dataset) -> None:
    images = few.train.images[:8]
    apart = [np.abs(recompressed(images, quality).astype(int) - images).mean() for quality in (90, 50, 10)]
    assert 0 < apart[0] < apart[1] < apart[2] < 40
