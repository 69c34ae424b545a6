"""The networks that recipes name."""

from __future__ import annotations

from collections.abc import Callable

from offramp.training.models.backbone import Backbone
from offramp.training.models.mobilenet import mobilenet_v2, mobilenet_v2_large
from offramp.training.models.resnet import resnet_32
from offramp.training.models.vgg import vgg_19

BACKBONES: dict[str, Callable[[int, int], Backbone]] = {
    "mobilenet-v2": mobilenet_v2,
    "mobilenet-v2-large": mobilenet_v2_large,
    "resnet-32": resnet_32,
    "vgg-19": vgg_19,
}
"""By the name that recipes use: from the number of classes and the side of the images."""
