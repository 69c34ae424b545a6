import numpy as np
import pytest

from offramp.training.measure import Answers, choose_threshold


def answers(confidence: list[float], early: list[int], final: list[int]) -> Answers:
    return Answers(
        np.empty((len(confidence), 0), np.uint8),
        np.array(confidence, np.float32),
        np.array(early, bool),
        np.array(final, bool),
    )


def test_an_image_exits_early_when_its_confidence_exceeds_the_threshold() -> None:
    some = answers([0.25, 0.5, 1.0], [1, 0, 1], [0, 1, 1])
    assert some.exits(0.0).tolist() == [True, True, True]
    assert some.exits(0.5).tolist() == [False, False, True]
    assert some.exits(1.0).tolist() == [False, False, False]
    assert some.accuracy(0.0) == pytest.approx(2 / 3)
    assert some.accuracy(0.25) == pytest.approx(1 / 3)
    assert some.accuracy(1.0) == pytest.approx(2 / 3)


def test_the_lowest_threshold_that_costs_no_more_than_asked() -> None:
    unsure_are_wrong = answers([0.25, 0.455, 0.9, 0.95], [0, 0, 1, 1], [1, 1, 1, 1])
    assert choose_threshold(unsure_are_wrong, 0.0) == pytest.approx(0.46)
    assert choose_threshold(unsure_are_wrong, 0.25) == 0.25
    assert choose_threshold(unsure_are_wrong, 0.5) == 0.0


def test_where_only_the_final_exit_will_do() -> None:
    sure_and_wrong = answers([1.0, 1.0], [0, 0], [1, 1])
    assert choose_threshold(sure_and_wrong, 0.0) == 1.0
