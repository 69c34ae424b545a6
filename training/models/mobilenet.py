"""MobileNetV2."""

from __future__ import annotations

from offramp.training.models.backbone import Backbone
from offramp.training.models.layers import Add, ConvUnit, SubBlock

# Expansion factor, output channels, repeats, stride of the first repeat where images are large. For 32x32
# images the stem and the first repeat with 24 channels keep stride 1, which gives exit 5 its 24x32x32 and
# exit 12 its 32x16x16 (Fig. 5).
_MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(classes: int, size: int = 32) -> Backbone:
    """MobileNetV2, width 1.0, for small images: 17 blocks, identity shortcuts only (Sec. V-A, Table I).

    Args:
        classes: number of classes K.
        size: side of the images in pixels.
    """
    return _mobilenet_v2(classes, size, stem_stride=1)


def mobilenet_v2_large(classes: int, size: int = 224) -> Backbone:
    """The same network with its authors' strides, for images of some 96 to 256 pixels a side.

    Stem and second block halve the image once more each: at 224 pixels exit 5 is 24x56x56, exit 12 32x28x28
    (Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, Table 2).

    Args:
        classes: number of classes K.
        size: side of the images in pixels.
    """
    return _mobilenet_v2(classes, size, stem_stride=2)


def _mobilenet_v2(classes: int, size: int, *, stem_stride: int) -> Backbone:
    blocks: list[SubBlock] = []
    c_in, number = 32, 0
    for expansion, c_out, repeats, first_stride in _MOBILENET_V2:
        for repeat in range(repeats):
            number += 1
            stride = first_stride if repeat == 0 else 1
            if number == 2:
                stride = stem_stride
            residual = stride == 1 and c_in == c_out
            wide = c_in * expansion
            if expansion > 1:
                blocks.append(SubBlock(f"block{number}.C1", ConvUnit(c_in, wide, 1), opens=residual))
            blocks.append(SubBlock(f"block{number}.C2", ConvUnit(wide, wide, 3, stride=stride, groups=wide)))
            blocks.append(SubBlock(f"block{number}.C3", ConvUnit(wide, c_out, 1, relu=False)))
            if residual:
                blocks.append(SubBlock(f"block{number}.add", Add()))
            c_in = c_out
    return Backbone(
        ConvUnit(3, 32, 3, stride=stem_stride),
        blocks,
        [ConvUnit(c_in, 1280, 1)],
        channels=1280,
        classes=classes,
        input_shape=(3, size, size),
    )
