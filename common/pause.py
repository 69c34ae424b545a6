"""A wait that works where the clock is a fake one (libfaketime): ``time.sleep`` fails there."""

from __future__ import annotations

import threading


def pause(seconds: float) -> None:
    """Wait so long; nothing cuts it short."""
    threading.Event().wait(seconds)
