"""A picture as it is sent: what its bytes are, and that nothing but such a picture is taken."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from offramp.common.errors import ConfigError, PayloadError
from offramp.common.wire.picture import LEFT_OUT, decode_picture, encode_picture, most_bytes, require_webp
from tests import toy

PAYLOAD = bytes.fromhex("10020002c04c25a00274ba000308439f800000feeed8821677f57627c28413f8de6f35ab100000")
SHOWN = bytes.fromhex(
    "0303040406070808080809090a0b0d0d0f0f10101112141414141515161718182525262627282a2a2a2a2b2b2c2d2e2e"
    "31313232333435353434353638393a3a444445454748494949494a4a4b4c4e4e50505151525355555555565657585959"
    "6666676768696b6b6b6b6c6c6d6e6f6f727273737475767675757677797a7b7b8383848485868787878788888a8b8c8c"
    "8e8e8f8f909293939393949495969797a4a4a5a5a7a8a9a9a9a9aaaaabacaeaeb0b0b1b1b2b3b5b5b3b3b5b6b7b8b9b9"
)
"""What 0, 1, 2, … look like, as three channels of 8x8, at quality 50."""


def webp(image: NDArray[np.uint8], quality: int, **options: object) -> bytes:
    """The file that Pillow writes of an image, uint8 [3, H, W]."""
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "WEBP", quality=quality, method=6, **options)
    return file.getvalue()


@pytest.mark.parametrize("sides", [(1, 1), (8, 8), (13, 17), (32, 32), (160, 120)])
@pytest.mark.parametrize("quality", [0, 20, 100])
def test_shows_what_the_file_shows_in_fewer_bytes(sides: tuple[int, int], quality: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (3, *sides)).astype(np.uint8)
    file, payload = webp(image, quality), encode_picture(image, quality)
    assert len(file) - len(payload) in (LEFT_OUT, LEFT_OUT + 1)
    assert payload[3:] in file and payload[:3] in file
    with Image.open(io.BytesIO(file)) as picture:
        shown = np.asarray(picture).transpose(2, 0, 1)
    assert np.array_equal(decode_picture(payload, *sides), shown)
    assert len(payload) <= most_bytes(*sides)


def test_known_bytes_show_what_they_did() -> None:
    assert decode_picture(PAYLOAD, 8, 8).tobytes() == SHOWN


def test_is_close_to_the_image() -> None:
    (image,) = toy.images(1)
    wide = image.repeat(8, 1).repeat(8, 2)
    shown = decode_picture(encode_picture(wide, 90), 64, 64)
    assert shown.dtype == np.uint8 and shown.shape == wide.shape
    assert np.abs(shown.astype(int) - wide).mean() < 12


VIEW = encode_picture(toy.images(1, seed=4)[0], 50)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "a picture of 0 bytes, expected 4 … 1216"),
        (VIEW[:3], "a picture of 3 bytes, expected 4 … 1216"),
        (bytes(most_bytes(8, 8) + 1), "a picture of 1217 bytes, expected 4 … 1216"),
        (VIEW[:12], "12 bytes that are not a picture, expected a VP8 key frame"),
        (bytes(100), "100 bytes that are not a picture, expected a VP8 key frame"),
        (webp(toy.images(1)[0], 50), "bytes that are not a picture, expected a VP8 key frame"),
        (bytes([VIEW[0] | 1]) + VIEW[1:], "bytes that are not a picture, expected a VP8 key frame"),
    ],
    ids=["empty", "a tag only", "too long", "cut off", "zeros", "a whole file", "no key frame"],
)
def test_refuses(payload: bytes, message: str) -> None:
    with pytest.raises(PayloadError) as caught:
        decode_picture(payload, 8, 8)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_picture_of_the_right_size_or_refused(data: bytes) -> None:
    check(data)


@given(st.lists(st.tuples(st.integers(0, len(VIEW) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_picture_is_one_of_the_right_size_or_refused(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(VIEW)
    for place, value in changes:
        damaged[place] = value
    check(bytes(damaged))


def check(payload: bytes) -> None:
    try:
        shown = decode_picture(payload, 8, 8)
    except PayloadError:
        return
    assert shown.shape == (3, 8, 8) and shown.dtype == np.uint8


def test_an_installation_without_webp_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    require_webp("--pictures")
    from PIL import features

    monkeypatch.setattr(features, "check", lambda _: False)
    with pytest.raises(ConfigError, match=r"--pictures: this build of Pillow has no WebP"):
        require_webp("--pictures")
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ConfigError, match=r"--pictures needs Pillow: pip install 'offramp\[pictures\]'"):
        require_webp("--pictures")


def test_another_layout_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A libwebp that wrote more chunks would change the payload."""
    save = Image.Image.save
    monkeypatch.setattr(
        Image.Image,
        "save",
        lambda self, file, kind, **options: save(self, file, kind, exif=b"Exif\0\0MM", **options),
    )
    with pytest.raises(ConfigError, match="writes WebP in another layout, expected one VP8 key frame"):
        encode_picture(toy.images(1)[0], 50)
