"""Where images come from: folders, files, lists of files and ``.npz`` arrays.

A picture that cannot be used is an item with an error, so that the ones after it are still answered.
"""

from __future__ import annotations

import os
import stat
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from offramp.common.bundle import Preprocessing
from offramp.common.errors import ConfigError, DataError

EXTENSIONS = (".png", ".jpg", ".jpeg")
FILE_BYTES = 64 << 20
PIXELS = 50_000_000
"""Most pixels of one picture; above it nothing is decoded."""
LIST_BYTES = 64 << 20

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Item:
    """One image, uint8 [3, H, W] as the head takes it, or why there is none."""

    name: str
    image: Pixels | DataError


@dataclass(frozen=True)
class Source:
    """All images of the command line, in order.

    paths: folders (their PNG and JPEG files by name, sub-folders too), pictures, ``.npz`` files, and
    ``.txt`` files with one path a line, relative to the list's own folder.
    """

    paths: list[Path]
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        for path in self.paths:
            try:
                path.stat()
            except OSError as error:
                raise ConfigError(f"{path}: {error.strerror}, expected a file or a folder") from None

    def count(self) -> int | None:
        """How many images there are, for a progress bar; None if only reading would tell."""
        if any(path.suffix.lower() == ".npz" for path in self.paths):
            return None
        return sum(1 for _ in self._files())

    def __iter__(self) -> Iterator[Item]:
        for path in self._files():
            if path.suffix.lower() == ".npz":
                yield from _read_npz(path, self.preprocessing)
            else:
                yield _read_picture(path, self.preprocessing)

    def _files(self) -> Iterator[Path]:
        for path in self.paths:
            if path.is_dir():
                yield from sorted(
                    child
                    for child in path.rglob("*")
                    if child.suffix.lower() in EXTENSIONS and not child.is_dir()
                )
            elif path.suffix.lower() == ".txt":
                yield from _read_list(path)
            else:
                yield path


def _read_list(path: Path) -> Iterator[Path]:
    try:
        lines = _read_file(path, LIST_BYTES).decode().splitlines()
    except DataError as error:
        raise ConfigError(str(error)) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is no UTF-8 text, expected one path a line") from None
    for line in lines:
        if line.strip():
            yield path.parent / line.strip()


def _open(path: Path) -> BinaryIO:
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


def _read_file(path: Path, limit: int) -> bytes:
    """The whole of one plain file. Raises DataError naming it."""
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= limit:
            raise DataError(f"{path}: has {size} bytes, expected 1 … {limit}")
        try:
            return file.read(size)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _read_picture(path: Path, preprocessing: Preprocessing) -> Item:
    try:
        return Item(str(path), decode_picture(str(path), _read_file(path, FILE_BYTES), preprocessing))
    except DataError as error:
        return Item(str(path), error)


def decode_picture(name: str, data: bytes, preprocessing: Preprocessing) -> Pixels:
    """A PNG or JPEG file's bytes → uint8 [3, H, W]. Raises DataError naming the file."""
    from io import BytesIO

    try:
        # Only these two decoders ever see the bytes. The size is known before any pixel is decoded, so
        # Pillow's own warning of it would only be said twice.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(BytesIO(data), formats=("PNG", "JPEG")) as picture,
        ):
            if picture.width * picture.height > PIXELS:
                raise DataError(
                    f"{name}: is {picture.width}×{picture.height} pixels, expected at most {PIXELS:,} in all"
                )
            # Pillow would cut such pixels off at 255 rather than scale them.
            if picture.mode.startswith(("I", "F")):
                raise DataError(f"{name}: has pixels of mode {picture.mode}, expected 8 bits a channel")
            return to_input(picture, preprocessing)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: is no PNG or JPEG picture") from None
    except Image.DecompressionBombError:
        raise DataError(f"{name}: has too many pixels, expected at most {PIXELS:,}") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, … here
        raise DataError(f"{name}: is a damaged picture: {error}") from None


def to_input(picture: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """A picture in the network's colours and size, uint8 [3, H, W]."""
    size = (preprocessing.width, preprocessing.height)
    converted = picture.convert(preprocessing.color)
    if converted.size != size:
        converted = converted.resize(size, Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(converted, np.uint8).transpose(2, 0, 1))


def _read_npz(path: Path, preprocessing: Preprocessing) -> Iterator[Item]:
    """The array ``images`` of an ``.npz``, uint8 [N, H, W, 3] or [N, H, W], one image at a time.

    It is read as a stream: neither the file's claims nor its compression decide how much memory it takes.
    """
    try:
        with (
            _open(path) as file,
            zipfile.ZipFile(file) as archive,
            archive.open("images.npy") as array,
        ):
            shape = _npy_shape(path, array)
            size = int(np.prod(shape[1:], dtype=np.int64))
            for index in range(shape[0]):
                data = array.read(size)
                name = f"{path}[{index}]"
                if len(data) < size:
                    yield Item(
                        name, DataError(f"{name}: the array ends early, its header says {shape[0]} images")
                    )
                    return
                picture = Image.fromarray(np.frombuffer(data, np.uint8).reshape(shape[1:]))
                yield Item(name, to_input(picture, preprocessing))
    except KeyError:
        yield Item(str(path), DataError(f"{path}: has no array named 'images'"))
    except DataError as error:
        yield Item(str(path), error)
    except Exception as error:  # zipfile, its decompressors and NumPy's header reader raise what they like
        yield Item(str(path), DataError(f"{path}: is a damaged .npz: {error}"))


def _npy_shape(path: Path, array: zipfile.ZipExtFile | object) -> tuple[int, ...]:
    version = np.lib.format.read_magic(array)  # type: ignore[arg-type]
    # Version 2.0 is for headers above 64 KiB, and NumPy reads one of up to 4 GiB before it refuses it.
    if version != (1, 0):
        raise DataError(f"{path}: 'images' is .npy version {version}, expected (1, 0)")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(array)  # type: ignore[arg-type]
    fits = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
    if not fits or dtype != np.uint8 or fortran:
        raise DataError(
            f"{path}: 'images' is {dtype} {shape}, expected uint8 [N, H, W, 3] or [N, H, W] in C order"
        )
    # Python's integers: NumPy's would wrap around.
    if min(shape) < 0 or 0 in shape[1:] or shape[1] * shape[2] > PIXELS:
        raise DataError(
            f"{path}: 'images' is {shape}, expected pictures of at least 1×1 and at most {PIXELS:,} pixels"
        )
    return tuple(int(side) for side in shape)
