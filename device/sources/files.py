"""Files from strangers' disks, whole, and the inputs in them."""

from __future__ import annotations

import time
from pathlib import Path

from offramp.common.errors import DataError
from offramp.common.files import read_bounded
from offramp.common.inputs.pictures import FILE_BYTES
from offramp.common.inputs.prepare import Spec, decode
from offramp.device.sources.item import Item


def read_file(path: Path, limit: int) -> bytes:
    """The whole of one plain file of 1 … limit bytes. Raises DataError naming it."""
    data = read_bounded(path, limit, error=DataError)
    if not data:
        raise DataError(f"{path}: is empty, expected 1 … {limit} bytes")
    return data


def read_one(path: Path, spec: Spec) -> Item:
    """One file with one input: a picture, a sound, a tensor."""
    try:
        data = read_file(path, FILE_BYTES)
        start = time.perf_counter()
        found = decode(str(path), data, spec)
    except DataError as error:
        return Item(str(path), error)
    return Item(str(path), found, time.perf_counter() - start, data)
