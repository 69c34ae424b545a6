"""Files from strangers' disks, whole, and the pictures in them."""

from __future__ import annotations

import time
from pathlib import Path

from offramp.common.bundle.manifest import Preprocessing
from offramp.common.errors import DataError
from offramp.common.files import read_bounded
from offramp.common.inputs.pictures import FILE_BYTES, decode
from offramp.device.sources.item import Item


def read_file(path: Path, limit: int) -> bytes:
    """The whole of one plain file of 1 … limit bytes. Raises DataError naming it."""
    data = read_bounded(path, limit, error=DataError)
    if not data:
        raise DataError(f"{path}: is empty, expected 1 … {limit} bytes")
    return data


def read_picture(path: Path, preprocessing: Preprocessing) -> Item:
    """One picture file."""
    try:
        data = read_file(path, FILE_BYTES)
        start = time.perf_counter()
        pixels = decode(str(path), data, preprocessing)
    except DataError as error:
        return Item(str(path), error)
    return Item(str(path), pixels, time.perf_counter() - start)
