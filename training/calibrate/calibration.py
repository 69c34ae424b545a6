"""How far a confidence can be trusted, and how sure a measured share is."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_BINS = 15
# Temperatures are searched between its inverse and itself.
_WIDEST = 50.0
_STEPS = 80


def ece(confidence: NDArray[np.float32], right: NDArray[np.bool_], bins: int = _BINS) -> float:
    """Expected calibration error: |accuracy - mean confidence| of each of ``bins`` even bins of confidence,
    weighted by the images in it (Guo et al., 2017).

    Args:
        confidence: largest class probability, float32 [N], in [0, 1].
        right: whether that class is the label, bool [N].
        bins: how many.
    """
    if not len(confidence):
        return 0.0
    index = np.minimum((confidence.astype(np.float64) * bins).astype(np.int64), bins - 1)
    gap = np.bincount(index, right.astype(np.float64) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def negative_log_likelihood(
    logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float
) -> float:
    """Mean of -log p(label), logits float32 [N, K] divided by the temperature, labels int64 [N]."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    picked = scaled[np.arange(len(labels)), labels]
    return float((np.log(np.exp(scaled).sum(axis=1)) - picked).mean())


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature with the least negative log-likelihood (golden section on its logarithm).

    The loss is convex in 1 / T, so it has one minimum; answers lie in [1/50, 50].
    """
    ratio = (math.sqrt(5) - 1) / 2
    low, high = -math.log(_WIDEST), math.log(_WIDEST)

    def loss(at: float) -> float:
        return negative_log_likelihood(logits, labels, math.exp(at))

    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(right)
    return math.exp((low + high) / 2)


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share; z = 1.96 covers 95 %."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # At shares of 0 and 1 the ends are exact, rounding aside.
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def bootstrap_mean(
    values: NDArray[np.float64], *, seed: int, resamples: int = 2000, coverage: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of float64 [N]."""
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(resamples)])
    tail = (1 - coverage) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
