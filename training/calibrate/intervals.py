"""How sure a measured share or mean is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

COVERAGE = 0.95
_RESAMPLES = 2000
_AT_A_TIME = 100


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a share; it covers 95 %."""
    if trials == 0:
        return 0.0, 1.0
    share = stats.binomtest(successes, trials).proportion_ci(COVERAGE, method="wilson")
    return float(share.low), float(share.high)


def bootstrap_mean(values: NDArray[np.float64], *, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of float64 [N]; it covers 95 %."""
    if len(values) < 2:
        return float(values.mean()), float(values.mean())
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=_AT_A_TIME,
        confidence_level=COVERAGE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
