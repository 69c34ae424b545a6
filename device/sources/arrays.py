"""Stacks of images in ``.npz`` files."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from offramp.common.bundle.manifest import Preprocessing
from offramp.common.errors import DataError
from offramp.common.files import open_plain
from offramp.common.inputs.arrays import check_stack
from offramp.common.inputs.headers import Refused, check_size
from offramp.common.inputs.pictures import to_input
from offramp.device.sources.item import Item


def read_npz(path: Path, preprocessing: Preprocessing) -> Iterator[Item]:
    """The array ``images`` of an ``.npz``, uint8 as in ``check_stack``, one image at a time.

    It is read as a stream: neither the file's claims nor its compression decide how much memory it takes.
    """
    try:
        with (
            open_plain(path, DataError) as file,
            zipfile.ZipFile(file) as archive,
            archive.open("images.npy") as array,
        ):
            shape, channels_first = _npy_shape(path, array)
            size = int(np.prod(shape[1:], dtype=np.int64))
            for index in range(shape[0]):
                data = array.read(size)
                name = f"{path}[{index}]"
                if len(data) < size:
                    yield Item(
                        name, DataError(f"{name}: the array ends early, its header says {shape[0]} images")
                    )
                    return
                start = time.perf_counter()
                pixels = np.frombuffer(data, np.uint8).reshape(shape[1:])
                if channels_first:
                    pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
                picture = Image.fromarray(pixels[..., 0] if shape[-1] == 1 and len(shape) == 4 else pixels)
                image = to_input(picture, preprocessing)
                yield Item(name, image, time.perf_counter() - start)
    except KeyError:
        yield Item(str(path), DataError(f"{path}: has no array named 'images'"))
    except DataError as error:
        yield Item(str(path), error)
    except Exception as error:  # zipfile, its decompressors and NumPy's header reader raise what they like
        yield Item(str(path), DataError(f"{path}: is a damaged .npz: {error}"))


def _npy_shape(path: Path, array: zipfile.ZipExtFile | object) -> tuple[tuple[int, ...], bool]:
    """The stack's shape, and whether its channels come before its rows."""
    version = np.lib.format.read_magic(array)  # type: ignore[arg-type]
    # Version 2.0 is for headers above 64 KiB, and NumPy reads one of up to 4 GiB before it refuses it.
    if version != (1, 0):
        raise DataError(f"{path}: 'images' is .npy version {version}, expected (1, 0)")
    # Python's integers: NumPy's would wrap around.
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(array)  # type: ignore[arg-type]
    shown = f"{path}: 'images' is {dtype} {shape}"
    if dtype != np.uint8 or fortran:
        raise DataError(f"{shown}{' in Fortran order' * fortran}, expected uint8 in C order")
    if min(shape, default=0) < 0:
        raise DataError(f"{shown}, expected at least 1×1 pixels and no negative side")
    try:
        channels_first = check_stack(shape)
        height, width = shape[2:4] if channels_first else shape[1:3]
        check_size(width, height)
    except Refused as error:
        raise DataError(f"{shown} and {error}") from None
    return shape, channels_first
