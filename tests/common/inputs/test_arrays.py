"""What a caller may hand in as one picture, and the one error for everything else."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from offramp.common.bundle.load import Bundle
from offramp.common.errors import DataError
from offramp.common.inputs.spec import Preprocessing
from offramp.device import Device, preprocess
from tests import toy
from tests.processes import closed_port

SPEC = Preprocessing(color="RGB", height=8, width=10, resize="bilinear")
IMAGE = np.random.default_rng(2).integers(0, 256, (3, 8, 10), np.uint8)
ROWS = IMAGE.transpose(1, 2, 0)
OPAQUE = np.dstack([ROWS, np.full((8, 10), 255, np.uint8)])


class Tensor:
    """As another library's."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return ROWS


@pytest.mark.parametrize(
    "given",
    [
        IMAGE,
        ROWS,
        np.asfortranarray(ROWS),
        ROWS[None],
        IMAGE[None],
        OPAQUE,
        OPAQUE.transpose(2, 0, 1),
        ROWS.astype(np.uint16) * 257,
        ROWS / 255,
        (IMAGE / 255).astype(np.float32),
        (ROWS / 255).astype(np.float16),
        Image.fromarray(ROWS),
        Image.fromarray(OPAQUE),
        Tensor(),
    ],
)
def test_what_is_clear_is_taken(given: Any) -> None:
    found = preprocess(given, SPEC)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, IMAGE)


@pytest.mark.parametrize("given", [IMAGE[0], IMAGE[:1], ROWS[..., :1], Image.fromarray(IMAGE[0])])
def test_grey_becomes_three_colours(given: Any) -> None:
    np.testing.assert_array_equal(preprocess(given, SPEC), IMAGE[:1].repeat(3, axis=0))


def test_other_sides_are_resized_as_a_file_is() -> None:
    large = np.random.default_rng(3).integers(0, 256, (31, 17, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(large).save(file, "PNG")
    expected = preprocess(file.getvalue(), SPEC)
    for given in (large, large.transpose(2, 0, 1), Image.fromarray(large), Image.open(file)):
        np.testing.assert_array_equal(preprocess(given, SPEC), expected)


def test_a_picture_that_was_opened_elsewhere_is_turned_upright() -> None:
    tag = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    file = io.BytesIO()
    Image.fromarray(ROWS).transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=tag)
    np.testing.assert_array_equal(preprocess(Image.open(file), SPEC), IMAGE)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 3, 8, 10), np.uint8), "is uint8 [4, 3, 8, 10], expected .*: one picture a call"),
        (np.zeros((3, 9, 3), np.uint8), "is uint8 [3, 9, 3]: its channels may be at either end"),
        (np.zeros((5, 9, 7), np.uint8), "is uint8 [5, 9, 7], expected [H, W, 3]"),
        (np.zeros(9, np.uint8), "is uint8 [9], expected [H, W, 3]"),
        (np.zeros((), np.uint8), "is uint8 [], expected [H, W, 3]"),
        (np.zeros((0, 9, 3), np.uint8), "is 9×0 pixels, expected at least 1×1"),
        (np.broadcast_to(np.uint8(0), (60_000, 60_000)), "is 60000×60000 pixels, expected at most"),
        (ROWS.astype(np.int64), "is int64 [8, 10, 3], expected uint8, uint16 or floats of 0 … 1"),
        (ROWS > 9, "is bool [8, 10, 3], expected uint8"),
        (ROWS.astype(float), "is float64 [8, 10, 3] with values of 1 … 254, expected 0 … 1"),
        (np.full((8, 10), np.nan), "is float64 [8, 10] with values of nan … nan, expected 0 … 1"),
        (None, "is object [], expected"),
        ("photo.jpg", "is <U9 [], expected"),
        ([[1, 2], [3]], "is a list that is not an array"),
        (b"no picture", "is not a picture (starts with 6e 6f 20 70)"),
    ],
)
def test_what_is_not_clear_is_one_error(given: Any, message: str) -> None:
    pattern = "^image: " + re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(DataError, match=pattern):
        preprocess(given, SPEC)


def test_a_device_takes_what_preprocess_takes(toy_bundle: Bundle) -> None:
    image = toy.images(1)[0]
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
    with closed_port() as port, Device(toy_bundle, server=f"127.0.0.1:{port}", threshold=0) as device:
        plain = device.infer(image)
        assert plain.decode_seconds == 0
        for given in (image.transpose(1, 2, 0), image / 255, image[None], Image.open(file), file.getvalue()):
            result = device.infer(given)
            assert (result.class_index, result.confidence) == (plain.class_index, plain.confidence)
            assert 0 < result.decode_seconds < result.latency_seconds
        with pytest.raises(
            DataError, match=r"image: is uint8 \[2, 3, 8, 8\], expected .* one picture a call"
        ):
            device.infer(toy.images(2))
        np.testing.assert_array_equal(preprocess(file.getvalue(), toy_bundle), image)
