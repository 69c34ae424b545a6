from __future__ import annotations

import numpy as np

from offramp.common.bundle.unknown import Unknown
from offramp.common.part.unknown import UnknownScore, features

PROBABILITIES = np.array([[0.75, 0.25]], np.float32)


def test_features_are_each_channels_mean_and_deviation() -> None:
    symbols = np.array([[[[1, 3], [1, 3]], [[7, 7], [7, 7]]]], np.uint8)

    assert np.array_equal(features(symbols), [[2, 7, 1, 0]])


def test_features_are_exact_at_the_largest_symbols() -> None:
    assert np.array_equal(features(np.full((1, 1, 64, 64), 255, np.uint8)), [[255, 0]])


def test_the_distance_is_from_the_answered_class_and_doubt_counts_twice() -> None:
    score = UnknownScore(
        Unknown(
            centres=[[2.0, 5.0, 1.0, 0.0], [9.0, 9.0, 9.0, 9.0]],
            deviations=[1.0, 0.5, 1.0, 1.0],
            threshold=4.4,
            false_alarms=0.05,
        )
    )
    symbols = np.array([[[[1, 3], [1, 3]], [[7, 7], [7, 7]]]], np.uint8)
    # (7 − 5) / 0.5 = 4 in one of four features; and 2 · 0.25.
    assert score.scores(symbols, PROBABILITIES) == 16 / 4 + 0.5
    assert score.are_unknown(symbols, PROBABILITIES)
    sure = np.array([[1, 0]], np.float32)
    assert score.scores(symbols, sure) == 4
    assert not score.are_unknown(symbols, sure)


def test_one_centre_serves_all_classes() -> None:
    unknown = Unknown(centres=[[1.0, 0.0]], deviations=[1.0, 1.0], threshold=1.0, false_alarms=0.05)
    symbols = np.ones((2, 1, 2, 2), np.uint8)
    probabilities = np.array([[1, 0], [0, 1]], np.float32)

    assert np.array_equal(UnknownScore(unknown).scores(symbols, probabilities), [0, 0])
