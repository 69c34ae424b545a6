"""What a device takes: an input as a bundle's head has it, and which bundles it runs."""

from __future__ import annotations

from typing import Any

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError
from offramp.common.inputs.prepare import Prepared, Spec, prepare
from offramp.device.options import PictureOptions
from offramp.device.pictures import require_pictures

Input = Any
"""A picture, sound or tensor as ``preprocess`` takes it: a file's bytes, an array or a Pillow picture."""


def require_runnable(bundle: Bundle, pictures: PictureOptions) -> None:
    """Raises ConfigError or BundleError for a bundle that a device with these options does not run."""
    if not isinstance(bundle, Bundle):
        raise ConfigError(f"bundle={bundle!r:.80}: expected a Bundle, as load_bundle() returns it")
    if pictures.picture_threshold is not None:
        require_pictures(bundle.manifest)


def preprocess(image: Input, like: Bundle | Spec) -> Prepared:
    """One input as a bundle's head takes it, uint8 [3, H, W] or the tensor; what ``Device.infer`` does first.

    image: for pictures, a picture file's bytes, a Pillow picture, or one array: uint8, uint16 or floats of
    0 … 1, as [H, W, 3], [3, H, W], [H, W, 4], [4, H, W] or [H, W]. For tensors, the bytes of a WAV or an
    ``.npy``, or an array of the bundle's shape. Raises DataError, saying shape and dtype, for anything else.
    """
    return prepare(image, like.manifest.input if isinstance(like, Bundle) else like)
