from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from offramp.common.errors import DataError
from offramp.training.calibrate.measure import Answers
from offramp.training.calibrate.unknown import (
    LEAST_DEVIATION,
    false_alarms_of,
    fit_unknown,
    scores_of,
    unknown_or_none,
    with_threshold,
)


def known(count: int, *, seed: int, classes: int = 3, channels: int = 4) -> Answers:
    """Codes whose channels' level depends on the class, which the exit names with doubt."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    levels = 100 + 20 * labels[:, None, None, None] + rng.normal(0, 3, (count, channels, 5, 5))
    logits = rng.normal(0, 1, (count, classes))
    logits[np.arange(count), labels] += 6
    symbols, early = np.rint(levels).astype(np.uint8), logits.astype(np.float32)
    return Answers(symbols, early, early, labels)


def test_of_new_known_inputs_the_chosen_share_is_unknown() -> None:
    # 95 % of a binomial of 4,000 at 10 %, beside the error of the threshold, which as many chose.
    unknown = fit_unknown(known(1000, seed=1), known(4000, seed=2), 0.1)

    assert abs(false_alarms_of(unknown, known(4000, seed=3)) / 4000 - 0.1) < 1.96 * np.sqrt(2 * 0.09 / 4000)
    assert false_alarms_of(unknown, known(4000, seed=2)) == 400


def test_codes_between_the_classes_are_unknown() -> None:
    unknown = fit_unknown(known(1000, seed=1), known(1000, seed=2))
    inputs = known(500, seed=3)
    # Among the levels of all classes together, at none of them.
    strange = replace(inputs, symbols=inputs.symbols + np.uint8(10))

    assert len(unknown.centres) == 3
    assert false_alarms_of(unknown, strange) == 500


def test_many_classes_share_a_centre() -> None:
    inputs = known(500, seed=1, classes=3, channels=4096)

    assert len(fit_unknown(inputs, inputs).centres) == 1


def test_a_channel_that_never_changes_allows_a_little() -> None:
    inputs = known(500, seed=1)
    inputs.symbols[:, 0] = 7

    unknown = fit_unknown(inputs, inputs)

    assert unknown.deviations[0] == unknown.deviations[4] == LEAST_DEVIATION


def test_another_temperature_chooses_another_threshold() -> None:
    held_out = known(1000, seed=2)
    unknown = fit_unknown(known(1000, seed=1), held_out)

    warmer = replace(held_out, temperature=5.0)
    again = with_threshold(unknown, warmer)

    assert again.threshold > unknown.threshold
    assert again.centres == unknown.centres
    assert (scores_of(again, warmer) > again.threshold).mean() == 0.05


def test_too_few_inputs_choose_nothing() -> None:
    with pytest.raises(DataError, match=r"39 images choose .* expected 40 at least"):
        fit_unknown(known(100, seed=1), known(39, seed=2))
    assert unknown_or_none(known(100, seed=1), known(39, seed=2)) is None
    assert unknown_or_none(known(100, seed=1), known(40, seed=2)) is not None
