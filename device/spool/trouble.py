"""A disk that fails: how long it is left alone, and how often the log says so. Pure: no clock, no thread.

``now`` is the caller's ``time.monotonic()``, seconds.
"""

from __future__ import annotations

import logging
import math

RETRY_SECONDS, RETRY_SECONDS_MOST = 0.25, 30.0
"""The first pause after a failure, doubled each time up to the second."""
QUIET_SECONDS = 600.0
"""At least so long lies between two warnings."""


class Trouble:
    """What is remembered of a disk that failed."""

    def __init__(self) -> None:
        self._failing = False
        self._pause = RETRY_SECONDS
        self._retry_at = 0.0
        self._quiet_until = -math.inf
        self._warned_of_rows = False

    def is_left_alone(self, now: float) -> bool:
        """Whether it failed so recently that nothing is tried yet."""
        return now < self._retry_at

    def failed(self, now: float) -> int:
        """It failed; the level of the log's line about it."""
        # A disk that is nearly full takes one and refuses the next.
        news = not self._failing and now >= self._quiet_until
        if news:
            self._quiet_until = now + QUIET_SECONDS
        self._failing = True
        self._retry_at = now + self._pause
        self._pause = min(2 * self._pause, RETRY_SECONDS_MOST)
        return logging.WARNING if news else logging.DEBUG

    def worked(self) -> None:
        """It took something."""
        self._failing, self._pause = False, RETRY_SECONDS

    def starts_over(self) -> None:
        """The file is a new one: it may be tried at once."""
        self._retry_at = 0.0

    def bad_rows(self) -> int:
        """Rows are damaged; the level of the log's line about them: a warning once."""
        level = logging.DEBUG if self._warned_of_rows else logging.WARNING
        self._warned_of_rows = True
        return level
