"""VGG-19."""

from __future__ import annotations

from offramp.training.models.backbone import Backbone
from offramp.training.models.layers import ConvUnit, MaxPool, SubBlock, Unit


def vgg_19(classes: int, size: int = 32) -> Backbone:
    """VGG-19 with batch norm for small images: five blocks that end in max pooling, one linear layer.

    The paper's split (Sec. V-C, after the max pooling of the second block) is exit 5: 128x8x8.
    """
    units: list[tuple[str, Unit]] = []
    c_in = 3
    for block, (c_out, convolutions) in enumerate(((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)), 1):
        for number in range(1, convolutions + 1):
            units.append((f"block{block}.conv{number}", ConvUnit(c_in, c_out, 3)))
            c_in = c_out
        units.append((f"block{block}.pool", MaxPool(2)))
    (_, stem), *others = units
    assert isinstance(stem, ConvUnit)
    blocks = [SubBlock(name, unit) for name, unit in others]
    return Backbone(stem, blocks, [], channels=c_in, classes=classes, input_shape=(3, size, size))
