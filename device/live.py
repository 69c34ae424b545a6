"""What the device's live page shows beside its metrics (``common/page/``).

Per image: one entry of a short ring. All else is made when the page asks for it, or on a thread of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.common.errors import ConfigError, printable
from offramp.common.files import read_bounded
from offramp.common.page.site import Page
from offramp.common.wire.picture import encode_picture, require_webp
from offramp.device.device import Device
from offramp.device.options import SteeringOptions
from offramp.device.result import Result
from offramp.device.settings import DeviceSettings

log = logging.getLogger("offramp.edge-device")

RECENT = 12
"""Images that the page shows."""
NAME_CHARACTERS = 200
SAMPLE = 128
"""Sizes of pictures that the mean is taken over, the last ones."""
SAMPLE_SECONDS = 2.0
"""Between two of them, at least …"""
SAMPLE_SHARE = 0.005
"""… and so much of the time is spent on writing them, at most."""
TOKEN_CHARACTERS = range(16, 4097)

Pixels = NDArray[np.uint8]


def page_token(settings: DeviceSettings) -> str | None:
    """The token that the settings name, if they do. Raises ConfigError, also for flags that miss others."""
    if settings.page and settings.metrics_port is None:
        raise ConfigError("--page needs --metrics-port")
    path = settings.page_token_file
    if path is None:
        return None
    if not settings.page:
        raise ConfigError("--page-token-file needs --page")
    name = f"--page-token-file {path}"
    token = read_bounded(path, TOKEN_CHARACTERS[-1] + 2, name=name, expected="a file").strip()
    if len(token) not in TOKEN_CHARACTERS or not all(33 <= byte <= 126 for byte in token):
        raise ConfigError(
            f"{name}: not a token, expected {TOKEN_CHARACTERS[0]} … {TOKEN_CHARACTERS[-1]} visible ASCII "
            "characters"
        )
    return token.decode()


class PictureSizes:
    """What images would take as pictures, measured on one now and then. quality: WebP's."""

    def __init__(self, quality: int, now: Callable[[], float] = time.monotonic) -> None:
        self.quality = quality
        self._now = now
        self._next = -1.0
        self._sizes: deque[int] = deque(maxlen=SAMPLE)
        try:
            require_webp("--page")
        except ConfigError:  # then this figure is unknown
            self._next = float("inf")

    def offer(self, image: object) -> None:
        """An image as the head takes it; measured on another thread, if one is due and it is a picture."""
        if self._now() < self._next:
            return
        # Until this one is measured; for good, where it is not a picture or cannot be written.
        self._next = float("inf")
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and len(image) == 3:
            thread = threading.Thread(target=self._measure, args=(image.copy(),), daemon=True)
            with suppress(RuntimeError):  # no thread to be had
                thread.start()

    def mean(self) -> dict[str, float] | None:
        """The mean bytes and of how many pictures; None as long as there is none."""
        sizes = list(self._sizes)
        if not sizes:
            return None
        return {"quality": self.quality, "images": len(sizes), "mean_bytes": sum(sizes) / len(sizes)}

    def _measure(self, image: Pixels) -> None:
        try:
            if not self._sizes:
                encode_picture(image, self.quality)  # the first one takes longer than others
            # Its own time on the CPU: what it waits for others is no reason to measure less.
            start = time.thread_time()
            self._sizes.append(len(encode_picture(image, self.quality)))
        except Exception as error:  # Pillow has no common base class for its errors
            log.warning("the page's pictures cannot be measured: %s", error)
            return
        took = time.thread_time() - start
        self._next = self._now() + max(SAMPLE_SECONDS, took / SAMPLE_SHARE)


class Live:
    """One device's page: what was just answered, and how T_c is set."""

    def __init__(self, device: Device, settings: DeviceSettings, token: str | None = None) -> None:
        self.pictures = PictureSizes(settings.picture_quality)
        self.page = Page("edge-device", self._state, self._set_threshold, token)
        self._device = device
        self._servers = list(settings.server)
        self._steered = SteeringOptions.of(settings).steers
        self._recent: deque[tuple[int, str, Result]] = deque(maxlen=RECENT)
        self._parts = len(device.bundle.manifest.parts)
        figures = device.bundle.manifest.figures
        self._curve = [
            {"threshold": each.threshold, "accuracy": each.accuracy, "exit_rate": each.exit_rate}
            for each in sorted(figures.thresholds, key=lambda point: point.threshold)
        ]

    def seen(self, index: int, name: str, result: Result) -> None:
        """An image has its result."""
        self._recent.append((index, name, result))

    def _set_threshold(self, value: float) -> float:
        before = self._device.threshold
        self._device.set_threshold(value)
        return before

    def _state(self) -> dict[str, Any]:
        failure = self._device.failure
        return {
            "bundle": self._device.bundle.manifest.name,
            "threshold": self._device.threshold,
            "steered": self._steered,
            "curve": self._curve,
            "servers": self._servers,
            "failure": None if failure is None else printable(str(failure), 500),
            "webp": self.pictures.mean(),
            "recent": [_shown(*each, self._parts) for each in reversed(list(self._recent))],
        }


def _shown(index: int, name: str, result: Result, parts: int) -> dict[str, Any]:
    """One answer as the page has it; of a chain's servers, the part that answered in the source's place."""
    of_chain = result.source == "server" and parts > 2
    return {
        **({"by": result.by} if of_chain else {}),
        "index": index,
        "name": printable(name, NAME_CHARACTERS),
        "label": printable(result.label, NAME_CHARACTERS),
        "confidence": result.confidence,
        "source": result.source,
        "latency_seconds": result.latency_seconds,
        "payload_bytes": result.payload_bytes,
        "unknown": result.unknown,
    }
