"""What Offramp competes with: pictures sent to the whole model, all of them or only the unsure ones."""

from __future__ import annotations

import io
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
from offramp.common.part.engine import Engine

WEBP = tuple(Format(f"WebP quality {q}", "WEBP", (("quality", q), ("method", 6))) for q in (90, 50, 20))
Pixels = NDArray[np.uint8]

FORMATS = (
    RAW_PIXELS,
    Format("PNG", "PNG", (("optimize", True),)),
    *(Format(f"JPEG quality {q}", "JPEG", (("quality", q),)) for q in (90, 50, 20)),
    *WEBP,
)


@dataclass(frozen=True)
class Row:
    """One way to have the images classified."""

    name: str
    accuracy: float
    exit_rate: float | None
    payload_bytes_mean: float
    wire_bytes_mean: float | None
    """Both directions, TCP payload, over all images; None where nothing was sent over a socket."""


def picture_rows(whole: Bundle, images: Path, labels: dict[str, str]) -> list[Row]:
    """Every image sent to the whole model: as its activation, uncoded, and as a picture in each format."""
    engine = Engine(whole, cpus.available())
    pictures = [open_picture(images / name) for name in labels]
    truth = _indices(whole, labels)

    def row(name: str, sizes: list[int], inputs: list[Pixels]) -> Row:
        right = whole_answers(engine, np.stack(inputs)).best == truth
        return Row(name, float(right.mean()), None, sum(sizes) / len(sizes), None)

    seen = [to_input(picture, whole.manifest.preprocessing) for picture in pictures]
    rows = [row("raw INT8 activation", [whole.codec.raw_bytes] * len(pictures), seen)]
    for form in FORMATS:
        sizes, inputs = zip(*(_sent(form, picture, whole) for picture in pictures), strict=True)
        rows.append(row(form.name, list(sizes), list(inputs)))
    return rows


def hybrid_rows(bundle: Bundle, whole: Bundle, images: Path, labels: dict[str, str]) -> list[Row]:
    """The same early exit at its own T_c, and unsure images as WebP to the whole model: the one to beat."""
    threads, threshold = cpus.available(), bundle.manifest.threshold
    engine, server = Engine(bundle, threads), Engine(whole, threads)
    pictures = [open_picture(images / name) for name in labels]
    truth = _indices(bundle, labels)
    pixels = np.stack([to_input(picture, bundle.manifest.preprocessing) for picture in pictures])
    _, probabilities = head_answers(engine, pixels)
    exits = probabilities.max(axis=1) > threshold
    rows = []
    for form in WEBP[1:]:
        best = probabilities.argmax(axis=1)
        unsure = [_sent(form, pictures[i], whole) for i in np.flatnonzero(~exits)]
        if unsure:
            answered = whole_answers(server, np.stack([seen for _, seen in unsure]))
            best[~exits] = answered.answers(probabilities[~exits], bundle.manifest.sent_answer)
        name = f"{form.name}, T_c = {threshold:g}"
        sent = sum(size for size, _ in unsure)
        rows.append(Row(name, float((best == truth).mean()), float(exits.mean()), sent / len(labels), None))
    return rows


def _indices(bundle: Bundle, labels: dict[str, str]) -> NDArray[np.int64]:
    return np.array([bundle.manifest.classes.index(label) for label in labels.values()], np.int64)


def _sent(form: Format, picture: Image.Image, whole: Bundle) -> tuple[int, Pixels]:
    """Size of the file, bytes, and the model's input that its receiver makes of it, uint8 [3, H, W]."""
    data = form.file(picture)
    if form.pillow is None:
        return len(data), to_input(picture, whole.manifest.preprocessing)
    with Image.open(io.BytesIO(data)) as received:
        return len(data), to_input(received.convert("RGB"), whole.manifest.preprocessing)
