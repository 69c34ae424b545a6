"""How far a graph's outputs are from those of the float graph that it was made of, by what they are for.

Logits [N, K] matter by the answers: the divergence of their softmax, and how often the largest stays. A code
[N, c, h, w] is rounded to symbols right behind: rounding alone adds noise of 1/12, the variance of what is
rounded off, so noise far below that changes few symbols.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KL_ALLOWED = 0.01
"""Nats between the answers in float and quantized, on average over the inputs."""
SYMBOL_NOISE_ALLOWED = 0.2 / 12
"""Mean square of a code's error in symbols: a fifth of what rounding adds. One symbol in ten changes."""
CODE_SIGNAL_TO_NOISE = 200.0
"""What is good enough for a code of large numbers, where a fraction of a symbol says little: 23 dB."""
_MOST_DECIBELS = 100.0


@dataclass(frozen=True)
class Divergence:
    """Of one output over some inputs.

    output: its name.
    decibels: signal over noise, 100 at most.
    cost: the error as a part of what is allowed; to 1 it is good enough.
    kl, agreement: of logits, the mean Kullback-Leibler divergence in nats, and at what share of the inputs
        the largest logit is the same.
    changed: of a code, the share of its symbols that are others.
    """

    output: str
    decibels: float
    cost: float
    kl: float | None = None
    agreement: float | None = None
    changed: float | None = None

    def text(self) -> str:
        """In words."""
        if self.changed is not None:
            return f"{self.output}: {self.changed:.1%} of the symbols change ({self.decibels:.1f} dB)"
        return (
            f"{self.output}: {self.agreement:.1%} the same answers, divergence {self.kl:.4f} nats "
            f"({self.decibels:.1f} dB)"
        )


def divergence(output: str, wanted: NDArray[np.float32], found: NDArray[np.float32]) -> Divergence:
    """Of logits, float32 [N, K], or a code of any other rank in units of symbols, -128 … 127."""
    decibels = signal_to_noise(wanted, found)
    if wanted.ndim == 2:
        kl = float(
            np.maximum(0, (_softmax(wanted) * (_log_softmax(wanted) - _log_softmax(found))).sum(1)).mean()
        )
        same = float((wanted.argmax(1) == found.argmax(1)).mean())
        return Divergence(output, decibels, kl / KL_ALLOWED, kl=kl, agreement=same)
    before, after = (np.clip(each.astype(np.float64), -128, 127) for each in (wanted, found))
    noise = float(((before - after) ** 2).mean())
    changed = float((np.rint(before) != np.rint(after)).mean())
    allowed = max(SYMBOL_NOISE_ALLOWED, float(before.var()) / CODE_SIGNAL_TO_NOISE)
    return Divergence(output, decibels, noise / allowed, changed=changed)


def signal_to_noise(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Decibels of the values' variance over the difference's power; 100 at most."""
    noise = float(((wanted - found).astype(np.float64) ** 2).mean())
    signal = float(wanted.astype(np.float64).var())
    if noise <= signal * 1e-10:
        return _MOST_DECIBELS
    return 10 * float(np.log10(max(signal, 1e-30) / noise)) if signal > 0 else 0.0


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    x = x - x.max(axis=1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(np.exp(_log_softmax(logits)))
