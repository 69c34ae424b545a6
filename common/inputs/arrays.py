"""What an array of pixels may be, and one picture of any such kind as the network's input.

[H, W, 3]  [3, H, W]    RGB; where both fit ([3, W, 3]) neither is taken
[H, W, 4]  [4, H, W]    RGBA, shown on the bundle's background
[H, W]  [H, W, 1]  [1, H, W]    grey
[1, …]    one of these

uint8 as it is; uint16 as round(v / 257); floats of 0 … 1 as round(255 · v)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offramp.common.errors import DataError
from offramp.common.inputs import pictures
from offramp.common.inputs.headers import Refused, check_size

if TYPE_CHECKING:
    from offramp.common.inputs.spec import Preprocessing

Pixels = NDArray[np.uint8]

_MEANT = "expected [H, W, 3], [3, H, W], [H, W, 4], [4, H, W] or [H, W]"
_CHANNELS = (1, 3, 4)


def to_pixels(image: Any, preprocessing: Preprocessing, name: str = "image") -> Pixels:
    """A Pillow picture, a picture file's bytes or an array → uint8 [3, H, W] as the head takes it.

    uint8 [3, H, W] of the network's own sides is returned as it is. Raises DataError that starts with the
    name and says the array's shape and dtype.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return pictures.decode(name, bytes(image), preprocessing)
    target = (3, preprocessing.height, preprocessing.width)
    # First, because it is the common case and takes no import of Pillow.
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == target:
        return image
    if _is_pillow(image):
        return pictures.from_pillow(name, image, preprocessing)
    try:
        array = np.asarray(image)
    except Exception as error:  # whatever an object's own __array__ raises
        raise DataError(f"{name}: is a {type(image).__name__} that is not an array: {error}") from None
    from PIL import Image

    try:
        rows = _rows(array, target)
        check_size(rows.shape[1], rows.shape[0])
        return pictures.to_input(Image.fromarray(_eight_bits(rows)), preprocessing)
    except Refused as error:
        raise DataError(f"{name}: {error}") from None


def check_stack(shape: tuple[int, ...]) -> bool:
    """Whether a stack of pictures, uint8, has its channels before its rows ([N, 3, H, W]).

    The other layouts are [N, H, W, C] with C = 1, 3 or 4 and [N, H, W]. Raises Refused for what may be one
    picture as well as many, and for what is neither.
    """
    meant = "expected [N, H, W, 3], [N, 3, H, W], [N, H, W, 4], [N, H, W, 1] or [N, H, W]"
    if len(shape) == 3:
        if shape[2] in _CHANNELS or shape[0] == 3:
            raise Refused(f"may be one picture or {shape[0]} grey ones, {meant}")
        return False
    if len(shape) != 4:
        raise Refused(f"is not a stack of pictures, {meant}")
    first, last = shape[1] == 3, shape[3] in _CHANNELS
    if first and last:
        raise Refused(f"has its channels at place 1 or at place 3, {meant}")
    if not first and not last:
        raise Refused(f"has no axis of channels, {meant}")
    return first


def _is_pillow(image: Any) -> bool:
    # A caller who never imported Pillow has no picture of it.
    return hasattr(image, "getbands") and hasattr(image, "convert")


def _rows(array: NDArray[Any], target: tuple[int, ...]) -> NDArray[Any]:
    """An array as [H, W] or [H, W, 3 or 4]. Raises Refused."""
    shown = f"is {array.dtype} {list(array.shape)}"
    if array.ndim == 4:
        if array.shape[0] != 1:
            raise Refused(f"{shown}, {_MEANT}: one picture a call")
        array = array[0]
    if array.ndim == 2:
        return array
    if array.ndim != 3:
        raise Refused(f"{shown}, {_MEANT}")
    first, last = array.shape[0] in _CHANNELS, array.shape[2] in _CHANNELS
    if first and (not last or array.shape == target):
        array = array.transpose(1, 2, 0)
    elif first and last:
        raise Refused(f"{shown}: its channels may be at either end, {_MEANT}")
    elif not last:
        raise Refused(f"{shown}, {_MEANT}")
    return array[..., 0] if array.shape[2] == 1 else array


def _eight_bits(array: NDArray[Any]) -> Pixels:
    shown = f"is {array.dtype} {list(array.shape)}"
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise Refused(f"{shown}, expected uint8, uint16 or floats of 0 … 1")
    low, high = array.min(), array.max()
    if not 0 <= low <= high <= 1:
        raise Refused(f"{shown} with values of {low:g} … {high:g}, expected 0 … 1")
    return np.rint(array.astype(np.float32) * 255).astype(np.uint8)
