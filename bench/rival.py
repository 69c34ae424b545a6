"""What Offramp competes with: pictures sent to the whole model, all of them or only the unsure ones.

A picture that is larger than the model's input is sent at that size: it is answered no worse so, and fewer
bytes. Behind an early exit the rival has the T_c that serves it best, not the bundle's.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from offramp.bench.answers import head_answers, whole_answers
from offramp.bench.labels import open_picture
from offramp.common import cpus
from offramp.common.bundle.load import Bundle
from offramp.common.inputs.formats import RAW_PIXELS, Format
from offramp.common.inputs.pictures import to_input
from offramp.common.part.answer import Replies
from offramp.common.part.engine import Engine

WEBP = tuple(Format(f"WebP quality {q}", "WEBP", (("quality", q), ("method", 6))) for q in (90, 50, 20, 5, 1))
FORMATS = (
    RAW_PIXELS,
    Format("PNG", "PNG", (("optimize", True),)),
    *(Format(f"JPEG quality {q}", "JPEG", (("quality", q),)) for q in (90, 50, 20)),
    *WEBP,
)
_STEPS = np.linspace(0, 1, 101)
"""Thresholds that a rival behind an early exit is tried at."""


@dataclass(frozen=True)
class Row:
    """One way to have the images classified."""

    name: str
    accuracy: float
    exit_rate: float | None
    payload_bytes_mean: float
    wire_bytes_mean: float | None
    """Both directions, TCP payload, over all images; None where nothing was sent over a socket."""


@dataclass(frozen=True)
class Coded:
    """All images in one format: bytes of each, int64 [N], and what the whole model answers to them."""

    form: Format
    sizes: NDArray[np.int64]
    replies: Replies


def coded_pictures(whole: Bundle, images: Path, labels: dict[str, str]) -> list[Coded]:
    """Every image in each of `FORMATS`, answered by the whole model."""
    engine = Engine(whole, cpus.available())
    pictures = [_shrunk(open_picture(images / name), whole) for name in labels]
    found = []
    for form in FORMATS:
        sizes, inputs = zip(*(_sent(form, picture, whole) for picture in pictures), strict=True)
        found.append(Coded(form, np.array(sizes, np.int64), whole_answers(engine, np.stack(inputs))))
    return found


def picture_rows(whole: Bundle, coded: Sequence[Coded], labels: dict[str, str]) -> list[Row]:
    """Every image sent to the whole model: as its activation, uncoded, and as a picture in each format."""
    truth = _indices(whole, labels)
    rows = [
        Row(each.form.name, float((each.replies.best == truth).mean()), None, float(each.sizes.mean()), None)
        for each in coded
    ]
    # The activation of the raw pixels is what the whole model computes by itself.
    plain = next(row for row in rows if row.name == RAW_PIXELS.name)
    return [Row("raw INT8 activation", plain.accuracy, None, whole.codec.raw_bytes, None), *rows]


def hybrid_rows(
    bundle: Bundle, coded: Sequence[Coded], images: Path, labels: dict[str, str], accuracy: float
) -> list[Row]:
    """The same early exit, and unsure images as WebP to the whole model: the one to beat.

    Each quality at the T_c of fewest bytes with at least ``accuracy``, or of the highest accuracy there is.
    """
    engine, manifest = Engine(bundle, cpus.available()), bundle.manifest
    truth = _indices(bundle, labels)
    pixels = np.stack([to_input(open_picture(images / name), manifest.preprocessing) for name in labels])
    _, probabilities = head_answers(engine, pixels)
    early, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    rows = []
    for each in coded:
        if each.form not in WEBP:
            continue
        sent = each.replies.answers(probabilities, manifest.sent_answer)
        points = []
        for at in _STEPS:
            exits = confidence > at
            right = float((np.where(exits, early, sent) == truth).mean())
            size = float(np.where(exits, 0, each.sizes).mean())
            points.append(Row(f"{each.form.name}, T_c = {at:g}", right, float(exits.mean()), size, None))
        enough = [row for row in points if row.accuracy >= accuracy - 1e-12]
        rows.append(
            min(enough, key=lambda row: row.payload_bytes_mean)
            if enough
            else max(points, key=lambda row: (row.accuracy, -row.payload_bytes_mean))
        )
    return rows


def _indices(bundle: Bundle, labels: dict[str, str]) -> NDArray[np.int64]:
    return np.array([bundle.manifest.classes.index(label) for label in labels.values()], np.int64)


def _shrunk(picture: Image.Image, whole: Bundle) -> Image.Image:
    """A picture at the size of the model's input, if it is larger."""
    wanted = whole.manifest.preprocessing
    if picture.width * picture.height <= wanted.width * wanted.height:
        return picture
    return Image.fromarray(np.ascontiguousarray(to_input(picture, wanted).transpose(1, 2, 0)))


def _sent(form: Format, picture: Image.Image, whole: Bundle) -> tuple[int, NDArray[np.uint8]]:
    """Size of the file, bytes, and the model's input that its receiver makes of it, uint8 [3, H, W]."""
    data = form.file(picture)
    if form.pillow is None:
        return len(data), to_input(picture, whole.manifest.preprocessing)
    with Image.open(io.BytesIO(data)) as received:
        return len(data), to_input(received.convert("RGB"), whole.manifest.preprocessing)
