"""How far two sets of images differ in what the early exit says of them, and how likely chance does that.

    distance    Jensen-Shannon's, in bits: 0 the same, 1 nothing in common
    deviations  8 ln 2 · distance / (1/n + 1/m) follows chi-square if both are samples of one distribution;
                Wilson and Hilferty's cube root makes it a normal deviation

Jensen-Shannon, not the population stability index: that is infinite where a bin is empty on one side, which
is what a missing class does, and what is added to avoid that decides its value. Near zero both are the same
to a factor: an index of 0.1, by custom a small shift, is 0.018 bits, and one of 0.25, a large one, 0.045.

``deploy/prometheus/rules/recording.yml`` computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

SHIFTED = 0.03
"""Bits beyond which it counts as drift."""
BEYOND_CHANCE = 4.0
"""Deviations beyond which it is not chance."""
IMAGES = 100
"""Below this nothing is said."""


def distance(live: Sequence[float], reference: Sequence[float]) -> float:
    """Bits, 0 … 1, of counts in the same bins. Raises ValueError where one side has none."""
    n, m = sum(live), sum(reference)
    if len(live) != len(reference) or n <= 0 or m <= 0:
        raise ValueError(f"{n:g} and {m:g} images in {len(live)} and {len(reference)} bins")
    shares = [(p / n, q / m) for p, q in zip(live, reference, strict=True)]
    terms = (x * math.log2(2 * x / (p + q)) for p, q in shares for x in (p, q) if x > 0)
    return max(0.0, math.fsum(terms) / 2)


def deviations(live: Sequence[float], reference: Sequence[float]) -> float:
    """By how many standard deviations the distance exceeds what chance gives; 0 with one bin only."""
    free = sum(p + q > 0 for p, q in zip(live, reference, strict=True)) - 1
    bits = distance(live, reference)
    if free < 1:
        return 0.0
    square = 8 * math.log(2) * bits / (1 / sum(live) + 1 / sum(reference))
    spread = 2 / (9 * free)
    return float((square / free) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def is_drift(live: Sequence[float], reference: Sequence[float]) -> bool:
    """Whether there are enough images, and they differ by more than chance and more than a little."""
    return (
        sum(live) >= IMAGES
        and distance(live, reference) > SHIFTED
        and deviations(live, reference) > BEYOND_CHANCE
    )
