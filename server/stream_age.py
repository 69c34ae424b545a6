"""When one stream has to end: silent for too long, too old, asked to go and still there, or stuck in a write.

No clock is read here: every method takes the time, in seconds of one clock that never goes back.
"""

from __future__ import annotations

import math
from enum import Enum

from offramp.server.limits import StreamLimits

AGE_JITTER = 0.1
"""How far from the limit a stream's greatest age may be, as a share: those that began together end apart."""
WATCH_SECONDS = 0.5
"""How often streams are checked, at most."""


class Due(Enum):
    """What is to be done with a stream now."""

    NOTHING = "nothing"
    ASK = "ask"
    """Ask the device to go."""
    END = "end"
    """It was asked and did not go: end the stream with a status."""
    CUT = "cut"
    """It takes nothing, so no status would arrive either: drop the stream."""


class StreamAge:
    """The times of one stream.

    spread: from -1 to 1, where in ``AGE_JITTER`` around the limit this stream's greatest age lies.
    """

    def __init__(self, limits: StreamLimits, now: float, spread: float) -> None:
        self.accepted = False
        """The device has said a hello that was accepted; before that only writes are bounded here."""
        self.draining = False
        """The device has been asked to go, or is to be."""
        self._limits = limits
        self._last_read = now
        self._old_at = now + limits.max_stream_age * (1 + AGE_JITTER * spread)
        self._end_at = math.inf
        self._writing_since = math.inf

    def read(self, now: float) -> None:
        """A message has arrived."""
        self._last_read = now

    def write_began(self, now: float) -> None:
        """A message is handed to gRPC, which waits where the device takes none."""
        self._writing_since = now

    def write_ended(self) -> None:
        """gRPC has taken it."""
        self._writing_since = math.inf

    def drain(self, now: float, end_in: float = math.inf) -> None:
        """The device is asked to go, and has so many seconds; the earliest end of several counts."""
        self.draining = True
        self._end_at = min(self._end_at, now + end_in)

    def check(self, now: float) -> Due:
        """What is due; where that is to ask, the device's time to go begins with it."""
        limits = self._limits
        if now - self._writing_since > limits.write_timeout:
            return Due.CUT
        if not self.accepted:
            return Due.NOTHING
        if now > self._end_at:
            return Due.END
        if self._end_at < math.inf:
            return Due.NOTHING
        if now - self._last_read > limits.idle_timeout:
            self.drain(now, limits.hello_timeout)
            return Due.ASK
        if now > self._old_at:
            self.drain(now, limits.grace)
            return Due.ASK
        return Due.NOTHING


def watch_period(limits: StreamLimits) -> float:
    """How often streams have to be checked so that none overstays by much, seconds."""
    shortest = min(limits.idle_timeout, limits.max_stream_age, limits.write_timeout, limits.grace)
    return min(WATCH_SECONDS, shortest / 4)
