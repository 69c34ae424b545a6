"""Pictures with their classes: a folder with a ``labels.csv``."""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image

from offramp.common.errors import ConfigError, DataError


def read_labels(images: Path, classes: list[str]) -> dict[str, str]:
    """File name to class, of a folder's ``labels.csv``. Raises ConfigError or DataError."""
    path = images / "labels.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            labels = {row["file"]: row["label"] for row in csv.DictReader(file)}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}, expected a CSV with the columns file,label") from None
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise DataError(f"{path}: expected a CSV with the columns file,label") from None
    if not labels or not set(labels.values()) <= set(classes):
        raise DataError(f"{path}: expected labels among {', '.join(classes[:12])}")
    return labels


def open_picture(path: Path) -> Image.Image:
    """A picture, read whole, in its own colour mode. Raises DataError."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture.copy()
    except OSError as error:
        raise DataError(f"{path}: {error}") from None
