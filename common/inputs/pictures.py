"""The one decoder: a picture file's bytes → uint8 [3, H, W], on the device, in training and for callers.

    bytes → sniffed format → checked header → (JPEG: decoded at 1/2, 1/4 or 1/8) → upright → 8 bits a channel
          → composited on the background → resized

Upright: EXIF's orientation (JPEG, MPO, PNG, WebP, AVIF) or TIFF's tag 274, all eight values; a broken or
unknown one counts as 1. HEIF's own rotation is applied by its decoder. Orientation in XMP is ignored.
Of several pictures in one file (GIF, APNG, animated WebP, MPO, TIFF) the first is taken.
16 bits become 8 as round(v / 257), 12 bits by way of 16; of a 16-bit RGB PNG Pillow keeps the upper 8 bits.
32-bit integers are taken for 16-bit values, floats for 0 … 1; other ranges are refused.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from offramp.common.errors import DataError, printable
from offramp.common.inputs import headers
from offramp.common.inputs.headers import (
    BUFFERED_PIXELS,
    EXTENSIONS,
    PIXELS,
    SCALED_PIXELS,
    Refused,
    check_scans,
    check_size,
    jpeg_scans,
    orientation_of,
    read_tiff,
    sniff,
    webp_size,
)

if TYPE_CHECKING:
    from PIL import Image

    from offramp.common.inputs.spec import Preprocessing

__all__ = ["EXTENSIONS", "FILE_BYTES", "PIXELS", "decode", "jpeg_bytes", "sniff", "to_input"]

Pixels = NDArray[np.uint8]

FILE_BYTES = 64 << 20
"""A picture's file, at most; whoever reads one bounds it so."""
OVERSAMPLING = 4
"""A JPEG is decoded at a fraction of its size that is at least this many times the network's, each side."""
_ROWS = 256
"""Rows of 16-bit pixels that are converted at a time."""
_EXPECTED = "expected PNG, JPEG, WebP, BMP, GIF or TIFF (HEIC and AVIF with the extra [heic])"
_TRANSPOSE = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation → Pillow's Transpose that undoes it."""


def decode(name: str, data: bytes, preprocessing: Preprocessing) -> Pixels:
    """A picture file's bytes → uint8 [3, H, W], contiguous. Raises DataError that starts with the name."""
    from PIL import Image

    kind = sniff(data[:32])
    try:
        if kind is None:
            raise Refused(f"is not a picture (starts with {data[:4].hex(' ') or 'nothing'}), {_EXPECTED}")
        # Sizes are checked here; Pillow would warn of them a second time.
        with warnings.catch_warnings(action="ignore"):
            return to_input(_upright(kind, data, preprocessing), preprocessing)
    except (Refused, DataError) as error:
        raise DataError(f"{name}: {error}") from None
    except Image.DecompressionBombError:
        raise DataError(f"{name}: has too many pixels, expected at most {PIXELS:,}") from None
    except MemoryError:
        raise DataError(f"{name}: takes more memory to decode than there is") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, … here
        reason = printable(str(error), 200) or type(error).__name__
        raise DataError(f"{name}: is a damaged picture: {reason}") from None


