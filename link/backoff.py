"""How soon a stream is made again, how often that is said, and how much idle talk a server may send. Pure.

The time is the caller's ``time.monotonic()``, seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

BACKOFF_FIRST, BACKOFF_MOST = 0.1, 5.0
"""Seconds between attempts to connect: the first pause, doubled each time up to the second."""
SAY_SECONDS = 10.0
"""One line of a kind in this time is enough."""
IDLE_MOST, IDLE_A_SECOND = 256, 10.0
"""Messages and replies of one stream that are of no use: at most so many at once, and a second."""


class Doubling:
    """A pause that is doubled from ``first`` up to ``most`` seconds; half to all of it is waited."""

    def __init__(self, first: float, most: float, draw: Callable[[], float]) -> None:
        self._first, self._most = first, most
        self._pause = first
        self._draw = draw

    def take(self, short: bool, longer: bool) -> float:
        """Seconds to wait. short: it begins again; longer: the next one is doubled."""
        if short:
            self._pause = self._first
        pause = self._pause
        if longer:
            self._pause = min(pause * 2, self._most)
        return pause * (0.5 + self._draw() / 2)


class Backoff:
    """Pauses between streams. Only a stream that was of use makes them short again."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._pause = Doubling(BACKOFF_FIRST, BACKOFF_MOST, draw)

    def after(self, useful: bool, going_round: bool) -> float:
        """Seconds to wait after a stream. going_round: another server is next, which was not tried yet."""
        return self._pause.take(short=useful, longer=not useful and not going_round)


class Sparingly:
    """Whether to say something that may happen many times a second."""

    def __init__(self) -> None:
        self._next = -math.inf

    def due(self, now: float) -> bool:
        """True once in ``SAY_SECONDS``."""
        if now < self._next:
            return False
        self._next = now + SAY_SECONDS
        return True


class Allowance:
    """What one stream may hold that serves nothing: a bucket of ``IDLE_MOST``, filled slowly."""

    def __init__(self) -> None:
        self._left = float(IDLE_MOST)
        self._last = -math.inf

    def take(self, count: int, now: float) -> bool:
        """Whether this many more are within it."""
        if self._last > -math.inf:
            self._left = min(IDLE_MOST, self._left + (now - self._last) * IDLE_A_SECOND)
        self._last = now
        self._left -= count
        return self._left >= 0
