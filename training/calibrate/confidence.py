"""How far a confidence can be trusted: its calibration error, and the temperature that mends it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

_BINS = 15
# Temperatures are searched between its inverse and itself.
_WIDEST = 50.0


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
    """The temperature with the least negative log-likelihood, in [1/50, 50].

    The loss is convex in 1 / T, so it has one minimum.
    """

    def loss(at: float) -> float:
        return negative_log_likelihood(logits, labels, math.exp(at))

    end = math.log(_WIDEST)
    found = minimize_scalar(loss, bounds=(-end, end), method="bounded", options={"xatol": 1e-9})
    # It comes close to an end, but never there.
    return math.exp(min((float(found.x), -end, end), key=loss))
