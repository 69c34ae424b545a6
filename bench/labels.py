"""Pictures with their classes: a folder with a ``labels.csv``."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from offramp.common.errors import DataError
from offramp.common.files import read_bounded
from offramp.common.inputs.labels import LABELS, read_labels
from offramp.common.inputs.pictures import FILE_BYTES


def labels_of(images: Path, classes: list[str]) -> dict[str, str]:
    """File name to class, of a folder's ``labels.csv``. Raises ConfigError or DataError."""
    path = images / LABELS
    labels = dict(read_labels(path))
    if not labels or not set(labels.values()) <= set(classes):
        raise DataError(f"{path}: expected labels among {', '.join(classes[:12])}")
    return labels


def open_picture(path: Path) -> Image.Image:
    """A picture, read whole, in its own colour mode. Raises DataError."""
    data = read_bounded(path, FILE_BYTES, error=DataError, expected="a picture")
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            return picture.copy()
    except OSError as error:
        raise DataError(f"{path}: {error}") from None
