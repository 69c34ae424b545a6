"""What a device runs; tests/common/inputs has what it takes, picture by picture."""

from pathlib import Path

import numpy as np
import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError
from offramp.device.inputs import preprocess, require_runnable
from offramp.device.options import PictureOptions
from tests import toy, toy_tensor


def test_an_input_is_what_the_bundle_says(toy_bundle: Bundle) -> None:
    (image,) = toy.images(1)
    for like in (toy_bundle, toy_bundle.manifest.input):
        assert np.array_equal(preprocess(image.transpose(1, 2, 0), like), image)


def test_any_bundle_is_run_and_only_pictures_are_sent_as_such(toy_bundle: Bundle, tmp_path: Path) -> None:
    require_runnable(toy_bundle, PictureOptions(picture_threshold=0.5))
    with pytest.raises(ConfigError, match="expected a Bundle, as load_bundle"):
        require_runnable(tmp_path, PictureOptions())  # type: ignore[arg-type]
    require_runnable(toy_tensor.write(tmp_path / "three", parts=3), PictureOptions())
    tensors = toy_tensor.write(tmp_path / "tensors")
    require_runnable(tensors, PictureOptions())
    with pytest.raises(ConfigError):
        require_runnable(tensors, PictureOptions(picture_threshold=0.5))
