"""When a device may be used: while it is open, in the process that made it; and what its end waits for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from offramp.common.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")


class Lifetime:
    """Counts the callers inside the device and the images that wait for the server; from any thread."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._closed = False
        self._callers = 0
        self._images = 0
        # Entered by itself it is cheaper than as a part of the condition.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    @property
    def is_forked(self) -> bool:
        """Whether this is a child of the process that made the device: its threads are not here."""
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Raises ConfigError in a forked child."""
        # Before any lock: in a child, a lock that another thread held at the fork is never released.
        if self.is_forked:
            raise ConfigError(
                f"the device was made in process {self._process}, from which {os.getpid()} was forked: "
                "expected a device that is made after the fork"
            )

    def check(self) -> None:
        """Raises ConfigError in a forked child, and once the device is closed."""
        self.check_process()
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError("the device is closed, expected one that is open")

    def enter(self) -> None:
        """A caller hands something in; ``leave`` has to follow. Raises as ``check`` does."""
        self.check_process()
        with self._lock:
            self._check_open()
            self._callers += 1

    def leave(self) -> None:
        """The caller is done."""
        with self._lock:
            self._callers -= 1
            # Only ``close`` waits for callers.
            if self._closed:
                self._changed.notify_all()

    def within(self, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """What a call returns, during which the device stays open. Raises as ``check`` does."""
        self.enter()
        try:
            return call(*arguments, **named)
        finally:
            self.leave()

    def start_image(self, most: int | None) -> None:
        """An image is going to the server; wait until fewer than ``most`` are there. None: do not wait."""
        with self._changed:
            if most is not None:
                self._changed.wait_for(lambda: self._images < most)
            self._images += 1

    def end_image(self) -> None:
        """It has its result."""
        with self._changed:
            self._images -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody in from here on, and wait until the callers inside have left. Raises ConfigError."""
        self.check_process()
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._callers)

    def wait_for_images(self) -> None:
        """Wait until every image has its result."""
        with self._changed:
            self._changed.wait_for(lambda: not self._images)
