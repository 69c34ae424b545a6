"""What photos cost as pictures, measured by the unsplit model."""

import numpy as np
import pytest
import torch
from torch import Tensor

from offramp.common.inputs.formats import jpeg, sent, webp
from offramp.training.calibrate.measure import Answers
from offramp.training.data.datasets import Labelled
from offramp.training.split.photos import Normalise
from offramp.training.split.rivals import Point, cheapest, compare


def photos() -> Labelled:
    """Dark ones are of class 0, bright ones of class 1."""
    levels = np.where(np.arange(20) % 2 == 0, 40, 210)
    images = np.broadcast_to(levels[:, None, None, None], (20, 3, 16, 16)).astype(np.uint8)
    return Labelled(images, (levels > 100).astype(np.int64))


def whole(x: Tensor) -> Tensor:
    bright = x.mean((1, 2, 3))
    return torch.stack([-bright, bright], dim=1)


def test_pictures_are_measured_by_the_unsplit_model() -> None:
    data = photos()
    right = np.eye(2, dtype=np.float32)[data.labels] * 8
    unsure = np.where((np.arange(20) < 10)[:, None], right, 0).astype(np.float32)
    seen = Answers(np.zeros((20, 1, 1, 1), np.uint8), unsure, right, data.labels)
    formats = [webp(50), jpeg(50)]
    found = compare(
        [whole], Normalise((0.5,) * 3, (0.5,) * 3), data, seen, np.full(20, 7, np.int64), formats=formats
    )
    assert [(each.name, each.accuracy) for each in found.pictures] == [("WebP 50", 1.0), ("JPEG 50", 1.0)]
    sizes, _ = sent(webp(50), data.images)
    assert found.pictures[0].bytes_mean == sizes.mean()
    middle = 80
    assert found.ours[middle] == Point("T_c = 0.8", 3.5, 1.0)
    assert found.hybrids[middle].bytes_mean == pytest.approx(sizes[10:].sum() / 20)


def test_each_picture_is_answered_by_the_model_that_is_right_more_often() -> None:
    data = photos()
    right = np.eye(2, dtype=np.float32)[data.labels] * 8
    seen = Answers(np.zeros((20, 1, 1, 1), np.uint8), right, right, data.labels)
    values = Normalise((0.5,) * 3, (0.5,) * 3)
    sizes = np.full(20, 7, np.int64)

    def wrong(x: Tensor) -> Tensor:
        return -whole(x)

    alone = compare([wrong], values, data, seen, sizes, formats=[webp(50)])
    assert alone.pictures[0].accuracy == 0 and alone.tuned == 0
    both = compare([wrong, whole], values, data, seen, sizes, formats=[webp(50)], tuned=3)
    assert both.pictures[0].accuracy == 1 and both.tuned == 3


def test_the_cheapest_point_is_often_enough_right() -> None:
    points = [Point("a", 1, 0.5), Point("b", 5, 0.9), Point("c", 4, 0.95)]
    assert cheapest(points, 0.9) == points[2] and cheapest(points, 0.96) is None
