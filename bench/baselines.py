"""What the paper leaves out: pictures sent in place of activations, on the axes of Figure 10.

    picture to the whole model   every image goes to the server as raw pixels, PNG, JPEG or WebP
    early exit + picture         images that the early exit is sure of stay; the others go as pictures,
                                 and are answered as the bundle's own are: by the server or by both exits

The whole model is the bundle's own head and tail, one after the other, on the server; it sees what the
picture decodes to. It was not trained on such pictures, which would help it. Bytes are those of the picture
file alone, as for activations they are those of the payload alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features
from pydantic import BaseModel, ConfigDict, ValidationError

from offramp.common.bundle.load import Bundle
from offramp.common.errors import DataError, printable
from offramp.common.part.answer import Replies
from offramp.common.part.engine import Engine
from offramp.training.calibrate.frontier import THRESHOLDS

if TYPE_CHECKING:
    # It imports torch, which nothing here needs.
    from offramp.training.data.datasets import Labelled

BASELINES = "baselines.json"
_BATCH = 64


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
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(
            buffer, self.pillow, **dict(self.settings)
        )
        return buffer.getvalue()

    def read(self, data: bytes, like: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What the bytes decode to, uint8 [3, H, W] of the same shape as ``like``."""
        if self.pillow is None:
            return np.frombuffer(data, np.uint8).reshape(like.shape)
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB"), np.uint8).transpose(2, 0, 1)


RAW_PIXELS = Format("raw pixels")
FORMATS: tuple[Format, ...] = (
    RAW_PIXELS,
    Format("PNG", "PNG", (("optimize", True),)),
    # Method 6 takes seconds for a picture of 160x160, and is no smaller.
    Format("WebP lossless", "WEBP", (("lossless", True), ("quality", 100), ("method", 4))),
    *(
        Format(f"JPEG {quality}", "JPEG", (("quality", quality), ("optimize", True)))
        for quality in (5, 10, 20, 50, 75, 90)
    ),
    *(
        Format(f"WebP {quality}", "WEBP", (("quality", quality), ("method", 6)))
        for quality in (1, 5, 10, 20, 50, 75, 90)
    ),
    # Pillow's wheels have it, other builds may not.
    *(
        Format(f"AVIF {quality}", "AVIF", (("quality", quality), ("speed", 8)))
        for quality in (20, 50)
        if features.check("avif")
    ),
)
HYBRIDS = ("WebP 10", "WebP 20", "WebP 50", "WebP 75")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Pictures(_Strict):
    """Every image sent in one format."""

    name: str
    bytes_mean: float
    accuracy: float
    """Of the whole model on the decoded pictures, a share."""


class Hybrid(_Strict):
    """Unsure images sent in one format, by confidence threshold."""

    name: str
    threshold: list[float]
    bytes_mean: list[float]
    """Over all images; one that exits early sends 0 bytes."""
    accuracy: list[float]


class Baselines(_Strict):
    """All of them for one bundle."""

    bundle: str
    digest: str
    images: int
    pictures: list[Pictures]
    hybrids: list[Hybrid]


def measure(
    bundle: Bundle,
    data: Labelled,
    *,
    formats: Sequence[Format] = FORMATS,
    threads: int = 1,
    tick: Callable[[], object] = lambda: None,
) -> Baselines:
    """Measure a bundle's whole model on pictures.

    Args:
        bundle: its head and tail are the whole model, its early exit that of the hybrids.
        data: test images.
        formats: what is tried; those named in ``HYBRIDS`` are combined with the early exit as well.
        threads: of the graphs.
        tick: called after each format.
    """
    engine = Engine(bundle, threads)
    _, early = head_answers(engine, data.images)
    confidence, early_right = early.max(axis=1), early.argmax(axis=1) == data.labels
    rule = bundle.manifest.sent_answer
    pictures, hybrids = [], []
    for form in formats:
        sizes, decoded = sent(form, data.images)
        whole = whole_answers(engine, decoded)
        right = whole.best == data.labels
        pictures.append(
            Pictures(name=form.name, bytes_mean=float(sizes.mean()), accuracy=float(right.mean()))
        )
        if form.name in HYBRIDS:
            unsure = [confidence <= at for at in THRESHOLDS]
            answered = whole.answers(early, rule) == data.labels
            hybrids.append(
                Hybrid(
                    name=f"early exit + {form.name}",
                    threshold=list(THRESHOLDS),
                    bytes_mean=[float(np.where(one, sizes, 0).mean()) for one in unsure],
                    accuracy=[float(np.where(one, answered, early_right).mean()) for one in unsure],
                )
            )
        tick()
    return Baselines(
        bundle=bundle.manifest.name,
        digest=bundle.digest.hex(),
        images=len(data),
        pictures=pictures,
        hybrids=hybrids,
    )


def sent(form: Format, images: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Bytes of each image, uint8 [N, 3, H, W], in a format, int64 [N], and what they decode to."""
    coded = [form.write(image) for image in images]
    decoded = np.stack([form.read(data, image) for data, image in zip(coded, images, strict=True)])
    return np.array([len(data) for data in coded], np.int64), decoded


def head_answers(engine: Engine, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """What travels of each image, uint8 [N, C, h, w], and the early exit's probabilities, float32 [N, K]."""
    symbols, probabilities = zip(*(engine.head(batch) for batch in batches(images)), strict=True)
    return np.concatenate(symbols), np.concatenate(probabilities)


def tail_answers(engine: Engine, symbols: NDArray[np.uint8]) -> Replies:
    """What the tail makes of symbols, uint8 [N, C, h, w]."""
    return Replies.of(np.concatenate([engine.tail(batch) for batch in batches(symbols)]))


def whole_answers(engine: Engine, images: NDArray[np.uint8]) -> Replies:
    """What the whole model makes of images, uint8 [N, 3, H, W]."""
    return tail_answers(engine, head_answers(engine, images)[0])


def batches(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Parts of an array of images that the graphs take at a time: of all at once, activations fill memory."""
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]


def read_baselines(folder: Path) -> list[Baselines]:
    """Every ``baselines.json`` in the bundles of a folder. Raises DataError for one that is none."""
    found = []
    for path in sorted(folder.glob(f"*/{BASELINES}")):
        try:
            found.append(Baselines.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError) as error:
            raise DataError(f"{path}: is no record of baselines: {printable(type(error).__name__)}") from None
    return found
