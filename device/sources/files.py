"""Files from strangers' disks: plain ones only, and no longer than they may be; and the pictures in them."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import BinaryIO

from offramp.common.bundle.load import Preprocessing
from offramp.common.errors import DataError
from offramp.common.inputs.pictures import decode
from offramp.device.sources.item import Item

FILE_BYTES = 64 << 20


def open_plain(path: Path) -> BinaryIO:
    """One plain file. Raises DataError naming it."""
    try:
        # O_NONBLOCK: opening a named pipe must not wait for its writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: cannot be read: {reason}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DataError(f"{path}: is not a plain file")
    return os.fdopen(handle, "rb")


def read_file(path: Path, limit: int) -> bytes:
    """The whole of one plain file. Raises DataError naming it."""
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= limit:
            raise DataError(f"{path}: has {size} bytes, expected 1 … {limit}")
        try:
            return file.read(size)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def read_picture(path: Path, preprocessing: Preprocessing) -> Item:
    """One picture file."""
    try:
        data = read_file(path, FILE_BYTES)
        start = time.perf_counter()
        pixels = decode(str(path), data, preprocessing)
    except DataError as error:
        return Item(str(path), error)
    return Item(str(path), pixels, time.perf_counter() - start)
