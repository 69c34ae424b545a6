from typing import Any

import numpy as np
import pytest

from offramp.common.errors import DataError
from offramp.common.part.answer import both_exits
from offramp.common.part.engine import softmax
from offramp.training.calibrate.intervals import wilson
from offramp.training.calibrate.measure import Answers
from offramp.training.calibrate.sent_pictures import SentAsPictures
from offramp.training.calibrate.threshold import ThresholdChoice, choose_threshold


def answers(count: int = 200) -> Answers:
    """The more confident the early exit, the more often it is right; the final exit is right in 9 of 10."""
    sure = np.linspace(0.5, 0.995, count).astype(np.float32)
    rng = np.random.default_rng(0)
    right = rng.random(count) < sure
    final = np.arange(count) % 10 != 0
    eye = np.eye(2, dtype=np.float32)
    some = Answers(
        np.empty((count, 0), np.uint8), eye[right.astype(int)], eye[final.astype(int)], np.ones(count, int)
    )
    vars(some)["confidence"] = sure
    return some


PAYLOADS = np.full(200, 100)


def test_an_accuracy_floor_takes_the_fewest_bytes() -> None:
    seen = answers()
    found = choose_threshold(seen, PAYLOADS, accuracy=0.85)
    assert found.accuracy >= 0.85
    below = [step / 100 for step in range(101) if step / 100 < found.threshold]
    assert all(seen.accuracy(at) < 0.85 for at in below)
    assert found.bytes_mean == pytest.approx(100 * (1 - found.exit_rate))
    assert found.accuracy_interval == wilson(round(found.accuracy * 200), 200)
    low, high = found.bytes_interval
    assert low < found.bytes_mean < high


def test_sure_asks_more() -> None:
    found = choose_threshold(answers(), PAYLOADS, accuracy=0.8, sure=True)
    assert found.accuracy_interval[0] >= 0.8
    assert found.threshold > choose_threshold(answers(), PAYLOADS, accuracy=0.8).threshold
    budget = choose_threshold(answers(), PAYLOADS, budget=50.0, sure=True)
    assert budget.bytes_interval[1] <= 50


def test_a_drop_is_counted_from_the_best_of_all_thresholds() -> None:
    seen = answers()
    best = max(seen.accuracy(step / 100) for step in range(101))
    assert best > seen.final_right.mean()
    found = choose_threshold(seen, PAYLOADS, drop=0.05)
    assert best - 0.05 <= found.accuracy < best
    assert choose_threshold(seen, PAYLOADS, drop=1.0).threshold == 0


def test_a_byte_budget_takes_the_most_accurate() -> None:
    seen = answers()
    found = choose_threshold(seen, PAYLOADS, budget=40.0)
    assert found.bytes_mean <= 40
    cheap = [s / 100 for s in range(101) if 100 * (1 - seen.exits(s / 100).mean()) <= 40]
    assert found.accuracy == max(seen.accuracy(at) for at in cheap)
    assert choose_threshold(seen, PAYLOADS, budget=0.0).exit_rate == 1


def test_goals_that_cannot_be_met() -> None:
    with pytest.raises(
        DataError, match=r"no threshold reaches an accuracy of 0.9990 on these images: the best"
    ):
        choose_threshold(answers(), PAYLOADS, accuracy=0.999)
    with pytest.raises(DataError, match="with 95 % confidence"):
        choose_threshold(answers(), PAYLOADS, accuracy=0.9, sure=True)
    unsure = answers()
    vars(unsure)["confidence"] = np.zeros(200, np.float32)
    with pytest.raises(DataError, match=r"no threshold sends 40 B an image or fewer: at 0 it is 100\.0"):
        choose_threshold(unsure, PAYLOADS, budget=40.0)


