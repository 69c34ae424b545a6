"""A way to split, at every threshold that was measured: what ``offramp plan`` chooses among."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Between:
    """A part of a chain that runs on a gateway: arrays are [T].

    macs: of one image; sent: share of all images that it sends on; message_bytes: of what crosses behind it,
    a mean over all images; offloaded_bytes: of one image that does.
    """

    macs: int
    sent: NDArray[np.float64]
    message_bytes: NDArray[np.float64]
    offloaded_bytes: float


@dataclass(frozen=True)
class SplitCurve:
    """One way to split, at every threshold of a grid: arrays are [T]."""

    name: str
    exit_number: int
    measured: bool
    device_macs: int
    device_weights: int
    memory_bytes: int
    thresholds: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    exit_rate: NDArray[np.float64]
    message_bytes: NDArray[np.float64]
    """Means over all images."""
    offloaded_bytes: float
    """Of one offloaded image."""
    between: tuple[Between, ...] = ()
    """The parts between the first and the last."""
    rest_of_thresholds: tuple[tuple[float, ...], ...] = ()
    """For each point those of the exits behind the first."""
    bundle: Path | None = None
    """Its folder, where there is one."""
