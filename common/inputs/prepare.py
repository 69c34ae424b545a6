"""Whatever a bundle takes, from what a caller has: a file's bytes, an array, a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.common.errors import DataError
from offramp.common.inputs import pictures, tensors
from offramp.common.inputs.arrays import to_pixels
from offramp.common.inputs.headers import EXTENSIONS
from offramp.common.inputs.spec import Preprocessing, TensorInput
from offramp.common.inputs.wav import is_wav

Spec = Preprocessing | TensorInput
Prepared = NDArray[np.uint8] | NDArray[np.float32]


def prepare(value: Any, spec: Spec, name: str = "") -> Prepared:
    """One input as the head takes it; what is that already is returned as it is.

    value: a picture or an array of pixels (``arrays.to_pixels``), a tensor (``tensors.to_tensor``), or a file
    of either, its bytes. Raises DataError that starts with the name.
    """
    if isinstance(spec, TensorInput):
        return tensors.to_tensor(value, spec, name or "input")
    if isinstance(value, bytes | bytearray | memoryview):
        return decode(name or "image", bytes(value), spec)
    return to_pixels(value, spec, name or "image")


def decode(name: str, data: bytes, spec: Spec) -> Prepared:
    """A file's bytes as the head takes them. Raises DataError that starts with the name."""
    if isinstance(spec, TensorInput):
        return tensors.decode(name, data, spec)
    if is_wav(data[:12]):
        raise DataError(f"{name}: is a WAV sound, this bundle takes pictures")
    return pictures.decode(name, data, spec)


def suffixes(spec: Spec) -> tuple[str, ...]:
    """Of the files in a folder that are taken."""
    return tensors.suffixes(spec) if isinstance(spec, TensorInput) else EXTENSIONS