def three_exits(count: int = 300) -> tuple[Answers, list[SentAsPictures]]:
    """Ten classes; the server is right more often than the early exit, and where it is sure; a picture always
    is, at a price that differs from image to image."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 10, count)
    eye = np.eye(10, dtype=np.float32)[labels]
    early, final = (
        (eye * strength + rng.normal(size=eye.shape)).astype(np.float32) for strength in (2.0, 3.0)
    )
    seen = Answers(np.empty((count, 0), np.uint8), early, final, labels, sent_answer="both")
    return seen, [
        SentAsPictures(20, rng.integers(200, 300, count), rng.random(count) < 0.93),
        SentAsPictures(75, rng.integers(500, 900, count), np.ones(count, bool)),
    ]


def by_hand(
    seen: Answers, payloads: np.ndarray, pictures: list[SentAsPictures]
) -> list[tuple[float, float, float, float, int]]:
    """Of every pair of thresholds and every quality: bytes, accuracy, and these three."""
    early = np.exp(seen.early) / np.exp(seen.early).sum(1, keepdims=True)
    both = both_exits(early, seen.final.argmax(1), softmax(seen.final).max(1))
    grid = np.arange(101) / 100
    found = []
    for first in grid:
        sent = early.max(1) <= np.float32(first)
        answer = np.where(sent, both.argmax(1) == seen.labels, early.argmax(1) == seen.labels)
        found.append((np.where(sent, payloads, 0).mean(), answer.mean(), first, 0.0, 0))
        for one in pictures:
            for second in grid:
                again = sent & (both.max(1) <= np.float32(second))
                total = np.where(sent, payloads, 0) + np.where(again, one.payloads, 0)
                right = np.where(again, one.right, answer).mean()
                found.append((total.mean(), right, first, second, one.quality))
    return found


def run(choice: ThresholdChoice) -> tuple[float, float]:
    return choice.bytes_mean, choice.accuracy


@pytest.mark.parametrize(
    ("goal", "value"), [("accuracy", 0.9), ("accuracy", 0.99), ("drop", 0.02), ("budget", 60)]
)
def test_pictures_are_chosen_together_with_t_c(goal: str, value: float) -> None:
    seen, pictures = three_exits()
    payloads = np.full(len(seen), 70)
    asked: dict[str, Any] = {goal: value}
    found = choose_threshold(seen, payloads, pictures=pictures, **asked)
    every = by_hand(seen, payloads, pictures)
    best = max(right for _, right, *_ in every)
    if goal == "budget":
        sent, right = min((one[:2] for one in every if one[0] <= value), key=lambda one: (-one[1], one[0]))
    else:
        floor = value if goal == "accuracy" else best - value
        sent, right = min(one[:2] for one in every if one[1] >= floor - 1e-12)
    assert run(found) == pytest.approx((sent, right))
    picture = found.picture
    assert picture is not None
    # What it names is what it costs.
    named = (found.threshold, picture.threshold, picture.quality)
    own = next(one for one in every if one[2:] == named)
    assert run(found) == pytest.approx(own[:2])
    low, high = found.bytes_interval
    assert low < found.bytes_mean < high


def test_pictures_that_bring_nothing_are_left_out() -> None:
    seen, (poor, _) = three_exits()
    none = SentAsPictures(20, poor.payloads, np.zeros(len(seen), bool))
    payloads = np.full(len(seen), 70)
    assert choose_threshold(seen, payloads, pictures=[none], drop=0.0) == choose_threshold(
        seen, payloads, drop=0.0
    )


def test_sure_of_pictures_too() -> None:
    seen, pictures = three_exits()
    payloads = np.full(len(seen), 70)
    floor = choose_threshold(seen, payloads, pictures=pictures, accuracy=0.93, sure=True)
    assert floor.accuracy_interval[0] >= 0.93
    within = choose_threshold(seen, payloads, pictures=pictures, budget=100.0, sure=True)
    assert within.bytes_interval[1] <= 100 and within.picture is not None
    with pytest.raises(DataError, match=r"no threshold reaches an accuracy of 1\.0000 with 95 % confidence"):
        choose_threshold(seen, payloads, pictures=pictures, accuracy=1.0, sure=True)
