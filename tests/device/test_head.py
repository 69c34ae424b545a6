"""The decision at the early exit: T_c = 0 keeps every image here, T_c = 1 none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from offramp.common.part.engine import Engine
from offramp.device.head import EarlyExit, run_head
from tests import toy


def exit_with(confidence: float) -> EarlyExit:
    return EarlyExit(np.zeros(toy.SHAPE, np.uint8), 0, confidence, np.array([confidence], np.float32))


@pytest.mark.parametrize("confidence", [1e-30, 1 / 3, 0.5, 1.0])
def test_a_threshold_of_0_keeps_all_and_1_keeps_none(confidence: float) -> None:
    assert exit_with(confidence).is_confident(0.0)
    assert not exit_with(confidence).is_confident(1.0)


def test_the_confidence_must_exceed_the_threshold() -> None:
    assert not exit_with(0.8).is_confident(0.8)
    assert exit_with(math.nextafter(0.8, 1)).is_confident(0.8)
    assert not exit_with(math.nextafter(0.8, 0)).is_confident(0.8)


def test_a_confidence_that_is_no_number_is_never_enough() -> None:
    assert not exit_with(math.nan).is_confident(0.0)


def test_the_head_gives_symbols_class_and_its_probability(toy_engine: Engine) -> None:
    images = toy.images(50)
    symbols, probabilities = toy_engine.head(images)
    for image, expected, row in zip(images, symbols, probabilities, strict=True):
        found = run_head(toy_engine, image)
        np.testing.assert_array_equal(found.symbols, expected)
        assert found.class_index == row.argmax()
        assert found.confidence == pytest.approx(row.max(), abs=1e-6)
        assert 0 < found.confidence <= 1
