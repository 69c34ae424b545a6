"""All parts of a bundle in one process: the reference for what a device, gateways and a server say together.

Part 1 answers an input if its exit is more confident than its threshold; otherwise part 2 is asked, and so
on; the last part answers what is left. Where a bundle's ``answers`` are of all exits, each exit that sent an
input on folds its own probabilities into the answer that comes back, the last of them first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.common.bundle.manifest import Manifest
from offramp.common.part.answer import both_exits
from offramp.common.part.engine import Engine


@dataclass(frozen=True)
class Answered:
    """The answers to N inputs."""

    best: NDArray[np.int64]
    """The class, [N]."""
    probability: NDArray[np.float32]
    """What it is given by the part that answered, or by all exits together, [N]."""
    part: NDArray[np.int64]
    """Number of the part that answered, from 1, [N]."""


def fold(own: NDArray[np.float32], best: int, probability: float) -> tuple[int, float]:
    """One exit's probabilities, float32 [K], and the answer of those behind it: what they say together.

    As ``answer.both_exits``, of which the likeliest class and its probability are left.
    """
    joint = both_exits(own[None], np.array([best]), np.array([probability], np.float32))[0]
    found = int(joint.argmax())
    return found, float(joint[found])


def thresholds_of(manifest: Manifest, first: int = 1) -> list[float]:
    """The bundle's threshold of each exit from part ``first`` on; 1 where a part has none."""
    return [1.0 if part.exit is None else part.exit.threshold for part in manifest.parts[first - 1 : -1]]


def run_chain(
    engine: Engine, inputs: NDArray[Any], thresholds: Sequence[float] | None = None, *, first: int = 1
) -> Answered:
    """Answer inputs [N, …], as part ``first`` takes them.

    thresholds: of each exit, from that part on; None: the bundle's. Raises ValueError for another number of
    them.
    """
    manifest = engine.manifest
    parts = manifest.parts
    if thresholds is None:
        thresholds = thresholds_of(manifest, first)
    exits = len(parts) - first
    if len(thresholds) != exits:
        raise ValueError(f"{len(thresholds)} thresholds, expected one for each of the {exits} exits")
    count = len(inputs)
    answered = Answered(np.zeros(count, np.int64), np.zeros(count, np.float32), np.zeros(count, np.int64))
    heard: list[list[NDArray[np.float32]]] = [[] for _ in range(count)]
    left, batch = np.arange(count), inputs
    for number in range(first, len(parts) + 1):
        if not len(left):
            break
        symbols, probabilities = engine.part(number, batch)
        sure = np.ones(len(left), bool)
        if symbols is not None:
            sure = np.zeros(len(left), bool)
            if probabilities is not None:
                sure = probabilities.max(axis=1) > thresholds[number - first]
        for place, index in enumerate(left):
            own = None if probabilities is None else probabilities[place]
            if sure[place]:
                assert own is not None
                said = int(own.argmax()), float(own.max())
                for before in reversed(heard[index]):
                    said = fold(before, *said)
                answered.best[index], answered.probability[index] = said
                answered.part[index] = number
            elif own is not None and manifest.answers == "all":
                heard[index].append(own)
        left = left[~sure]
        if symbols is not None:
            batch = symbols[~sure]
    return answered
