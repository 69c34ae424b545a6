"""Pictures with their classes: a folder with a ``labels.csv``, or with a folder for each class."""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image

from offramp.common.errors import ConfigError, DataError, printable
from offramp.common.inputs.folder import find

LABELS = "labels.csv"
_EXPECTED = f"expected {LABELS} with the columns file,label, or a folder for each class"


def read_labels(images: Path, classes: list[str]) -> dict[str, str]:
    """Path from the folder to class, of each picture: by ``labels.csv``, else by class folders.

    Raises:
        ConfigError: the folder is not there, or has neither.
        DataError: labels or folders that are not the classes, or a file that cannot be read.
    """
    path = images / LABELS
    if not path.exists() and images.is_dir():
        return _by_folders(images, classes)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            labels = {row["file"]: row["label"] for row in csv.DictReader(file)}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}, {_EXPECTED}") from None
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise DataError(f"{path}: expected a CSV with the columns file,label") from None
    if not labels or not set(labels.values()) <= set(classes):
        raise DataError(f"{path}: expected labels among {', '.join(classes[:12])}")
    return labels


def _by_folders(images: Path, classes: list[str]) -> dict[str, str]:
    try:
        folders = sorted(each for each in images.iterdir() if each.is_dir() and each.name[0] != ".")
    except OSError as error:
        raise ConfigError(f"{images}: {error.strerror}, expected a folder to read") from None
    names = {each.name for each in folders}
    known = names & set(classes)
    if not known and "test" in names and {each.name for each in (images / "test").iterdir()} & set(classes):
        raise ConfigError(f"{images}: has train and test parts, expected {images / 'test'}")
    if not known:
        raise ConfigError(f"{images}: {_EXPECTED}, among {', '.join(map(printable, classes[:12]))}")
    if others := sorted(names - known):
        raise DataError(
            f"{images}: has the folder {printable(others[0])}, expected classes of the bundle: "
            f"{', '.join(map(printable, classes[:12]))}"
        )
    pictures = [each.relative_to(images) for each in find(images).pictures]
    if loose := [each for each in pictures if each.parts[0] not in known]:
        raise DataError(f"{images / loose[0]}: is in no class folder, so its class is not known")
    if not pictures:
        raise DataError(f"{images}: has no pictures")
    return {each.as_posix(): each.parts[0] for each in pictures}


def open_picture(path: Path) -> Image.Image:
    """A picture, read whole, in its own colour mode. Raises DataError."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture.copy()
    except OSError as error:
        raise DataError(f"{path}: {error}") from None
