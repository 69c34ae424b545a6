"""Whatever a bundle takes: pictures to one for pictures, sounds and tensors to the others."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from offramp.common.errors import DataError
from offramp.common.inputs.prepare import decode, prepare, suffixes
from offramp.common.inputs.spec import PictureInput, TensorInput
from tests.toy_tensor import ARRAYS, SOUNDS, npy, wav

PICTURES = PictureInput(color="RGB", height=8, width=8, resize="bilinear")
SOUND = TensorInput.model_validate_json(json.dumps(SOUNDS))
ARRAY = TensorInput.model_validate_json(json.dumps(ARRAYS))


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (10, 20, 30)).save(file, "PNG")
    return file.getvalue()


def test_each_kind_goes_its_way() -> None:
    assert prepare(png(), PICTURES)[:, 0, 0].tolist() == [10, 20, 30]
    assert prepare(np.zeros((8, 8), np.uint8), PICTURES).shape == (3, 8, 8)
    assert prepare(wav(), SOUND).shape == prepare(npy(np.zeros((1, 8, 8))), ARRAY).shape == (1, 8, 8)
    ready = np.zeros((3, 8, 8), np.uint8)
    assert prepare(ready, PICTURES) is ready


def test_the_wrong_kind_is_named() -> None:
    with pytest.raises(DataError, match=r"^a\.wav: is a WAV sound, this bundle takes pictures"):
        decode("a.wav", wav(), PICTURES)
    with pytest.raises(DataError, match=r"^a\.png: is a picture \(PNG\), this bundle takes sounds"):
        decode("a.png", png(), SOUND)
    with pytest.raises(DataError, match=r"^image: is a WAV sound"):
        prepare(wav(), PICTURES)
    with pytest.raises(DataError, match=r"^input: is a picture"):
        prepare(png(), ARRAY)


def test_suffixes_of_folders() -> None:
    assert ".png" in suffixes(PICTURES) and ".wav" in suffixes(SOUND) and suffixes(ARRAY) == (".npy",)
