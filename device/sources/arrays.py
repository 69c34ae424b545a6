"""Stacks of images and of tensors in ``.npz`` and ``.npy`` files, read as streams.

Neither the file's claims nor its compression decide how much memory it takes.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from offramp.common.errors import DataError
from offramp.common.files import open_plain
from offramp.common.inputs.arrays import check_stack
from offramp.common.inputs.headers import Refused, check_size
from offramp.common.inputs.pictures import to_input
from offramp.common.inputs.spec import Preprocessing, TensorInput
from offramp.common.inputs.tensors import Ended, check_dtype, meant, npy_header, read_one
from offramp.device.sources.item import Item


def read_npz(path: Path, preprocessing: Preprocessing) -> Iterator[Item]:
    """The array ``images`` of an ``.npz``, uint8 as in ``check_stack``, one image at a time."""
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


def _npy_shape(path: Path, array: IO[bytes]) -> tuple[tuple[int, ...], bool]:
    """The stack's shape, and whether its channels come before its rows."""
    try:
        shape, dtype = npy_header(array)
    except Refused as error:
        raise DataError(f"{path}: 'images' {error}") from None
    shown = f"{path}: 'images' is {dtype} {shape}"
    if dtype != np.uint8:
        raise DataError(f"{shown}, expected uint8 in C order")
    try:
        channels_first = check_stack(shape)
        height, width = shape[2:4] if channels_first else shape[1:3]
        check_size(width, height)
    except Refused as error:
        raise DataError(f"{shown} and {error}") from None
    return shape, channels_first


def read_tensors(path: Path, spec: TensorInput) -> Iterator[Item]:
    """The tensors of an ``.npy``, one or a stack, or of an ``.npz``'s array ``inputs``, one at a time."""
    try:
        with open_plain(path, DataError) as file:
            if path.suffix.lower() == ".npz":
                with zipfile.ZipFile(file) as archive, archive.open("inputs.npy") as array:
                    yield from _tensors(path, array, spec)
            else:
                yield from _tensors(path, file, spec)
    except KeyError:
        yield Item(str(path), DataError(f"{path}: has no array named 'inputs'"))
    except (DataError, Refused) as error:
        text = str(error) if isinstance(error, DataError) else f"{path}: {error}"
        yield Item(str(path), DataError(text))
    except Exception as error:  # as above
        yield Item(str(path), DataError(f"{path}: is a damaged {path.suffix.lower()}: {error}"))


def _tensors(path: Path, array: IO[bytes], spec: TensorInput) -> Iterator[Item]:
    shape, dtype = npy_header(array)
    check_dtype(dtype, spec)
    if shape != spec.shape and shape[1:] != spec.shape:
        raise Refused(f"is {dtype} {list(shape)}, {meant(spec)}, alone or as a stack")
    stacked = len(shape) > len(spec.shape)
    for index in range(shape[0] if stacked else 1):
        name = f"{path}[{index}]" if stacked else str(path)
        start = time.perf_counter()
        try:
            found = read_one(array, dtype, spec)
        except Ended as error:
            yield Item(name, DataError(f"{name}: {error}"))
            return
        except Refused as error:
            yield Item(name, DataError(f"{name}: {error}"))
            continue
        yield Item(name, found, time.perf_counter() - start)
