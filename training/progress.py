"""How far a run is, and how long it may take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: mean training loss, validation figures by name, whether it is the best so far."""

    stage: str
    number: int
    epochs: int
    loss: float
    figures: dict[str, float]
    best: bool


@dataclass(frozen=True)
class Progress:
    """Callbacks: ``batch`` of (stage, epoch, step, steps) after each step, ``epoch`` after each epoch.

    ``say`` of a line about what it does.
    """

    batch: Callable[[str, int, int, int], None] = lambda *_: None
    epoch: Callable[[Epoch], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None


class OutOfTime(Exception):
    """The time that a run was given is over. What is done is in its checkpoint."""


class Clock:
    """Time that may be spent, from now on; None: any."""

    def __init__(self, seconds: float | None = None) -> None:
        self._end = math.inf if seconds is None else time.monotonic() + seconds

    def over(self, seconds: float = 0.0) -> bool:
        """Whether less than this much is left."""
        return time.monotonic() + seconds > self._end
