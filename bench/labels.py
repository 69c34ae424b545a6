"""Pictures with their classes: a folder with a ``labels.csv``, or with a folder for each class."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from offramp.common.errors import ConfigError, DataError, printable
from offramp.common.files import read_bounded
from offramp.common.inputs.folder import find
from offramp.common.inputs.labels import LABELS, read_labels
from offramp.common.inputs.pictures import FILE_BYTES


def labels_of(images: Path, classes: list[str]) -> dict[str, str]:
    """Path from the folder to class, of each picture: by its ``labels.csv``, else by its class folders.

    Raises:
        ConfigError: the folder is not there, or has neither.
        DataError: labels or folders that are not the classes, or a file that cannot be read.
    """
    path = images / LABELS
    if not path.exists() and images.is_dir():
        return _by_folders(images, classes)
    labels = dict(read_labels(path))
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
        raise ConfigError(
            f"{images}: expected {LABELS} with the columns file,label, or a folder for each class, among "
            f"{', '.join(map(printable, classes[:12]))}"
        )
    if others := sorted(names - known):
        raise DataError(
            f"{images}: has the folder {printable(others[0])}, expected classes of the bundle: "
            f"{', '.join(map(printable, classes[:12]))}"
        )
    pictures = [each.relative_to(images) for each in find(images).files]
    if loose := [each for each in pictures if each.parts[0] not in known]:
        raise DataError(f"{images / loose[0]}: is in no class folder, so its class is not known")
    if not pictures:
        raise DataError(f"{images}: has no pictures")
    return {each.as_posix(): each.parts[0] for each in pictures}


def open_picture(path: Path) -> Image.Image:
    """A picture, read whole, in its own colour mode. Raises DataError."""
    data = read_bounded(path, FILE_BYTES, error=DataError, expected="a picture")
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            return picture.copy()
    except OSError as error:
        raise DataError(f"{path}: {error}") from None
