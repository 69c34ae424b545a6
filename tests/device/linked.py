"""A link and what becomes of its frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from offramp.common.bundle.load import Bundle
from offramp.common.codec.activation import CodecId
from offramp.device.metrics import DeviceMetrics
from offramp.link.link import Answer, Link, Outcome, Pace, Refusal, Terms
from tests.processes import until

PAYLOAD = b"payload"


LinkTo = Callable[..., AbstractContextManager["Linked"]]


class Linked:
    """A link and the outcomes of its frames."""

    def __init__(
        self,
        bundle: Bundle,
        ports: Sequence[int],
        timeout: float,
        window: int,
        coalesce: float = 0.0,
        coalesce_frames: int = 64,
        failures: int = 5,
        prefer_first: bool = False,
    ) -> None:
        self.metrics = DeviceMetrics(bundle)
        self.link = Link(
            [f"127.0.0.1:{port}" for port in ports],
            Terms(bundle.digest, len(bundle.manifest.classes), bundle.codec.raw_bytes),
            Pace(timeout, window, coalesce, coalesce_frames),
            self.metrics.link,
            failures=failures,
            prefer_first=prefer_first,
        )
        self.outcomes: list[list[Outcome]] = []
        self.start = time.monotonic()

    def offload(
        self, count: int, payload: bytes = PAYLOAD, codec: CodecId = CodecId.BUNDLE, **options: Any
    ) -> None:
        """Hand in this many frames."""
        for _ in range(count):
            mine: list[Outcome] = []
            self.outcomes.append(mine)
            self.link.offload(codec, payload, mine.append, **options)

    def settled(self) -> list[Outcome]:
        """The one outcome of each frame, once all are there."""
        until(lambda: all(self.outcomes), "an outcome for each frame")
        return [outcome for (outcome,) in self.outcomes]

    def sample(self, name: str, **labels: str) -> float:
        """One value of the device's metrics."""
        value = self.metrics.registry.get_sample_value(name, labels)
        assert value is not None
        return value


def refused(outcomes: list[Outcome]) -> list[Refusal]:
    """The outcomes, none of which is an answer."""
    found = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    assert len(found) == len(outcomes)
    return found


def answered(outcomes: list[Outcome]) -> list[Answer]:
    """The outcomes, all of which are answers."""
    found = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    assert len(found) == len(outcomes)
    return found
