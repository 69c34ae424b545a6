"""Formats: what comes back of a picture."""

import io

import numpy as np
import pytest
from PIL import Image

from offramp.common.inputs.formats import FORMATS, RAW_PIXELS, Format, sent
from tests import toy


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_a_picture_comes_back_as_its_format_allows(form: Format) -> None:
    image = toy.images(1, seed=5)[0]
    data = form.write(image)
    decoded = form.read(data, image)
    assert decoded.shape == image.shape
    assert decoded.dtype == np.uint8
    if form.name in ("raw pixels", "PNG", "WebP lossless"):
        assert np.array_equal(decoded, image)
    if form.pillow is not None:
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.format == form.pillow


def test_a_file_has_the_picture_s_own_colours() -> None:
    grey = Image.new("L", (7, 5), 100)
    assert len(RAW_PIXELS.file(grey)) == 35
    with Image.open(io.BytesIO(Format("PNG", "PNG").file(grey))) as picture:
        assert (picture.mode, picture.size) == ("L", (7, 5))


def test_sizes_and_pictures_of_many_images() -> None:
    images = toy.images(3, seed=6)
    sizes, decoded = sent(RAW_PIXELS, images)
    assert sizes.tolist() == [images[0].size] * 3
    assert np.array_equal(decoded, images)
