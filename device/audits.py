"""Audits: a random share of the images that exit early is sent as well, and the server's answer compared.

Rules:
- Whether an image is drawn is decided before anything is known of it, so that those that exit early are a
  fair sample of all that do. An image that is drawn and does not exit early is sent anyway.
- Its answer does not wait for the audit and is not changed by it.
- What has no answer is counted as lost. Losses come together with a slow or broken link, so they bias the
  sample where that goes together with the images.
"""

from __future__ import annotations

import logging
import random
import threading

from offramp.device.metrics import AUDIT_RESULTS, DeviceMetrics
from offramp.link.outcome import Answer, Outcome

log = logging.getLogger("offramp.edge-device")


class Audits:
    """Draws images, and counts what the server says of those that were sent; from any thread.

    share: of all images, 0 … 1. seed: draws the same images in each run; None: others each time.
    """

    def __init__(self, share: float, seed: int | None, metrics: DeviceMetrics) -> None:
        self._share = share
        self._random = random.Random(seed)
        self._metrics = metrics
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(AUDIT_RESULTS, 0)

    def draw(self) -> bool:
        """Whether the next image is audited if it exits early. Never where the share is 0."""
        return self._share > 0 and self._random.random() < self._share

    def replied(self, class_index: int, outcome: Outcome) -> None:
        """An audit's outcome. class_index: what the early exit answered."""
        if not isinstance(outcome, Answer):
            self.lost(outcome.reason)
            return
        self._metrics.audit_wire_bytes.inc(outcome.wire_bytes)
        if outcome.fallback:
            self.lost(f"part {outcome.part} was unsure, and the one behind it did not answer")
            return
        agrees = outcome.class_index == class_index
        self._count("agrees" if agrees else "differs")

    def lost(self, reason: str) -> None:
        """An audit has no answer, or was not sent."""
        log.debug("an audit is lost: %s", reason)
        self._count("lost")

    def counts(self) -> dict[str, int]:
        """How many there were so far, by result."""
        with self._lock:
            return dict(self._counts)

    def _count(self, result: str) -> None:
        with self._lock:
            self._counts[result] += 1
        self._metrics.audits[result].inc()
