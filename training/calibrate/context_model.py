"""The model of ``codec/context.py`` from calibration symbols: a log-linear regression, fitted with Adam."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offramp.common.codec.context import AROUND, MAX_REACH, NEAR, ContextModel, bits_at

STEPS, BATCH, LEARNING_RATE = 1000, 1024, 0.02
RARE = 1 / 2000
"""Share of the symbols that may be escapes; a reach that leaves more of them is too short."""

# Logits of the model are in 1/32 of a bit, the regression's are in nats.
_UNIT = 32 / np.log(2)

Floats = NDArray[np.float32]


def fit_context(symbols: NDArray[np.uint8], *, seed: int = 0) -> ContextModel:
    """The model for symbols, uint8 [N, C, H, W]."""
    _, channels, height, width = symbols.shape
    mode = _modes(symbols)
    distance = symbols.astype(np.int16) - mode[:, None, None]
    reach = _reach(distance)
    inputs, k = _inputs(distance), _by_place(distance)
    row, column = (part.reshape(-1) for part in np.indices((height, width)))
    index = _classes(k, reach)
    m_of, s_of = (steps.astype(np.float32) for steps in _steps(reach))

    counts = np.stack([np.bincount(index[:, c], minlength=2 * reach + 2) for c in range(channels)])
    values: dict[str, Floats] = {
        "base": np.log((counts + 0.5) / (counts + 0.5).sum(axis=1, keepdims=True)).astype(np.float32),
        "rows": np.zeros((height, channels, 2), np.float32),
        "columns": np.zeros((width, channels, 2), np.float32),
        "weights": np.zeros((inputs.shape[1], channels, 2), np.float32),
    }
    # A symbol knows nothing of those that come after it.
    by_place = np.ones((2, AROUND + 1, channels, channels), np.float32)
    by_place[:, AROUND] = np.arange(channels)[:, None] < np.arange(channels)
    known = by_place.reshape(-1, channels, 1)
    adam = _Adam(values)
    rng = np.random.default_rng(seed)
    for step in range(STEPS):
        at = rng.integers(0, len(index), BATCH)
        r, c = row[at % len(row)], column[at % len(row)]
        x = inputs[at].astype(np.float32)
        both = (x @ values["weights"].reshape(len(known), -1)).reshape(BATCH, channels, 2)
        both += values["rows"][r] + values["columns"][c]
        logits = values["base"] + both[..., :1] * m_of + both[..., 1:] * s_of
        error = np.exp(logits - _largest(logits))
        error /= error.sum(axis=-1, keepdims=True)
        error[np.arange(BATCH)[:, None], np.arange(channels), index[at]] -= 1
        error /= BATCH
        of_both = np.stack([error @ m_of, error @ s_of], axis=-1)
        gradients = {
            "base": error.sum(axis=0),
            "rows": _summed(of_both, r, height),
            "columns": _summed(of_both, c, width),
            "weights": (x.T @ of_both.reshape(BATCH, -1)).reshape(len(known), channels, 2) * known,
        }
        adam.step(gradients, LEARNING_RATE * (1 + np.cos(np.pi * step / STEPS)) / 2)
        for name in ("rows", "columns", "weights"):
            np.clip(values[name], -127 / _UNIT, 127 / _UNIT, out=values[name])
    whole = {name: np.rint(value * _UNIT) for name, value in values.items()}
    weights = whole["weights"].reshape(2, (AROUND + 1) * channels, channels, 2)
    return ContextModel(
        (channels, height, width),
        mode,
        np.clip(whole["base"], -(1 << 15), (1 << 15) - 1).astype("<i2"),
        np.ascontiguousarray(whole["rows"].transpose(1, 0, 2)).astype(np.int8),
        np.ascontiguousarray(whole["columns"].transpose(1, 0, 2)).astype(np.int8),
        np.ascontiguousarray(weights.transpose(2, 3, 0, 1)).astype(np.int8),
    )


def context_bits(model: ContextModel, symbols: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Bits of each channel of symbols, uint8 [N, C, H, W], in the model: its cross-entropy, [N, C]."""
    images, channels, height, width = symbols.shape
    reach = model.reach
    distance = symbols.astype(np.int16) - model.mode[:, None, None]
    inputs, k = _inputs(distance).astype(np.int64), _by_place(distance)
    weights = model.weights.astype(np.int64).transpose(2, 3, 0, 1).reshape(inputs.shape[1], -1)
    both = (inputs @ weights).reshape(images, height, width, channels, 2)
    both += model.rows.transpose(1, 0, 2)[:, None]
    both += model.columns.transpose(1, 0, 2)
    m_of, s_of = _steps(reach)
    logits = model.base.astype(np.int64) + both[..., :1] * m_of + both[..., 1:] * s_of
    logits = logits.reshape(-1, channels, 2 * reach + 2)
    share = np.exp2((logits - logits.max(axis=-1, keepdims=True)) / 32)
    # As in `frequencies`, but for the rounding: no class is below one slot.
    bits_of = [bits_at(left) for left in range(channels * height * width - 1, -1, -1)]
    total = np.tile(2.0 ** np.array(bits_of).reshape(-1, channels), (images, 1))
    slots = 1 + share / share.sum(axis=-1, keepdims=True) * (total[..., None] - share.shape[-1])
    taken = np.take_along_axis(slots, _classes(k, reach)[..., None], -1)[..., 0]
    bits = np.log2(total / taken) + 8 * (abs(k) > reach)
    return np.asarray(bits.reshape(images, -1, channels).sum(axis=1))


