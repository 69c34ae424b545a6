"""What a bundle may say of its input. Wrong values from strangers: ``tests/attacks``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from offramp.common.inputs.spec import PictureInput, TensorInput, WavFile
from tests.toy_tensor import ARRAYS, SOUNDS, TRANSFORM, WAV


def tensor(**changes: Any) -> TensorInput:
    return TensorInput.model_validate_json(json.dumps({**SOUNDS, **changes}))


def test_frames_are_the_windows_that_lie_inside() -> None:
    file = tensor().file
    assert isinstance(file, WavFile)
    assert (file.samples, file.frames) == (800, 8)


def test_a_picture_and_a_tensor_say_what_the_head_takes() -> None:
    picture = PictureInput(color="RGB", height=4, width=6, resize="bilinear")
    assert (picture.shape, picture.dtype, picture.what) == ((3, 4, 6), "uint8", "pictures")
    assert (tensor().shape, tensor().what) == ((1, 8, 8), "sounds")
    assert tensor(**ARRAYS).what == "tensors"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"shape": [1, 8, 9]}, "the sound's transform makes"),
        ({"shape": []}, "at least 1 item"),
        ({"range": [0.0, 0.0], "file": {"kind": "array"}}, "the lower end first"),
        ({"range": [1.0, 1.0000001], "file": {"kind": "array"}}, "room between"),
        ({"range": [-60.0, 0.0]}, "the transform's floor is -80"),
        ({"file": {**WAV, "seconds": 0.01}}, "expected 128 \\(a window\\)"),
        ({"file": {**WAV, "transform": {**TRANSFORM, "fmax": 4001.0}}}, "expected 0 … 4000 Hz"),
        ({"file": {**WAV, "transform": {**TRANSFORM, "fmin": 4000.0}}}, "expected 0 … 4000 Hz"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        tensor(**changes)
