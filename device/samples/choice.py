"""Which inputs are worth a person's look, and why. Pure: no clock, no file.

Rules:
- A share is drawn at random, whatever it is: the control, beside which the others can be judged.
- An input is ``unsure`` if its answer is among the least confident of the last ones, as many as are drawn.
- Each reason has an allowance: a lens that turns dark makes all inputs unknown, and would fill the folder
  and wear out its disk with the same picture.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Sequence

from offramp.device.metrics import SAMPLE_REASONS

REASONS = SAMPLE_REASONS
"""In this order: a sample counts against the first of its reasons that has an allowance left. The control
comes first: it would not be a fair one if those of its samples that are unknown had to go earlier."""
RECENT = 1000
"""Answers whose confidences are compared."""
LEAST = 100
"""Answers before the first that is unsure."""
EVERY = 50
"""Answers after which the limit is computed again."""
BURST, SECONDS = 256, 10.0
"""What a reason may take at once, and seconds until it may take one more."""


class Allowance:
    """How much a reason may take now. now: seconds of a clock that is never set."""

    def __init__(self, burst: int = BURST, seconds: float = SECONDS) -> None:
        self._burst, self._seconds = burst, seconds
        self._left = float(burst)
        self._at: float | None = None

    def take(self, now: float) -> bool:
        """Take one, if there is one."""
        if self._at is not None:
            self._left = min(self._burst, self._left + (now - self._at) / self._seconds)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Choice:
    """Chooses; from any thread. share: of all inputs, 0 … 1. seed: of what is drawn; None: always others."""

    def __init__(self, share: float, seed: int | None = None) -> None:
        self._share = share
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._confidences: deque[float] = deque(maxlen=RECENT)
        self._since = 0
        self._limit = -1.0
        self._allowances = {reason: Allowance() for reason in REASONS}

    def draw(self) -> bool:
        """Whether the next input is one of the control. To be asked whatever is known of it."""
        return self._random.random() < self._share

    def reasons(self, confidence: float, *, drawn: bool, unknown: bool, differs: bool) -> tuple[str, ...]:
        """Why an answered input is kept; empty: it is not. Every input has to come by here once."""
        unsure = self._is_unsure(confidence)
        given = {"random": drawn, "audit": differs, "unknown": unknown, "unsure": unsure}
        return tuple(reason for reason in REASONS if given[reason])

    def allowed(self, reasons: Sequence[str], now: float) -> str | None:
        """The reason that a sample counts against; None where none of them has an allowance left."""
        with self._lock:
            return next((reason for reason in reasons if self._allowances[reason].take(now)), None)

    def _is_unsure(self, confidence: float) -> bool:
        with self._lock:
            self._confidences.append(confidence)
            self._since += 1
            count = len(self._confidences)
            if count >= LEAST and self._since >= EVERY:
                self._since = 0
                place = min(count - 1, int(self._share * count))
                self._limit = sorted(self._confidences)[place]
            return self._share > 0 and confidence < self._limit