def to_input(picture: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """A picture in the network's colours and size, uint8 [3, H, W].

    What is transparent shows the bundle's background. Raises DataError for pixels without a stated range.
    """
    from PIL import Image

    try:
        converted = _flatten(_eight_bits(picture), preprocessing)
    except Refused as error:
        raise DataError(str(error)) from None
    size = (preprocessing.width, preprocessing.height)
    if converted.size != size:
        converted = converted.resize(size, Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(converted, np.uint8).transpose(2, 0, 1))


def jpeg_bytes(image: Pixels, quality: int) -> int:
    """What an image, uint8 [3, H, W], takes as a JPEG of this quality (1 … 95), bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(
        buffer, "JPEG", quality=quality, optimize=True
    )
    return buffer.tell()


def _upright(kind: str, data: bytes, preprocessing: Preprocessing) -> Image.Image:
    """The first picture of a file, decoded and turned as it was taken."""
    from PIL import UnidentifiedImageError

    orientation = None
    tiff = None
    if kind in ("HEIF", "AVIF"):
        _require_heif()
    elif kind == "WEBP" and (size := webp_size(data)) is not None:
        check_size(*size)
    elif kind == "TIFF":
        tiff = read_tiff(data)
        data, orientation = tiff.data, tiff.orientation
    try:
        picture = _open(kind, data)
    except UnidentifiedImageError:
        raise Refused(f"is a damaged {kind} picture: its header cannot be read") from None
    if kind == "JPEG":
        orientation = _start_jpeg(picture, data, preprocessing)
    check_size(*picture.size)
    picture.load()
    if orientation is None:
        orientation = orientation_of(_exif(picture))
    if tiff is not None:
        picture = _widen(picture, tiff)
    if kind == "PNG" and picture.mode == "RGB" and data[24] == 16 and "transparency" in picture.info:
        # Pillow has kept the pixels' upper 8 bits, and the key's 16.
        picture.info["transparency"] = tuple(value >> 8 for value in picture.info["transparency"])
    return _turned(picture, orientation)


def from_pillow(name: str, picture: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """A caller's picture → uint8 [3, H, W], upright by its EXIF. Raises DataError starting with the name."""
    try:
        check_size(*picture.size)
        picture.load()
        return to_input(_turned(picture, orientation_of(_exif(picture))), preprocessing)
    except (Refused, DataError) as error:
        raise DataError(f"{name}: {error}") from None
    except Exception as error:  # as in decode
        reason = printable(str(error), 200) or type(error).__name__
        raise DataError(f"{name}: is a picture that cannot be used: {reason}") from None


def _turned(picture: Image.Image, orientation: int) -> Image.Image:
    from PIL import Image

    method = _TRANSPOSE.get(orientation)
    return picture if method is None else picture.transpose(Image.Transpose(method))


def _open(kind: str, data: bytes) -> Image.Image:
    """The file's header by Pillow's reader of this format, and no other."""
    from PIL import Image, JpegImagePlugin

    if kind == "JPEG":
        # Not by way of Image.open: its own limit, 179 megapixels, knows nothing of decoding at a fraction.
        return JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    return Image.open(io.BytesIO(data), formats=(kind,))


def _start_jpeg(picture: Image.Image, data: bytes, preprocessing: Preprocessing) -> int:
    """Choose at which fraction a JPEG is decoded, and check what that takes; its orientation."""
    orientation = orientation_of(_exif(picture))
    scans, components = jpeg_scans(data)
    buffered = "progressive" in picture.info or components < len(picture.getbands())
    check_size(*picture.size, BUFFERED_PIXELS if buffered else SCALED_PIXELS)
    check_scans(scans, picture.width * picture.height)
    sides = (preprocessing.width * OVERSAMPLING, preprocessing.height * OVERSAMPLING)
    picture.draft(None, sides if orientation < 5 else sides[::-1])
    return orientation


def _exif(picture: Image.Image) -> bytes:
    """A picture's EXIF bytes, as they are in its file; empty where there are none."""
    exif = picture.info.get("exif", b"")
    if exif or picture.format != "PNG":
        return exif if isinstance(exif, bytes) else b""
    # ImageMagick's older way: a name, a length, and hexadecimal digits in lines.
    profile = picture.info.get("Raw profile type exif")
    if not isinstance(profile, str) or not re.fullmatch(r"\s*exif\s+\d+\s[0-9a-fA-F\s]*", profile):
        return b""
    try:
        return bytes.fromhex("".join(profile.split()[2:]))
    except ValueError:
        return b""


def _widen(picture: Image.Image, tiff: headers.Tiff) -> Image.Image:
    """A TIFF's grey of over 8 bits as the 16-bit grey that it means: 12 bits scaled, white 0 inverted."""
    from PIL import Image

    if not picture.mode.startswith("I;16") or (tiff.bits == 16 and not tiff.inverted):
        return picture
    values = _sixteen_bits(picture)
    if tiff.bits != 16:
        most = (1 << tiff.bits) - 1
        values = ((values.astype(np.uint32) * 65_535 + most // 2) // most).astype(np.uint16)
    return Image.fromarray(65_535 - values if tiff.inverted else values)


def _sixteen_bits(picture: Image.Image) -> NDArray[np.uint16]:
    return np.asarray(picture).astype(np.uint16)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A picture of 16-bit, 32-bit or float grey in 8 bits; any other as it is. Raises Refused."""
    from PIL import Image

    mode = picture.mode
    if not mode.startswith("I") and mode != "F":
        return picture
    values = _sixteen_bits(picture) if mode.startswith("I;16") else np.asarray(picture)
    low, high = values.min(), values.max()
    if mode == "F":
        if not 0 <= low <= high <= 1:
            raise Refused(f"has float pixels of {low:g} … {high:g}, expected 0 … 1")
    elif mode == "I" and (low < 0 or high > 65_535):
        raise Refused(f"has 32-bit pixels of {low} … {high}, expected 16-bit values of 0 … 65535")
    elif mode == "I" and 0 < high < 256:
        raise Refused(f"has 32-bit pixels of {low} … {high}: 8-bit or 16-bit values, which is not stated")
    small = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _ROWS):
        rows = values[start : start + _ROWS]
        small[start : start + _ROWS] = (
            np.rint(rows * np.float32(255)) if mode == "F" else (rows.astype(np.uint32) + 128) // 257
        )
    grey = Image.fromarray(small)
    key = picture.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _flatten(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The picture in RGB, over the background where it is transparent."""
    from PIL import Image

    if not picture.has_transparency_data:
        return picture.convert(preprocessing.color)
    if picture.mode in ("La", "RGBa"):
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA")
    seen = picture.convert("RGBA")
    flat = Image.new("RGB", seen.size, preprocessing.background)
    flat.paste(seen.convert("RGB"), mask=seen.getchannel("A"))
    return flat


def _require_heif() -> None:
    """Give Pillow its HEIF decoder. Raises Refused where the extra is not installed."""
    try:
        import pillow_heif
    except ImportError:
        raise Refused("is HEIC or AVIF: pip install 'offramp[heic]' to read it") from None
    pillow_heif.register_heif_opener()
