import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.training.calibrate.confidence import ece, fit_temperature, negative_log_likelihood


def test_expected_calibration_error_by_hand() -> None:
    confidence = np.array([0.55, 0.65, 0.95, 0.95], np.float32)
    right = np.array([True, False, True, True])
    # With two bins all lie in the upper one: |3/4 - 0.775|.
    assert ece(confidence, right, bins=2) == pytest.approx(0.025)
    # With ten, each of the first two is alone: (0.45 + 0.65 + 2 * 0.05) / 4.
    assert ece(confidence, right, bins=10) == pytest.approx(0.3)
    assert ece(np.ones(3, np.float32), np.ones(3, bool)) == 0
    assert ece(np.empty(0, np.float32), np.empty(0, bool)) == 0


@pytest.mark.parametrize("true", [0.3, 1.0, 2.5, 10.0])
def test_the_temperature_that_the_labels_were_drawn_at_is_found(true: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (20_000, 5))
    gumbel = rng.gumbel(size=logits.shape)
    labels = (logits / true + gumbel).argmax(axis=1)
    found = fit_temperature(logits.astype(np.float32), labels)
    assert found == pytest.approx(true, rel=0.1)


@given(st.integers(0, 2**32 - 1))
def test_no_temperature_fits_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (30, 4)).astype(np.float32)
    labels = rng.integers(0, 4, 30)
    best = negative_log_likelihood(logits, labels, fit_temperature(logits, labels))
    for other in np.geomspace(1 / 50, 50, 40):
        assert best <= negative_log_likelihood(logits, labels, float(other)) + 1e-9