def _modes(symbols: NDArray[np.uint8]) -> NDArray[np.uint8]:
    planes = (symbols[:, c].reshape(-1) for c in range(symbols.shape[1]))
    return np.array([np.bincount(plane, minlength=256).argmax() for plane in planes], np.uint8)


def _reach(distance: NDArray[np.int16]) -> int:
    counts = np.bincount(abs(distance).reshape(-1), minlength=256)
    farther = counts[::-1].cumsum()[::-1]
    return next((r for r in range(1, MAX_REACH) if farther[r + 1] <= RARE * distance.size), MAX_REACH)


def _classes(k: NDArray[np.int16], reach: int) -> NDArray[np.int64]:
    """`class_of`, of an array."""
    size = abs(k.astype(np.int64))
    return np.where(size <= reach, 2 * size - (k < 0), 2 * reach + 1)


def _steps(reach: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What m and s are multiplied by in each class; the escape is one past the reach, on both sides."""
    size = np.arange(1, reach + 1)
    signed = np.stack([-size, size], axis=1).reshape(-1)
    return np.concatenate([[0], signed, [0]]), np.concatenate([[0], abs(signed), [reach + 1]])


def _by_place(planes: NDArray[np.int16]) -> NDArray[np.int16]:
    """[N, C, H, W] to [N · H · W, C]."""
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)).reshape(-1, planes.shape[1])


def _inputs(distance: NDArray[np.int16]) -> NDArray[np.int8]:
    """What each place's symbols are predicted from: distances, then their sizes, int8 [N · H · W, 10 · C].

    In both the channels at the left, upper, upper left, upper right and own place.
    """
    height, width = distance.shape[2:]
    near = np.clip(distance, -NEAR, NEAR).astype(np.int8)
    padded = np.pad(near, ((0, 0), (0, 0), (1, 0), (1, 1)))
    parts = [
        padded[:, :, 1:, :width],
        padded[:, :, :height, 1 : width + 1],
        padded[:, :, :height, :width],
        padded[:, :, :height, 2:],
        near,
    ]
    found = _by_place(np.concatenate(parts, axis=1).astype(np.int16)).astype(np.int8)
    return np.concatenate([found, abs(found)], axis=1)


def _largest(logits: Floats) -> Floats:
    """``logits.max(axis=-1, keepdims=True)``, ten times faster where the last axis is short."""
    found = logits[..., 0].copy()
    for each in range(1, logits.shape[-1]):
        np.maximum(found, logits[..., each], out=found)
    return found[..., None]


def _summed(values: Floats, at: NDArray[np.int64], count: int) -> Floats:
    found = np.zeros((count, *values.shape[1:]), np.float32)
    np.add.at(found, at, values)
    return found


class _Adam:
    """Kingma and Ba, 2015, in place."""

    def __init__(self, values: dict[str, Floats]) -> None:
        self._values, self._done = values, 0
        self._mean = {name: np.zeros_like(value) for name, value in values.items()}
        self._square = {name: np.zeros_like(value) for name, value in values.items()}

    def step(self, gradients: dict[str, Floats], rate: float) -> None:
        self._done += 1
        for name, gradient in gradients.items():
            mean, square = self._mean[name], self._square[name]
            mean += 0.1 * (gradient - mean)
            square += 0.001 * (gradient**2 - square)
            unbiased = np.sqrt(square / (1 - 0.999**self._done)) + 1e-8
            self._values[name] -= rate / (1 - 0.9**self._done) * mean / unbiased
