"""Formats that a picture could be sent in, for whoever measures what that would take."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features


@dataclass(frozen=True)
class Format:
    """A way to write a picture: Pillow's name (None: raw pixels) and settings."""

    name: str
    pillow: str | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    def write(self, image: NDArray[np.uint8]) -> bytes:
        """One picture, uint8 [3, H, W], as bytes."""
        if self.pillow is None:
            return image.tobytes()
        return self.file(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))))

    def file(self, picture: Image.Image) -> bytes:
        """A picture in its own colour mode and size."""
        if self.pillow is None:
            return picture.tobytes()
        buffer = io.BytesIO()
        picture.save(buffer, self.pillow, **dict(self.settings))
        return buffer.getvalue()

    def read(self, data: bytes, like: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What the bytes decode to, uint8 [3, H, W] of the same shape as ``like``."""
        if self.pillow is None:
            return np.frombuffer(data, np.uint8).reshape(like.shape)
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB"), np.uint8).transpose(2, 0, 1)


RAW_PIXELS = Format("raw pixels")


def jpeg(quality: int) -> Format:
    """JPEG of a quality, 1 … 95."""
    return Format(f"JPEG {quality}", "JPEG", (("quality", quality), ("optimize", True)))


def webp(quality: int) -> Format:
    """Lossy WebP of a quality, 0 … 100."""
    return Format(f"WebP {quality}", "WEBP", (("quality", quality), ("method", 6)))


FORMATS: tuple[Format, ...] = (
    RAW_PIXELS,
    Format("PNG", "PNG", (("optimize", True),)),
    # Method 6 takes seconds for a picture of 160x160, and is no smaller.
    Format("WebP lossless", "WEBP", (("lossless", True), ("quality", 100), ("method", 4))),
    *map(jpeg, (5, 10, 20, 50, 75, 90)),
    *map(webp, (1, 5, 10, 20, 50, 75, 90)),
    # Pillow's wheels have it, other builds may not.
    *(
        Format(f"AVIF {quality}", "AVIF", (("quality", quality), ("speed", 8)))
        for quality in (20, 50)
        if features.check("avif")
    ),
)


def sent(form: Format, images: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Bytes of each image, uint8 [N, 3, H, W], in a format, int64 [N], and what they decode to."""
    coded = [form.write(image) for image in images]
    decoded = np.stack([form.read(data, image) for data, image in zip(coded, images, strict=True)])
    return np.array([len(data) for data in coded], np.int64), decoded
