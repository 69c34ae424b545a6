import numpy as np
import pytest

from offramp.common.bundle.drift import bin_of
from offramp.training.calibrate import card
from offramp.training.calibrate.card import CARD_THRESHOLDS, figures, symbol_counts_in_parts
from offramp.training.calibrate.codebook import symbol_counts
from offramp.training.calibrate.measure import Answers


def answers(count: int = 40) -> Answers:
    rng = np.random.default_rng(0)
    symbols = rng.integers(0, 9, (count, 2, 4, 4)).astype(np.uint8)
    early, final = (rng.normal(0, 2, (count, 3)).astype(np.float32) for _ in range(2))
    return Answers(symbols, early, final, rng.integers(0, 3, count))


def test_counts_in_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "_SYMBOLS_AT_A_TIME", 7 * 32)
    symbols = answers().symbols
    assert np.array_equal(symbol_counts_in_parts(symbols), symbol_counts(symbols))


def test_a_row_for_each_threshold_and_the_bundles_own() -> None:
    seen = answers()
    payloads = np.arange(100, 140)
    found = figures(seen, (0.25, 0.75), payloads, 0.55)
    assert [row.threshold for row in found.thresholds] == sorted({*CARD_THRESHOLDS, 0.55})
    assert found.images == 40 and found.payload_bytes_mean == payloads.mean()
    assert (found.accuracy_early_float, found.accuracy_final_float) == (0.25, 0.75)
    own = next(row for row in found.thresholds if row.threshold == 0.55)
    exits = seen.exits(0.55)
    assert own.exit_rate == exits.mean()
    assert own.payload_bytes_mean == np.where(exits, 0, payloads).mean()
    assert own.accuracy == seen.accuracy(0.55)


def test_agreement_is_of_the_images_that_exit() -> None:
    seen = answers()
    found = figures(seen, (0.25, 0.75), np.arange(100, 140), 0.55).agreement
    assert found is not None and [row.threshold for row in found] == sorted({*CARD_THRESHOLDS, 0.55})
    same = seen.early.argmax(axis=1) == seen.final.argmax(axis=1)
    for row in found:
        exits = seen.exits(row.threshold)
        assert (row.exits, row.agree) == (exits.sum(), (exits & same).sum())
    assert found[0].exits == 40 and found[-1].exits == 0 and 0 < found[0].agree < 40


def test_what_drift_is_measured_from_is_of_all_images_as_the_device_counts_them() -> None:
    seen = answers()
    found = figures(seen, (0.25, 0.75), np.arange(100, 140), 0.55).drift
    assert found is not None and found.images == 40
    bins = [bin_of(found.edges, float(value)) for value in seen.confidence]
    assert found.confidence == np.bincount(bins, minlength=len(found.edges) + 1).tolist()
    assert found.classes == np.bincount(seen.early.argmax(axis=1), minlength=3).tolist()
