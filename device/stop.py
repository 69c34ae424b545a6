"""The end of a run by a signal, and the sign of life that a supervisor waits for."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from queue import Empty, SimpleQueue

from offramp.device.notify import Notifier

LOOK_SECONDS = 0.5
"""How often the waiting main thread looks up: a signal that comes just before it blocks does not wake it."""


class Stop:
    """Set by a signal, waited for by the main thread, which shows meanwhile that it is alive.

    A ``threading.Event`` is not for signal handlers: one that comes while the main thread holds the event's
    lock would wait for it forever. ``SimpleQueue.put`` may be interrupted by itself.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._set = False
        self._queue: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Stop."""
        self._set = True
        self._queue.put(None)

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._set

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until set, no longer than this; whether it is."""
        end = math.inf if seconds is None else time.monotonic() + seconds
        while not self._set:
            self.beat()
            left = max(0.0, end - time.monotonic())
            longest = min(LOOK_SECONDS, self._notifier.interval or LOOK_SECONDS)
            with suppress(Empty):
                self._queue.get(timeout=min(left, longest))
            if left <= longest:
                break
        return self._set

    def beat(self) -> None:
        """Show the supervisor that the main thread gets on."""
        self._notifier.beat()
