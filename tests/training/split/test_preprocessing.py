"""Means, deviations and sizes as their makers wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from offramp.common.errors import ConfigError
from offramp.training.split.preprocessing import of_hugging_face, of_timm, of_torchvision

VIT = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 224, "width": 224},
}


def write(folder: Path, config: object) -> Path:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(config))
    return path


def test_timm_states_it_in_its_configuration() -> None:
    found = of_timm(
        {
            "mean": (0.1, 0.2, 0.3),
            "std": (1, 1, 1),
            "input_size": (3, 192, 192),
            "crop_pct": 0.9,
            "interpolation": "x",
        }
    )
    assert found is not None
    assert (found.mean, found.std, found.side) == ((0.1, 0.2, 0.3), (1, 1, 1), 192)
    assert (found.crop, found.interpolation) == (0.9, "x")
    assert of_timm({}) is None


def test_torchvision_states_it_in_its_transforms() -> None:
    mode = SimpleNamespace(value="bilinear")
    transforms = SimpleNamespace(
        mean=[0.4] * 3, std=[0.2] * 3, crop_size=[224], resize_size=[256], interpolation=mode
    )
    found = of_torchvision(transforms)
    assert found is not None
    assert (found.side, found.crop, found.interpolation) == (224, 224 / 256, "bilinear")
    assert of_torchvision(SimpleNamespace()) is None


def test_hugging_face_states_it_in_a_file(tmp_path: Path) -> None:
    found = of_hugging_face(write(tmp_path, VIT))
    assert found is not None
    assert found.mean == pytest.approx((0.5, 0.5, 0.5)) and found.std == pytest.approx((0.25, 0.5, 0.5))
    assert (found.side, found.interpolation, found.crop) == (224, "bicubic", 1)
    assert found.source == str(tmp_path / "preprocessor_config.json")


@pytest.mark.parametrize(
    ("change", "side", "crop"),
    [
        ({"size": 192}, 192, 1),
        (
            {
                "size": {"shortest_edge": 256},
                "crop_size": {"height": 224, "width": 224},
                "do_center_crop": True,
            },
            224,
            0.875,
        ),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False}, 256, 1),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 224, 0.875),
    ],
)
def test_sizes_come_in_several_forms(tmp_path: Path, change: dict[str, Any], side: int, crop: float) -> None:
    found = of_hugging_face(write(tmp_path, VIT | change))
    assert found is not None and (found.side, found.crop) == (side, crop)


def test_another_scale_of_bytes_is_taken_into_mean_and_deviation(tmp_path: Path) -> None:
    # byte / 127.5 - 1, as some write it.
    change = {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}
    found = of_hugging_face(write(tmp_path, VIT | change))
    assert found is not None
    assert found.mean == pytest.approx([0.5] * 3) and found.std == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("change", [{"do_normalize": False}, {"size": None}])
def test_what_is_not_written_is_not_guessed(tmp_path: Path, change: dict[str, Any]) -> None:
    assert of_hugging_face(write(tmp_path, VIT | change)) is None
    assert of_hugging_face(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "not a preprocessor configuration"),
        (VIT | {"image_std": [0.5, 0, 0.5]}, "with std over 0"),
        (VIT | {"image_mean": ["a", 1, 1]}, "not a number for each channel"),
        (VIT | {"image_mean": [1.0]}, "not a number for each channel"),
        (VIT | {"size": 10**9}, "the side is 1000000000; expected 1 to 65535"),
        (VIT | {"rescale_factor": 0}, "rescale_factor is 0; expected"),
    ],
)
def test_a_file_that_is_wrong_is_one_clear_line(tmp_path: Path, config: object, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"preprocessor_config\.json: .*{message}"):
        of_hugging_face(write(tmp_path, config))


def test_a_file_that_is_not_json_is_one_clear_line(tmp_path: Path) -> None:
    for data in (b"\xff\xfe", b"[" * 100_000, b" " * 2_000_000):
        (tmp_path / "preprocessor_config.json").write_bytes(data)
        with pytest.raises(ConfigError, match="not a preprocessor configuration"):
            of_hugging_face(tmp_path / "preprocessor_config.json")
