"""Tensors from arrays and from files: ``.npy``, ``.npz`` and WAV.

uint8 as it is, where the bundle takes uint8; floats of 16, 32 or 64 bits as numbers within the bundle's
``range`` (what lies outside is clipped); no other type, because nothing says what its values would mean.
"""

from __future__ import annotations

import io
import math
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from offramp.common.errors import DataError
from offramp.common.inputs.headers import Refused, sniff
from offramp.common.inputs.sounds import decode_sound, quantized
from offramp.common.inputs.spec import TensorInput, WavFile
from offramp.common.inputs.wav import is_wav

Tensor = NDArray[np.uint8] | NDArray[np.float32]


class Ended(Refused):
    """An array that has fewer values than its header says."""


NPY = b"\x93NUMPY"
SUFFIXES = (".npy", ".npz")


def suffixes(spec: TensorInput) -> tuple[str, ...]:
    """Of the files in a folder that a bundle takes."""
    return (".wav", ".wave") if isinstance(spec.file, WavFile) else (".npy",)


def to_tensor(value: Any, spec: TensorInput, name: str = "input") -> Tensor:
    """A file's bytes or one array → the head's input, uint8 or float32 [*shape].

    An array of that very type and shape is returned as it is. Raises DataError that starts with the name.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return decode(name, bytes(value), spec)
    if hasattr(value, "getbands") and hasattr(value, "convert"):
        raise DataError(f"{name}: is a picture, this bundle takes {spec.what}")
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever an object's own __array__ raises
        raise DataError(f"{name}: is a {type(value).__name__} that is not an array: {error}") from None
    if array.shape == (1, *spec.shape):
        array = array[0]
    try:
        check_dtype(array.dtype, spec)
        if array.shape != spec.shape:
            raise Refused(f"is {array.dtype} {list(array.shape)}, {meant(spec)}")
        return checked(array, spec)
    except Refused as error:
        raise DataError(f"{name}: {error}") from None


def decode(name: str, data: bytes, spec: TensorInput) -> Tensor:
    """A file's bytes, WAV or ``.npy`` of one tensor → the head's input. Raises DataError."""
    if is_wav(data):
        if not isinstance(spec.file, WavFile):
            raise DataError(f"{name}: is a WAV sound, this bundle takes tensors ({meant(spec)})")
        return decode_sound(name, data, spec)
    if data.startswith(NPY):
        file = io.BytesIO(data)
        try:
            shape, dtype = npy_header(file)
            check_dtype(dtype, spec)
            if shape not in (spec.shape, (1, *spec.shape)):
                raise Refused(f"is {dtype} {list(shape)}, {meant(spec)}")
            return read_one(file, dtype, spec)
        except Refused as error:
            raise DataError(f"{name}: {error}") from None
    if (kind := sniff(data[:32])) is not None:
        raise DataError(f"{name}: is a picture ({kind}), this bundle takes {spec.what}")
    wanted = "a WAV or .npy" if isinstance(spec.file, WavFile) else ".npy"
    raise DataError(f"{name}: starts with {data[:4].hex(' ') or 'nothing'}, expected {wanted}")


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array in an ``.npy``; the file is then at its first value. Raises Refused."""
    try:
        version = np.lib.format.read_magic(file)
        # Version 2.0 is for headers above 64 KiB, and NumPy reads one of up to 4 GiB before it refuses it.
        if version != (1, 0):
            raise Refused(f"is .npy version {version}, expected (1, 0)")
        # Python's integers: NumPy's would wrap around.
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (
        Exception
    ) as error:  # NumPy reads the header as Python, whose tokenizer and parser raise what they like
        raise Refused(f"is a damaged .npy: {error.args[0] if error.args else error}") from None
    if fortran or min(shape, default=0) < 0:
        order = " in Fortran order" * fortran
        raise Refused(f"is {dtype} {shape}{order}, expected C order and no negative side")
    return shape, dtype


def check_dtype(dtype: np.dtype[Any], spec: TensorInput) -> None:
    """Raise Refused for an array whose values have no stated meaning."""
    if dtype == np.uint8 and spec.dtype == "uint8":
        return
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise Refused(f"is {dtype}, {meant(spec)}")


def read_one(file: IO[bytes], dtype: np.dtype[Any], spec: TensorInput) -> Tensor:
    """The next tensor of an ``.npy``. Raises Ended where the file does, else Refused."""
    size = int(np.prod(spec.shape, dtype=np.int64)) * dtype.itemsize
    data = file.read(size)
    if len(data) < size:
        raise Ended("ends early: its header says more values than there are")
    return checked(np.frombuffer(data, dtype).reshape(spec.shape), spec)


def checked(array: NDArray[Any], spec: TensorInput) -> Tensor:
    """An array of the right shape and of a type that passed ``check_dtype``. Raises Refused."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if not np.isfinite(array).all():
        raise Refused("has values that are not finite, expected numbers")
    return quantized(array.astype(np.float64), spec)


def meant(spec: TensorInput) -> str:
    """What is expected, in words."""
    low, high = spec.range
    types = "uint8, or floats" if spec.dtype == "uint8" else "floats"
    return f"expected {types} of {low:g} … {high:g}, {list(spec.shape)}"


def npy_bytes(data: bytes) -> int | None:
    """Bytes of a whole ``.npy`` by its header; None where that is not one or not whole."""
    file = io.BytesIO(data)
    try:
        shape, dtype = npy_header(file)
    except Refused:
        return None
    return file.tell() + math.prod(shape) * dtype.itemsize
