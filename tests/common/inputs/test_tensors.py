"""Tensors from arrays and from the bytes of files."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from offramp.common.errors import DataError
from offramp.common.inputs.spec import TensorInput
from offramp.common.inputs.tensors import npy_bytes, suffixes, to_tensor
from tests.toy_tensor import ARRAYS, SOUNDS, npy, wav

SPEC = TensorInput.model_validate_json(json.dumps(ARRAYS))
FLOATS = TensorInput.model_validate_json(json.dumps({**ARRAYS, "dtype": "float32"}))
SOUND = TensorInput.model_validate_json(json.dumps(SOUNDS))
VALUES = np.linspace(-1.2, 1.2, 64).reshape(1, 8, 8)


def test_uint8_is_taken_as_it_is() -> None:
    own = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    assert to_tensor(own, SPEC) is own or (to_tensor(own, SPEC) == own).all()
    assert (to_tensor(npy(own), SPEC) == own).all()
    assert (to_tensor(own[None], SPEC) == own).all()


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_floats_are_levels_of_the_range_and_clipped(dtype: str) -> None:
    values = VALUES.astype(dtype)
    found = to_tensor(values, SPEC)
    wanted = np.rint((np.clip(values.astype(np.float64), -1, 1) + 1) * 127.5)

    assert found.dtype == np.uint8
    assert (found == wanted).all()
    assert (to_tensor(npy(values), SPEC) == wanted).all()


def test_float32_stays_what_it_is_but_for_the_range() -> None:
    found = to_tensor(VALUES.astype(np.float32), FLOATS)
    assert found.dtype == np.float32
    assert (found == np.clip(VALUES.astype(np.float32), -1, 1)).all()


def test_a_wav_is_taken_by_a_bundle_for_sounds() -> None:
    found = to_tensor(wav(), SOUND)
    assert found.dtype == np.uint8 and found.shape == (1, 8, 8) and found.max() > 100


BAD: list[tuple[Any, TensorInput, str]] = [
    (VALUES[0], SPEC, r"is float64 \[8, 8\], expected uint8, or floats of -1 … 1, \[1, 8, 8\]"),
    (VALUES.astype(np.int16), SPEC, "is int16, expected uint8, or floats"),
    (VALUES.astype(np.uint8), FLOATS, "is uint8, expected floats of -1 … 1"),
    (VALUES.astype(np.longdouble), SPEC, "is float128, expected"),
    (np.full((1, 8, 8), np.nan), SPEC, "values that are not finite"),
    (np.full((1, 8, 8), np.inf), FLOATS, "values that are not finite"),
    (np.full((1, 8, 8), None), SPEC, "is object, expected"),
    (wav(), SPEC, "is a WAV sound, this bundle takes tensors"),
    (b"\x89PNG\r\n\x1a\n" + bytes(30), SPEC, r"is a picture \(PNG\), this bundle takes tensors"),
    (b"\xff\xd8\xff" + bytes(30), SOUND, r"is a picture \(JPEG\), this bundle takes sounds"),
    (b"", SPEC, "starts with nothing, expected .npy"),
    (b"hello", SOUND, "starts with 68 65 6c 6c, expected a WAV or .npy"),
    (npy(VALUES[:, :7]), SPEC, r"is float64 \[1, 7, 8\], expected"),
    (npy(VALUES)[:-1], SPEC, "ends early"),
    (npy(np.asfortranarray(np.zeros((8, 8, 8)))), SPEC, "Fortran order"),
    (b"\x93NUMPY\x01\x00", SPEC, "damaged .npy"),
    (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", SPEC, r"is .npy version \(2, 0\)"),
]


@pytest.mark.parametrize(("value", "spec", "expected"), BAD)
def test_anything_else_is_one_error(value: Any, spec: TensorInput, expected: str) -> None:
    with pytest.raises(DataError, match=f"^it: .*{expected}") as caught:
        to_tensor(value, spec, "it")
    assert "\n" not in str(caught.value)


def test_a_picture_object_is_named() -> None:
    from PIL import Image

    with pytest.raises(DataError, match="is a picture, this bundle takes sounds"):
        to_tensor(Image.new("RGB", (8, 8)), SOUND)


def test_sizes_and_suffixes() -> None:
    whole: NDArray[np.uint8] = np.zeros((2, 3), np.uint8)
    assert npy_bytes(npy(whole)) == len(npy(whole))
    assert npy_bytes(npy(whole)[:-1]) == len(npy(whole))
    assert npy_bytes(b"\x93NUMPY") is None
    assert (suffixes(SPEC), ".wav" in suffixes(SOUND)) == ((".npy",), True)
