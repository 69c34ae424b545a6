from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from offramp.training.calibrate.measure import (
    Answers,
    lowest_threshold,
    run_graphs,
    with_better_answer,
)
from offramp.training.data.datasets import Labelled, to_float
from offramp.training.export import export
from offramp.training.models.networks import BACKBONES
from offramp.training.models.split_model import SplitModel
from offramp.training.quantize.quantize import quantize


def answers(confidence: list[float], early: list[int], final: list[int]) -> Answers:
    """Two classes, the label always 1. The confidence is set: not every one can come of two logits."""
    early_logits, final_logits = (np.eye(2, dtype=np.float32)[np.array(right)] for right in (early, final))
    labels = np.ones(len(confidence), np.int64)
    some = Answers(np.empty((len(labels), 0), np.uint8), early_logits, final_logits, labels)
    vars(some)["confidence"] = np.array(confidence, np.float32)
    return some


def test_an_image_exits_early_when_its_confidence_exceeds_the_threshold() -> None:
    some = answers([0.25, 0.5, 1.0], [1, 0, 1], [0, 1, 1])
    assert some.exits(0.0).tolist() == [True, True, True]
    assert some.exits(0.5).tolist() == [False, False, True]
    assert some.exits(1.0).tolist() == [False, False, False]
    assert some.accuracy(0.0) == pytest.approx(2 / 3)
    assert some.accuracy(0.25) == pytest.approx(1 / 3)
    assert some.accuracy(1.0) == pytest.approx(2 / 3)


def logits(*sure_of_the_label: float) -> NDArray[np.float32]:
    """Two classes, the label always 1."""
    odds = np.array(sure_of_the_label)
    return np.stack([np.zeros(len(odds)), np.log(odds / (1 - odds))], axis=1).astype(np.float32)


def test_both_exits_answer_where_that_is_more_often_right() -> None:
    """Each exit is sure where it is right, and the early one is surer where it is wrong than where not."""
    some = Answers(np.empty((2, 0), np.uint8), logits(0.1, 0.88), logits(0.99, 0.45), np.ones(2, np.int64))
    assert some.sent_right.tolist() == [True, False]
    both = with_better_answer(some)
    assert both.sent_answer == "both"
    assert both.right(1.0).tolist() == [True, True]
    assert both.right(0.89).tolist() == [False, True]


def test_the_server_answers_alone_where_the_early_exit_is_wrong_and_sure() -> None:
    some = Answers(np.empty((2, 0), np.uint8), logits(0.1, 0.88), logits(0.6, 0.6), np.ones(2, np.int64))
    assert replace(some, sent_answer="both").sent_right.tolist() == [False, True]
    assert with_better_answer(replace(some, sent_answer="both")).sent_answer == "server"
    # Of equals too: it needs nothing of the device.
    agreed = replace(some, early=some.final)
    assert with_better_answer(agreed).sent_answer == "server"


def test_the_temperature_is_that_of_the_early_exit() -> None:
    some = Answers(
        *(np.empty((1, 0), np.uint8), logits(0.1), logits(0.8), np.ones(1, np.int64)), sent_answer="both"
    )
    assert not some.sent_right[0]
    assert replace(some, temperature=4.0).sent_right[0]


def test_the_lowest_threshold_that_costs_no_more_than_asked() -> None:
    unsure_are_wrong = answers([0.25, 0.455, 0.9, 0.95], [0, 0, 1, 1], [1, 1, 1, 1])
    assert lowest_threshold(unsure_are_wrong, 0.0) == pytest.approx(0.46)
    assert lowest_threshold(unsure_are_wrong, 0.25) == 0.25
    assert lowest_threshold(unsure_are_wrong, 0.5) == 0.0


def test_a_threshold_is_the_hundredth_that_it_prints_as() -> None:
    for hundredths in range(1, 100):
        unsure_is_wrong = answers([(hundredths - 0.5) / 100, 1.0], [0, 1], [1, 1])
        assert lowest_threshold(unsure_is_wrong, 0.0) == float(f"0.{hundredths:02d}")


def test_a_final_exit_no_better_than_the_early_one_is_used_where_it_helps() -> None:
    each_has_half = answers([0.25, 0.95, 0.9, 0.25], [0, 1, 1, 0], [1, 0, 0, 1])
    assert lowest_threshold(each_has_half, 0.0) == 0.25


def test_where_only_the_final_exit_will_do() -> None:
    sure_and_wrong = answers([1.0, 1.0], [0, 0], [1, 1])
    assert lowest_threshold(sure_and_wrong, 0.0) == 1.0


def test_confidence_is_the_largest_probability_at_the_temperature() -> None:
    some = answers([0.0], [1], [1])
    del vars(some)["confidence"]
    assert some.confidence[0] == pytest.approx(1 / (1 + np.exp(-1)))
    assert replace(some, temperature=2.0).confidence[0] == pytest.approx(1 / (1 + np.exp(-0.5)))


def test_batches_on_several_threads_come_back_in_order() -> None:
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (150, 3, 32, 32), dtype=np.uint8)
    model = SplitModel(BACKBONES["tiny"](10, 32), 3)
    graphs = export(quantize(model, to_float(torch.from_numpy(pixels[:8]))))
    data = Labelled(pixels, np.arange(150) % 10)
    one, three = (run_graphs(graphs, data, threads) for threads in (1, 3))
    assert np.array_equal(one.symbols, three.symbols)
    assert np.array_equal(one.final, three.final)
    assert len(one) == 150
    assert np.array_equal(one.take(np.array([149])).early[0], one.early[149])
