"""A tiny classifier and coloured pictures that it learns in seconds, for tests of `offramp split`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from tests.toy_tensor import wav

SIDE = 32
CLASSES = ("blue", "green", "red")
MEAN = STD = 0.5


def _unit(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


def build(classes: int = 7, channels: int = 3) -> nn.Module:
    """Cuts after "0" (8x16x16), "1" (16x8x8), "2" (32x4x4)."""
    torch.manual_seed(0)
    return nn.Sequential(
        _unit(channels, 8, 2),
        _unit(8, 16, 2),
        _unit(16, 32, 2),
        _unit(32, 48, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, classes),
    )


def knows() -> nn.Module:
    """The same for `CLASSES`, with weights that are still random."""
    return build(len(CLASSES))


def without_linear() -> nn.Module:
    """Its last step is a convolution."""
    return nn.Sequential(_unit(3, 8, 2), nn.Conv2d(8, 7, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def write_photos(folder: Path, count: int = 40, seed: int = 0) -> Path:
    """``count`` noisy photos of each class, in class folders; a third of them are hard to tell."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            strength = 12 if number % 3 == 0 else 90
            image = rng.normal(110, 30, (SIDE, SIDE, 3))
            image[:, :, 2 - label] += strength
            image[4:20, 6:24, 2 - label] += strength
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number:03}.png")
    return folder


def hears() -> nn.Module:
    """Of log-mel spectrograms [1, mels, frames], for the three classes of `write_sounds`; cuts as `build`."""
    return build(len(CLASSES), channels=1)


def write_sounds(folder: Path, count: int = 40, seed: int = 0) -> Path:
    """``count`` tones of each class with noise, of 0.2 to 0.3 s at 8 kHz, as WAV files in class folders."""
    rng = np.random.default_rng(seed)
    for name, hertz in (("low", 300), ("middle", 900), ("high", 2500)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            time = np.arange(int(rng.integers(1600, 2400))) / 8000
            tone = np.sin(2 * np.pi * hertz * rng.uniform(0.8, 1.2) * time)
            samples = rng.uniform(0.05, 0.4) * tone + rng.normal(0, 0.05, len(time))
            (folder / name / f"{number:03}.wav").write_bytes(wav(samples))
    return folder
