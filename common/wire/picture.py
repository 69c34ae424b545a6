"""A picture as it is sent: a lossy WebP file without the 27 bytes that both sides know.

Such a file is a RIFF header and a chunk header (20 bytes) around one VP8 key frame (RFC 6386, section 9.1):

    payload   frame tag (3 bytes) │ the frame's data
    file      RIFF and chunk header (20) │ frame tag (3) │ start code (3), width (2), height (2) │ data

The sides come from the manifest, never from a payload, so that no payload can ask for another size, for a
second frame, for metadata or for another format. Pillow is imported at the first use: only who sends or takes
pictures needs it.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray

from offramp.common.errors import ConfigError, PayloadError

Pixels = NDArray[np.uint8]

METHOD = 6
"""libwebp's effort, 0 … 6: at 32x32 pixels 4 % fewer bytes than its default, 4, for 0.1 ms."""

_TAG_BYTES = 3
_START_CODE = b"\x9d\x01\x2a"
_SIDES = struct.Struct("<HH")
_LENGTH = struct.Struct("<I")
_FILE_BYTES = 20
"""RIFF header and chunk header."""
_FRAME_BYTES = _TAG_BYTES + len(_START_CODE) + _SIDES.size
_TINY_BYTES = 1024
"""What VP8's own header, tables and padded blocks may take where a picture is small."""
LEFT_OUT = _FILE_BYTES + _FRAME_BYTES - _TAG_BYTES
"""Bytes of a file that are not sent, and one more of padding where its frame is odd."""


def most_bytes(height: int, width: int) -> int:
    """The longest payload of such a picture that is taken: about what its pixels take uncoded."""
    return 3 * height * width + _TINY_BYTES


def require_webp(flag: str) -> None:
    """Raise ConfigError, naming the flag, where this installation cannot read and write such pictures."""
    try:
        from PIL import features
    except ImportError:
        raise ConfigError(f"{flag} needs Pillow: pip install 'offramp[pictures]'") from None
    if not features.check("webp"):
        raise ConfigError(f"{flag}: this build of Pillow has no WebP, expected one that has")


def encode_picture(image: Pixels, quality: int) -> bytes:
    """The payload of one image, uint8 [3, H, W], at libwebp's quality, 0 … 100."""
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    picture.save(buffer, "WEBP", quality=quality, method=METHOD)
    file = buffer.getvalue()
    (length,) = _LENGTH.unpack_from(file, _FILE_BYTES - _LENGTH.size)
    frame = file[_FILE_BYTES : _FILE_BYTES + length]
    _, height, width = image.shape
    if file != _file(frame) or frame[_TAG_BYTES:_FRAME_BYTES] != _START_CODE + _SIDES.pack(width, height):
        raise ConfigError("this build of Pillow writes WebP in another layout, expected one VP8 key frame")
    return frame[:_TAG_BYTES] + frame[_FRAME_BYTES:]


def decode_picture(payload: bytes, height: int, width: int) -> Pixels:
    """The image of a payload, uint8 [3, H, W]. Raises PayloadError for other bytes."""
    from PIL import Image

    if not _TAG_BYTES < len(payload) <= most_bytes(height, width):
        raise PayloadError(
            f"a picture of {len(payload)} bytes, expected {_TAG_BYTES + 1} … {most_bytes(height, width)}"
        )
    tag, data = payload[:_TAG_BYTES], payload[_TAG_BYTES:]
    file = _file(tag + _START_CODE + _SIDES.pack(width, height) + data)
    try:
        with Image.open(io.BytesIO(file), formats=("WEBP",)) as picture:
            pixels = np.asarray(picture, np.uint8)
    except Exception as error:  # Pillow has no common base class for its errors
        raise PayloadError(
            f"{len(payload)} bytes that are not a picture, expected a VP8 key frame ({type(error).__name__})"
        ) from None
    if pixels.shape != (height, width, 3):
        raise PayloadError(f"a picture of shape {pixels.shape}, expected {(height, width, 3)}")
    return pixels.transpose(2, 0, 1)


def _file(frame: bytes) -> bytes:
    """The WebP file around one VP8 frame."""
    padded = frame + bytes(len(frame) % 2)
    chunk = b"WEBPVP8 " + _LENGTH.pack(len(frame)) + padded
    return b"RIFF" + _LENGTH.pack(len(chunk)) + chunk
