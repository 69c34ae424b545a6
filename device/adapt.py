"""A confidence threshold that keeps to a budget: pure arithmetic, no clock, no threads.

The controller is a bucket whose level *is* the threshold. A byte budget pours ``rate`` bytes a second in,
and each offloaded image takes its bytes out; a latency target pours ``target`` seconds in for each image,
and each image takes its latency out. The level, from empty to full, is mapped to T_c from the floor to the
ceiling, evenly in log-odds: confidences crowd near 1, and their log-odds do not.

Why this and no PID controller: the level is the integral of the error already, and T_c follows it directly,
so the loop is of first order. More offloading lowers the level, a lower level lowers T_c, a lower T_c lowers
offloading: it settles where what flows out is what flows in, without overshoot, and nothing is to be tuned
but the bucket's size, which says how long a burst may last. T_c is within its bounds by construction.

The floor is worth more than the budget: images that are unsure even there are always offloaded. What they
overdraw is owed, up to a whole bucket, and paid back before T_c rises again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from offramp.common.bundle.manifest import ThresholdFigures
from offramp.common.errors import ConfigError

HORIZON_SECONDS = 10.0
"""A bucket of bytes holds what its rate pours in this time."""
HORIZON_FRAMES = 16
"""… and no less than this many frames."""
HORIZON_IMAGES = 64
"""A bucket of latency holds the target of this many images …"""
HORIZON_WAITS = 4
"""… and no less than this many of the longest waits: what is owed beyond a bucket is forgotten."""
_EDGE = 1e-6


@dataclass(frozen=True, slots=True)
class Range:
    """Where T_c may be."""

    floor: float
    ceiling: float

    def at(self, level: float) -> float:
        """T_c of a level, 0 … 1; levels outside are taken as the next end."""
        if level <= 0:
            return self.floor
        if level >= 1:
            return self.ceiling
        low, high = _log_odds(self.floor), _log_odds(self.ceiling)
        value = 1 / (1 + math.exp(-(low + (high - low) * level)))
        return min(max(value, self.floor), self.ceiling)

    def level(self, threshold: float) -> float:
        """The level, 0 … 1, whose T_c this is; the next end's outside the bounds."""
        low, high = _log_odds(self.floor), _log_odds(self.ceiling)
        if high <= low:
            return 1.0
        return min(max((_log_odds(threshold) - low) / (high - low), 0.0), 1.0)


def _log_odds(probability: float) -> float:
    inside = min(max(probability, _EDGE), 1 - _EDGE)
    return math.log(inside / (1 - inside))


class Bucket:
    """What may be spent, in bytes or in seconds: at most ``capacity``, owed at most as much."""

    def __init__(self, capacity: float, level: float) -> None:
        self.capacity = capacity
        self._held = capacity * level

    def pour(self, amount: float) -> None:
        """Put in, or, where negative, take out."""
        self._held = min(max(self._held + amount, -self.capacity), self.capacity)

    @property
    def level(self) -> float:
        """-1 … 1; below 0 it is overdrawn."""
        return self._held / self.capacity


class Steering:
    """T_c under a byte budget, a latency target, or both: the lower of the two.

    rate: bytes a second. target: seconds, the mean over all images. frame_bytes: about what one offloaded
    image costs. wait_seconds: the longest that one waits. now: the present, in the seconds of all later
    calls.
    """

    def __init__(
        self,
        bounds: Range,
        start: float,
        now: float,
        *,
        rate: float | None = None,
        target: float | None = None,
        frame_bytes: float = 0.0,
        wait_seconds: float = 0.0,
    ) -> None:
        self.bounds = bounds
        self._rate = rate
        self._target = target
        self._now = now
        level = bounds.level(start)
        self._bytes = self._seconds = None
        if rate is not None:
            self._bytes = Bucket(max(rate * HORIZON_SECONDS, HORIZON_FRAMES * frame_bytes), level)
        if target is not None:
            self._seconds = Bucket(max(target * HORIZON_IMAGES, HORIZON_WAITS * wait_seconds), level)

    def threshold(self, now: float) -> float:
        """T_c for an image at this time."""
        if self._bytes is not None and self._rate is not None:
            self._bytes.pour(self._rate * max(0.0, now - self._now))
            self._now = max(now, self._now)
        levels = [bucket.level for bucket in (self._bytes, self._seconds) if bucket is not None]
        return self.bounds.at(min(levels, default=1.0))

    def owes(self) -> bool:
        """Whether more was spent than there was: the floor sends what it must, and nothing beside it."""
        return any(bucket is not None and bucket.level < 0 for bucket in (self._bytes, self._seconds))

    def spend(self, count: float) -> None:
        """So many bytes were sent; a negative number gives back what was not."""
        if self._bytes is not None:
            self._bytes.pour(-count)

    def answered(self, latency: float) -> None:
        """An image was answered after so many seconds."""
        if self._seconds is not None and self._target is not None:
            self._seconds.pour(self._target - latency)


def bounds_of(
    curve: Sequence[ThresholdFigures],
    default: float,
    *,
    accuracy_floor: float | None = None,
    floor: float | None = None,
    ceiling: float | None = None,
) -> Range:
    """Where T_c may be, from a bundle's measured curve; ``floor`` and ``ceiling`` overrule it.

    The ceiling is the threshold of the best accuracy, the lowest such: to send more would buy nothing. The
    floor is the lowest threshold from which on, up to the ceiling, every measured accuracy is at least
    ``accuracy_floor``; by default that of the bundle's own threshold, ``default``. Without a curve the floor
    is the bundle's own threshold and the ceiling 1. Raises ConfigError.
    """
    points = sorted(curve, key=lambda point: point.threshold)
    low, high = default, 1.0
    if points:
        best = max(points, key=lambda point: (point.accuracy, -point.threshold))
        high = best.threshold
        if accuracy_floor is None:
            measured = [point.accuracy for point in points if point.threshold <= default]
            accuracy_floor = min(measured[-1] if measured else points[0].accuracy, best.accuracy)
        if accuracy_floor > best.accuracy:
            raise ConfigError(
                f"--accuracy-floor {accuracy_floor:g}: the bundle reaches {best.accuracy:.4f} at most"
            )
        low = high
        for point in reversed([point for point in points if point.threshold <= high]):
            if point.accuracy < accuracy_floor:
                break
            low = point.threshold
    elif accuracy_floor is not None:
        raise ConfigError("--accuracy-floor: the bundle has no measured thresholds, say --threshold-floor")
    # One that was said moves the other, which was not, out of its way.
    low = min(low, ceiling) if floor is None and ceiling is not None else low
    high = max(high, floor) if ceiling is None and floor is not None else high
    bounds = Range(low if floor is None else floor, high if ceiling is None else ceiling)
    if bounds.floor > bounds.ceiling:
        raise ConfigError(
            f"--threshold-floor {bounds.floor:g}: lies above --threshold-ceiling {bounds.ceiling:g}"
        )
    return bounds
