"""All contenders beside one another."""

from pathlib import Path

import numpy as np

from offramp.common.part.answer import Replies
from research.pareto import compare, points
from tests.research.pareto.coded import coded

BUNDLE = Path(__file__).parents[3] / "models" / "digits-mobilenetv2-exit12"


def test_an_accuracy_that_some_resamplings_miss_costs_without_end_in_them() -> None:
    right = np.array([[1, 1, 1, 0]], np.float32)
    only = points.Points(["only"], np.full((1, 4), 100, np.float32), right)
    found = compare.report({compare.OURS: only}, 0.75, about="made up")
    assert found.rows[0][compare.OURS] == "100.0 [100.0, ∞]"


def test_the_ratio_is_of_the_same_resampled_images() -> None:
    """A contender that costs half for each image costs half in every resampling: an interval of no width."""
    rng = np.random.default_rng(0)
    count = 200
    split = coded(
        (0.5 + rng.random(count) / 2).tolist(),
        rng.integers(0, 2, count).tolist(),
        [1] * count,
        rng.integers(200, 400, count).tolist(),
    )
    rival = points.split_points("rival", split.answers, split.answers.sent_right, split.payload)
    half = points.Points(rival.names, rival.sent / np.float32(2), rival.right)
    found = compare.report({compare.HYBRID: rival, compare.OURS: half}, 1.0, about="made up")
    assert [row[f"ratio to {compare.HYBRID}"] for row in found.rows] == ["0.500 [0.500, 0.500]"] * len(
        compare.DROPS
    )


def test_the_better_whole_model_is_the_one_to_reach() -> None:
    sure = np.full(4, 0.9, np.float32)
    answers = [Replies(np.array([0, 1, 1, 1]), sure), Replies(np.array([0, 0, 0, 1]), sure)]
    pictures = {name: points.Sent(np.full(4, 3072), answers) for name in ("raw pixels", "WebP 50")}
    split = coded([0.6, 0.9, 0.7, 0.8], [0, 1, 0, 1], [1, 1, 1, 0], [10, 20, 30, 40])
    found = compare.compare({"ours": split}, {}, pictures, {}, about="made up")
    assert found.rows[0]["accuracy"] == 75.0
