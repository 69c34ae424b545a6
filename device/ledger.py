"""What an image has sent and got back in bytes, and what that does to the threshold T_c (``adapt.py``).

Without a budget T_c is a constant and nothing is charged. With one, a frame is charged when it is handed to
the link, by a guess, because the images that follow at once are to know of it; its outcome then corrects the
guess. What the connection costs beside its frames (settings, pings, the handshake) is charged as it shows in
the kernel's count. No clock and no socket here: the time and that count come in.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from offramp.common.bundle.manifest import Manifest
from offramp.common.errors import ConfigError
from offramp.common.wire.frame import ENVELOPE_BYTES
from offramp.device.adapt import Steering, bounds_of
from offramp.device.options import SteeringOptions
from offramp.link.outbox import FRAME_OVERHEAD
from offramp.link.outcome import Answer, Outcome
from offramp.link.wire_bytes import WireBytes

log = logging.getLogger("offramp.edge-device")

REPLY_BYTES = 16
"""About what a reply takes, without its envelope."""
EXPECTED_BYTES = FRAME_OVERHEAD + REPLY_BYTES + 2 * ENVELOPE_BYTES
"""What one offloaded image is taken to cost beside its payload, until its outcome is known."""


@dataclass(slots=True)
class Cost:
    """What one image has sent, its share of what came back, and what its decoding took."""

    payload: int = 0
    picture: int = 0
    message: float = 0.0
    wire: float = 0.0
    sends: int = 0
    decode_seconds: float = 0.0

    def add_activation(self, size: int, outcome: Outcome) -> None:
        """The activation's outcome. size: bytes of its payload."""
        self.sends = outcome.sends
        self._add(size, outcome)

    def add_picture(self, size: int, outcome: Outcome) -> None:
        """The picture's outcome. size: bytes of its payload."""
        self.picture += size * outcome.sends
        self._add(size, outcome)

    def _add(self, size: int, outcome: Outcome) -> None:
        self.payload += size * outcome.sends
        if isinstance(outcome, Answer):
            self.message += outcome.message_bytes
            self.wire += outcome.wire_bytes


class Ledger:
    """T_c in force, and the budget that steers it; from any thread.

    threshold: T_c to start with, or to stay at. wait_seconds: the longest that an image waits for the server.
    now: the present, in the seconds of all later calls. connection_bytes: what the connection has sent and
    received so far; None where the system does not say. Raises ConfigError for bounds that cannot be.
    """

    def __init__(
        self,
        manifest: Manifest,
        threshold: float,
        options: SteeringOptions,
        *,
        wait_seconds: float,
        now: float,
        connection_bytes: Callable[[], WireBytes | None],
    ) -> None:
        self._connection_bytes = connection_bytes
        self._charged = 0.0
        self._control_bytes = 0.0
        self._lock = threading.Lock()
        """The steering is for one thread at a time."""
        self._threshold = threshold
        self.varies = options.steers
        """Whether T_c may be another one for the next image."""
        self._steering: Steering | None = None
        if not options.steers:
            return
        bounds = bounds_of(
            manifest.figures.thresholds,
            manifest.threshold,
            accuracy_floor=options.accuracy_floor,
            floor=options.threshold_floor,
            ceiling=options.threshold_ceiling,
        )
        self._steering = Steering(
            bounds,
            threshold,
            now,
            rate=options.byte_budget,
            target=options.target_latency,
            frame_bytes=manifest.figures.payload_bytes_mean + EXPECTED_BYTES,
            wait_seconds=wait_seconds,
        )
        self._threshold = self._steering.threshold(now)
        log.info("T_c is steered between %g and %g", bounds.floor, bounds.ceiling)

    @property
    def threshold(self) -> float:
        """T_c in force."""
        return self._threshold

    def set(self, threshold: float) -> None:
        """T_c from now on. Raises ConfigError where it is steered."""
        if self._steering is not None:
            raise ConfigError("T_c is steered, expected neither --byte-budget nor --target-latency")
        self._threshold = threshold
        self.varies = True

    @property
    def steers(self) -> bool:
        """Whether T_c changes."""
        return self._steering is not None

    def steer(self, now: float) -> float:
        """T_c for an image at this time."""
        if self._steering is not None:
            with self._lock:
                self._threshold = self._steering.threshold(now)
        return self._threshold

    def owes(self) -> bool:
        """Whether the budget is overdrawn: then nothing is sent that has an answer already."""
        if self._steering is None:
            return False
        with self._lock:
            return self._steering.owes()

    def send(self, size: int) -> float:
        """A frame of this payload goes to the link: charge what it is expected to cost, and return it."""
        expected = float(size + EXPECTED_BYTES)
        self._charge(expected)
        return expected

    def settle(self, expected: float, outcome: Outcome) -> None:
        """A frame has its outcome: charge the rest, or give back what never went out."""
        if isinstance(outcome, Answer):
            self._charge(outcome.wire_bytes - expected)
        elif not outcome.sends:
            self._charge(-expected)

    def spooled(self, answer: Answer) -> None:
        """The server answered an activation out of the spool, for which nothing was charged yet."""
        self._charge(answer.wire_bytes)

    def answered(self, latency: float) -> None:
        """An image has its result after so many seconds."""
        if self._steering is not None:
            with self._lock:
                self._steering.answered(latency)

    def _charge(self, amount: float) -> None:
        """Take bytes out of the budget, and what the connection has cost beside its frames."""
        if self._steering is None:
            return
        wire = self._connection_bytes()
        with self._lock:
            self._steering.spend(amount)
            self._charged += amount
            control = 0.0 if wire is None else wire.sent + wire.received - self._charged
            if control > self._control_bytes:
                self._steering.spend(control - self._control_bytes)
                self._control_bytes = control
