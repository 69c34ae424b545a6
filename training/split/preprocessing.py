"""What a pretrained classifier expects of a picture: read from where its makers wrote it down.

Wrong means and deviations cost several points of accuracy, so they are never guessed: where none are
written, there is no ``Preprocessing``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.common.errors import ConfigError, printable

_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers of its filters."""
_MAX_CONFIG = 1 << 20


@dataclass(frozen=True)
class Preprocessing:
    """How a picture of bytes 0 … 255 becomes the input float32 [3, side, side].

    mean, std: of each channel, on the scale 0 … 1: input = (byte / 255 - mean) / std.
    side: in pixels, after the crop.
    interpolation: nearest, bilinear, bicubic, lanczos, box or hamming.
    crop: share of the shorter side that the centre crop keeps; 1 where nothing is cut off.
    source: where it was read.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: int
    interpolation: str
    crop: float
    source: str


def of_timm(config: Mapping[str, Any]) -> Preprocessing | None:
    """From a model's ``pretrained_cfg``; None where it states no mean or no size."""
    size = config.get("input_size")
    if not config.get("mean") or not config.get("std") or not size:
        return None
    crop, interpolation = config.get("crop_pct"), config.get("interpolation")
    return _checked(
        "timm's pretrained_cfg",
        mean=config["mean"],
        std=config["std"],
        side=size[-1],
        interpolation=interpolation or "bicubic",
        crop=1.0 if crop is None else crop,
    )


def of_torchvision(transforms: Any) -> Preprocessing | None:
    """From the ``transforms()`` of a torchvision ``Weights`` entry."""
    crop, resize = (getattr(transforms, name, None) for name in ("crop_size", "resize_size"))
    if not crop or not resize or not hasattr(transforms, "mean"):
        return None
    return _checked(
        "torchvision's weights",
        mean=transforms.mean,
        std=transforms.std,
        side=crop[0],
        interpolation=str(getattr(transforms.interpolation, "value", transforms.interpolation)),
        crop=crop[0] / resize[0],
    )


def of_hugging_face(path: Path) -> Preprocessing | None:
    """From a ``preprocessor_config.json``; None where there is no such file, or it does not normalise.

    Raises:
        ConfigError: the file is not such a configuration.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CONFIG + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    try:
        config = json.loads(data) if len(data) <= _MAX_CONFIG else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: not a preprocessor configuration; expected one JSON object")
    if not config.get("do_normalize", True) or "image_mean" not in config or "image_std" not in config:
        return None
    resized, cropped = _side(config.get("size")), _side(config.get("crop_size"))
    cropped = cropped if config.get("do_center_crop", False) else None
    side = cropped or resized
    if side is None:
        return None
    # The rescaling to 0 … 1 is stated, too; some use another factor.
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    if not isinstance(factor, int | float) or not factor > 0:
        raise ConfigError(f"{path}: rescale_factor is {printable(repr(factor))}; expected a number over 0")
    scale = 1 / (255 * factor)
    share = config.get("crop_pct") or (cropped / resized if cropped and resized else 1.0)
    mean, std = config["image_mean"], config["image_std"]
    return _checked(
        str(path),
        mean=[each * scale for each in _numbers(mean)],
        std=[each * scale for each in _numbers(std)],
        side=side,
        interpolation=_RESAMPLE.get(config.get("resample", 2), "bilinear"),
        crop=min(1.0, share),
    )


def _side(size: Any) -> int | None:
    """Of 224, {"height": 224, "width": 224} or {"shortest_edge": 224}."""
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("height"))
    return size if isinstance(size, int) else None


def _numbers(values: Any) -> list[float]:
    given = values if isinstance(values, Sequence) and not isinstance(values, str) else [values]
    return [float(each) if isinstance(each, int | float) else math.nan for each in given]


def _checked(
    source: str, *, mean: Any, std: Any, side: Any, interpolation: str, crop: float
) -> Preprocessing:
    means, stds = _numbers(mean), _numbers(std)
    if len(means) != len(stds) or not all(map(math.isfinite, (*means, *stds))) or min(stds) <= 0:
        raise ConfigError(f"{source}: mean and std are not a number for each channel, with std over 0")
    if not isinstance(side, int) or not 1 <= side <= 65_535:
        raise ConfigError(f"{source}: the side is {printable(repr(side))}; expected 1 to 65535 pixels")
    if not isinstance(crop, int | float) or not 0 < crop <= 1:
        raise ConfigError(
            f"{source}: the crop is {printable(repr(crop))}; expected a share over 0 and up to 1"
        )
    return Preprocessing(tuple(means), tuple(stds), side, interpolation, float(crop), source)
