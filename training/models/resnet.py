"""ResNet-32."""

from __future__ import annotations

from offramp.training.models.backbone import Backbone
from offramp.training.models.layers import Add, ConvUnit, Shortcut, SubBlock


def resnet_32(classes: int, size: int = 32) -> Backbone:
    """ResNet-32 for small images: three stages of five blocks, parameter-free shortcuts.

    Block b has positions 3b - 2 and 3b - 1 for its convolutions and 3b for its add and ReLU, so the paper's
    split (Sec. V-C, after the ReLU of the second block) is exit 6: 16x32x32.
    """
    blocks: list[SubBlock] = []
    c_in, number = 16, 0
    for c_out in (16, 32, 64):
        for _ in range(5):
            number += 1
            stride = 1 if c_in == c_out else 2
            shortcut = None if stride == 1 else Shortcut(c_in, c_out, stride)
            name = f"block{number}"
            blocks += [
                SubBlock(f"{name}.conv1", ConvUnit(c_in, c_out, 3, stride=stride), opens=True),
                SubBlock(f"{name}.conv2", ConvUnit(c_out, c_out, 3, relu=False)),
                SubBlock(f"{name}.add", Add(relu=True, shortcut=shortcut)),
            ]
            c_in = c_out
    return Backbone(
        ConvUnit(3, 16, 3), blocks, [], channels=c_in, classes=classes, input_shape=(3, size, size)
    )
