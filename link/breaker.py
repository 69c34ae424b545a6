"""Whether the next frame may go out: a circuit breaker, without clocks or threads of its own.

States:
- Closed: every frame may. So many failures in a row (timeouts and refusals), or one sign that the link is
  dead, open it.
- Open: no frame may, until a pause is over. The pause is drawn at random, so that devices which failed
  together do not come back together, and doubles each time. A server that says when to come back is obeyed.
- Half-open, after the pause: one frame may, the probe. Its success closes the breaker, its failure opens it
  again; frames that were on their way before do neither.
"""

from __future__ import annotations

import random
from collections.abc import Callable

PAUSE_FIRST, PAUSE_MOST = 0.5, 8.0
"""Seconds: the first pause, doubled each time up to the second; half to all of it is waited."""
HOLD_MOST = 60.0
"""Seconds that a server may keep a device away: what it asks for beyond that is not believed."""
HOLD_SPREAD = 0.25
"""Of the time that a server asks for, at most this share is waited on top."""


class Breaker:
    """One link's breaker. ``now`` is a monotonic time in seconds; ``draw`` gives numbers of 0 … 1."""

    def __init__(self, failures: int, draw: Callable[[], float] = random.random) -> None:
        self._limit = failures
        self._draw = draw
        self._failures = 0
        self._until: float | None = None
        self._probing = False
        self._pause = PAUSE_FIRST
        self.reason = ""
        """Why it was last opened."""
        self.opens = 0
        """How often it was opened."""

    @property
    def is_open(self) -> bool:
        """Whether it is open or half-open."""
        return self._until is not None

    def allows(self, now: float) -> bool:
        """Whether a frame may go out now."""
        return self._until is None or (not self._probing and now >= self._until)

    def take(self) -> bool:
        """A frame goes out that ``allows`` allowed; whether it is the probe."""
        if self._until is None:
            return False
        self._probing = True
        return True

    def success(self) -> bool:
        """A frame was answered in time; whether that closed the breaker."""
        closed = self._until is not None
        self._failures = 0
        self._until = None
        self._probing = False
        self._pause = PAUSE_FIRST
        return closed

    def failure(self, now: float, reason: str, probe: bool) -> None:
        """A frame was refused, or not answered in time."""
        if self._until is not None and not probe:
            return
        self._failures += 1
        if probe or self._failures >= self._limit:
            self.trip(now, reason)

    def trip(self, now: float, reason: str) -> None:
        """Open it, whatever was before."""
        self._open(now + self._pause * (0.5 + self._draw() / 2), reason)
        self._pause = min(self._pause * 2, PAUSE_MOST)

    def hold(self, now: float, seconds: float, reason: str) -> None:
        """Open it for as long as the server asks, and a little, random, longer."""
        wait = min(seconds, HOLD_MOST) * (1 + HOLD_SPREAD * self._draw())
        if self._until is not None and not self._probing:
            wait = max(wait, self._until - now)
        self._open(now + wait, reason)

    def release(self) -> None:
        """The probe ended without having been sent: the next frame is the probe."""
        self._probing = False

    def _open(self, until: float, reason: str) -> None:
        self.opens += self._until is None
        self._until = until
        self._probing = False
        self._failures = 0
        self.reason = reason
