"""How minutes are shared out."""

import numpy as np
import pytest

from offramp.training.data.datasets import Dataset, Labelled
from offramp.training.split.shares import LEAST, MOST_AFTER, seconds_after, shares, slowness
from offramp.training.split.work import Clock


class Now:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_what_comes_after_training_has_its_time() -> None:
    now = Now()
    clock = Clock(1000, now)
    early = shares(clock, 200)
    assert 0 < early.classifier < early.cache < early.code == pytest.approx(0.8)
    assert shares(clock, 1).code == 1 - LEAST
    # Where that alone is too long, training still has some, and the user is warned.
    assert shares(clock, 5000).code == 1 - MOST_AFTER
    # What was spent on reading photos is nobody's.
    now.seconds = 400
    late = shares(clock, 200)
    assert late.code == pytest.approx(0.8)
    assert late.classifier - 0.4 == pytest.approx(early.classifier / 2)
    now.seconds = 2000
    over = shares(clock, 200)
    assert over.classifier == over.cache == over.code


def test_without_a_limit_nothing_ends_early() -> None:
    assert shares(Clock(None), 100).classifier == 1


def test_what_comes_after_takes_longer_with_more_photos_and_rivals() -> None:
    def data(count: int) -> Dataset:
        part = Labelled(np.zeros((count, 3, 8, 8), np.uint8), np.zeros(count, np.int64))
        return Dataset("x", ("a", "b"), part, part, part, "")

    few, many = (seconds_after(data(count), 0.01) for count in (100, 400))
    assert few < many < seconds_after(data(400), 0.01, slow=2)
    assert many < seconds_after(data(400), 0.02) and many < seconds_after(data(400), 0.01, models=2)


def test_a_busy_machine_is_slow() -> None:
    now = Now()
    clock = Clock(None, now)
    assert slowness(clock) == 1
    now.seconds = 1e9
    assert slowness(clock) == 20
