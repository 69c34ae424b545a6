"""The picture of an image whose answer from the server is unsure too (``inquiry.py``), written as WebP.

It goes over the same link, to a server that answers pictures by a whole model. Off by default: then nothing
that shows an image leaves the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from offramp.common.bundle.manifest import Manifest
from offramp.common.errors import ConfigError
from offramp.common.inputs.spec import Preprocessing
from offramp.common.metrics import timed
from offramp.common.wire.picture import encode_picture, require_webp
from offramp.device.metrics import DeviceMetrics

log = logging.getLogger("offramp.edge-device")

Pixels = NDArray[np.uint8]


def require_pictures(manifest: Manifest) -> None:
    """Raise ConfigError for a bundle that takes no pictures, so that there are none to send."""
    if not isinstance(manifest.input, Preprocessing):
        raise ConfigError(f"--picture-threshold: {manifest.name} takes {manifest.input.what}, not pictures")


class PictureWriter:
    """Writes pictures on a thread of its own.

    quality: WebP's, 0 … 100. Raises ConfigError where this installation writes no such pictures.
    """

    def __init__(self, quality: int, preprocessing: Preprocessing, metrics: DeviceMetrics) -> None:
        require_webp("--picture-threshold")
        self._quality = quality
        # Here, so that a device without pictures has no empty histogram.
        self._seconds = metrics.stage_seconds.labels("picture")
        # Better here than at the first image that needs it.
        encode_picture(np.zeros((3, preprocessing.height, preprocessing.width), np.uint8), quality)
        self._thread = ThreadPoolExecutor(1, "offramp-picture")

    def write(self, image: Pixels, send: Callable[[bytes], None], give_up: Callable[[], None]) -> None:
        """Have a picture of this image, uint8 [3, H, W], sent, or given up; from another thread.

        The caller is one of the link's, which wait for nobody, and ``send`` may wait for the window.
        """
        try:
            self._thread.submit(self._write, image, send, give_up)
        except RuntimeError:  # closed
            give_up()

    def close(self) -> None:
        """Wait for what is under way; what comes later is given up."""
        self._thread.shutdown()

    def _write(self, image: Pixels, send: Callable[[bytes], None], give_up: Callable[[], None]) -> None:
        try:
            with timed(self._seconds):
                payload = encode_picture(image, self._quality)
        except Exception:  # Pillow has no common base class for its errors
            log.exception("a picture could not be written")
            give_up()
            return
        send(payload)
