"""What the paper leaves out: pictures sent in place of activations, on the axes of Figure 10.

    picture to the whole model   every image goes to the server as raw pixels, PNG, JPEG or WebP
    early exit + picture         images that the early exit is sure of stay; the others go as pictures,
                                 and are answered as the bundle's own are: by the server or by both exits

The whole model is the bundle's own head and tail, one after the other, on the server; it sees what the
picture decodes to. It was not trained on such pictures, which would help it. Bytes are those of the picture
file alone, as for activations they are those of the payload alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from offramp.bench.answers import head_answers, whole_answers
from offramp.common.bundle.load import Bundle
from offramp.common.errors import DataError, printable
from offramp.common.inputs.formats import FORMATS, Format, sent
from offramp.common.part.engine import Engine
from offramp.training.calibrate.frontier import THRESHOLDS

if TYPE_CHECKING:
    # It imports torch, which is not needed here.
    from offramp.training.data.datasets import Labelled

BASELINES = "baselines.json"
HYBRIDS = ("WebP 10", "WebP 20", "WebP 50", "WebP 75")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AsPictures(_Strict):
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
    pictures: list[AsPictures]
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
            AsPictures(name=form.name, bytes_mean=float(sizes.mean()), accuracy=float(right.mean()))
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


def read_baselines(folder: Path) -> list[Baselines]:
    """Every ``baselines.json`` in the bundles of a folder. Raises DataError for a damaged one."""
    found = []
    for path in sorted(folder.glob(f"*/{BASELINES}")):
        try:
            found.append(Baselines.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError) as error:
            raise DataError(f"{path}: not a record of baselines: {printable(type(error).__name__)}") from None
    return found
