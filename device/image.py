"""What a device remembers of an image that is under way."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from offramp.device.inquiry import Inquiry
from offramp.device.result import Result
from offramp.device.samples.samples import Taken
from offramp.device.spool.store import Entry


@dataclass(slots=True)
class Begun:
    """An image from its early exit to its result."""

    future: Future[Result]
    start: float
    threshold: float
    unknown: bool
    taken: Taken | None
    """For a sample of it; None where there will be none."""


@dataclass(slots=True)
class Sent:
    """An image that did not take the early exit, until it has its result."""

    inquiry: Inquiry
    entry: Entry
    begun: Begun
    trace: bytes
    image: NDArray[Any] | None
    """For a picture of it; None where there will be none."""
