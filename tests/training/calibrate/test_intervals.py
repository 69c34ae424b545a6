import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.training.calibrate.intervals import bootstrap_mean, wilson


@given(trials=st.integers(1, 10_000), share=st.floats(0, 1))
def test_wilsons_interval_holds_the_share(trials: int, share: float) -> None:
    successes = round(share * trials)
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert high - low < 1


def test_wilsons_interval_of_a_known_case() -> None:
    low, high = wilson(81, 263)
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 0) == (0, 1)


def test_the_bootstrap_covers_what_theory_says() -> None:
    values = np.random.default_rng(1).normal(10, 2, 400)
    low, high = bootstrap_mean(values, seed=0)
    spread = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.03)
    assert bootstrap_mean(values, seed=0) == (low, high)
    assert bootstrap_mean(np.full(5, 3.0), seed=0) == (3, 3)
    assert bootstrap_mean(np.array([7.0]), seed=0) == (7, 7)
