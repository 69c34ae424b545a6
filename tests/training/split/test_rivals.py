"""Pictures beside a split, and the sentence that says which to send."""

import numpy as np
import pytest
import torch
from torch import Tensor

from offramp.training.calibrate.measure import Answers
from offramp.training.data.datasets import Labelled
from offramp.training.split.photos import Normalise
from offramp.training.split.report import verdict
from offramp.training.split.rivals import Comparison, Point, cheapest, coded, compare


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
    formats = [("WebP", 50), ("JPEG", 50)]
    found = compare(
        whole, Normalise((0.5,) * 3, (0.5,) * 3), data, seen, np.full(20, 7, np.int64), formats=formats
    )
    assert [(each.name, each.accuracy) for each in found.pictures] == [("WebP 50", 1.0), ("JPEG 50", 1.0)]
    sizes, _ = coded(data.images, "WebP", 50)
    assert found.pictures[0].bytes_mean == sizes.mean()
    middle = 80
    assert found.ours[middle] == Point("T_c = 0.8", 3.5, 1.0)
    assert found.hybrids[middle].bytes_mean == pytest.approx(sizes[10:].sum() / 20)


def comparison(ours: float, picture: float, hybrid: float, accuracy: float = 0.9) -> Comparison:
    return Comparison(
        100,
        (Point("T_c = 0.5", ours, accuracy),),
        (Point("WebP 5", picture, 0.9), Point("JPEG 5", 10 * picture, 0.95)),
        (Point("early exit at T_c = 0.5, then WebP 5", hybrid, 0.92),),
    )


def test_the_verdict_says_what_is_saved() -> None:
    text = verdict(comparison(20, 1000, 300), "T_c = 0.5", 0.91)
    assert text == (
        "The split is 90.0% right (1.0 points below the unsplit model) for 20.0 B a photo on average; WebP or "
        "JPEG needs 50 times as many for as much (1,000 B, WebP 5); early exit + WebP needs 15 times as many "
        "for as much (300 B, early exit at T_c = 0.5, then WebP 5)."
    )


def test_the_verdict_says_so_when_a_picture_is_better() -> None:
    text = verdict(comparison(400, 1000, 300), "T_c = 0.5", 0.89)
    assert text.startswith(
        "Send the picture: early exit at T_c = 0.5, then WebP 5 is 92.0% right for 300.0 B"
    )
    assert "no worse than the unsplit model" in text


def test_the_verdict_says_so_when_nothing_has_to_be_sent() -> None:
    assert verdict(comparison(0, 1000, 0), "T_c = 0.5", 0.9).startswith("Nothing has to be sent: ")


def test_the_cheapest_point_is_often_enough_right() -> None:
    points = [Point("a", 1, 0.5), Point("b", 5, 0.9), Point("c", 4, 0.95)]
    assert cheapest(points, 0.9) == points[2] and cheapest(points, 0.96) is None
