"""Answers that come after an image had its own, given to whoever asked for them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from offramp.common.bundle.load import Bundle
from offramp.device.inquiry import Inquiry
from offramp.device.metrics import DeviceMetrics
from offramp.device.result import Correction
from offramp.device.spool.store import Entry
from offramp.link.outcome import Answer

log = logging.getLogger("offramp.edge-device")


class Corrections:
    """Counts corrections and delivers them; from any thread. deliver: None where nobody wants them."""

    def __init__(
        self, bundle: Bundle, metrics: DeviceMetrics, deliver: Callable[[Correction], None] | None
    ) -> None:
        self._classes = bundle.manifest.classes
        self._metrics = metrics
        self._deliver = deliver

    @property
    def wanted(self) -> bool:
        """Whether somebody wants them."""
        return self._deliver is not None

    def correct(self, inquiry: Inquiry, entry: Entry, answer: Answer, spooled: bool) -> None:
        """The server's answer to an image that was a fallback. spooled: whether it was out of the spool."""
        self._metrics.corrections.inc()
        if self._deliver is None:
            return
        verdict = inquiry.corrected(answer)
        correction = Correction(
            index=entry.index,
            name=entry.name,
            label=self._classes[verdict.class_index],
            class_index=verdict.class_index,
            confidence=verdict.confidence,
            spooled=spooled,
        )
        try:
            self._deliver(correction)
        except Exception:  # somebody else's code, on the link's thread
            log.exception("a correction's callback failed")
