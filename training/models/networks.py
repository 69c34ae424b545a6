"""Classifiers as one list of named sub-blocks, cut at any of them, with an early exit at the cut.

A backbone is a stem, sub-blocks and a classifier. The stem has position 0 and every sub-block the next
number, so a sub-block's position *is* the exit number of the paper (Sec. V-A, Fig. 3). What flows from one
sub-block to the next is the activation and, inside a residual block, the block's input that is still to be
added.

    image -> [stem, 1, ... k] -> activation -> [k+1, ...] -> top -> classifier -> logits of the final exit
                                      \\-> ExitBranch -> logits of the early exit
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from offramp.common.errors import ConfigError
from offramp.training.models.batch_norm import fits, norm_relu

if TYPE_CHECKING:
    from offramp.training.models.bottleneck import Bottleneck


class ConvUnit(nn.Module):
    """Convolution, batch norm and, if ``relu``, a ReLU: the three sub-block types of Table I.

    Maps float32 [N, C_in, H, W] to float32 [N, C_out, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int, *, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            c_in, c_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(c_out)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self._convolved(x)
        if self.training and fits(x):
            return norm_relu(self.norm, x, relu=self.relu)
        y: Tensor = self.norm(x)
        return torch.relu(y) if self.relu else y

    def _convolved(self, x: Tensor) -> Tensor:
        conv = self.conv
        (stride, _) = conv.stride
        slow = self.training and stride > 1 and conv.groups > 1 and x.device.type == "cpu"
        if not (slow and torch.is_autocast_enabled("cpu")):
            y: Tensor = conv(x)
            return y
        # On CPUs the gradient of a strided depthwise convolution in bfloat16 takes 20 times that of
        # an unstrided one, of which every stride-th output is the same.
        assert isinstance(conv.padding, tuple)
        whole = nn.functional.conv2d(x, conv.weight, None, 1, conv.padding, 1, conv.groups)
        return whole[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last)


class Shortcut(nn.Module):
    """The parameter-free shortcut past a stride: every ``stride``-th row and column, missing channels as 0.

    Maps [N, C_in, H, W] to [N, C_out, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.c_in, self.c_out, self.stride = c_in, c_out, stride

    def forward(self, x: Tensor) -> Tensor:
        kept = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(kept, (0, 0, 0, 0, 0, self.c_out - self.c_in))


class Add(nn.Module):
    """Closes a residual block: adds the open branch, through ``shortcut`` where shapes differ, then a ReLU if
    ``relu``."""

    def __init__(self, *, relu: bool = False, shortcut: Shortcut | None = None) -> None:
        super().__init__()
        self.relu = relu
        self.shortcut = shortcut

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        y = x + (skip if self.shortcut is None else self.shortcut(skip))
        return torch.relu(y) if self.relu else y


class MaxPool(nn.Module):
    """Largest of each ``kernel`` x ``kernel`` cell: [N, C, H, W] to [N, C, H // kernel, W // kernel]."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(x, self.kernel)


class Shuffle(nn.Module):
    """Depth to space: [N, C · factor², H, W] to [N, C, factor · H, factor · W]; values stay as they are."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(x, self.factor)


Unit = ConvUnit | Add | MaxPool | Shuffle


@dataclass(frozen=True)
class Flow:
    """What has to reach the next sub-block: an activation, the open residual branch; both [N, C, H, W]."""

    x: Tensor
    skip: Tensor | None = None


class SubBlock(nn.Module):
    """One numbered position. ``opens`` keeps the unit's input as the residual branch; an `Add` closes it."""

    def __init__(self, name: str, unit: Unit, *, opens: bool = False) -> None:
        super().__init__()
        self.name = name
        self.unit = unit
        self.opens = opens

    def forward(self, flow: Flow) -> Flow:
        if isinstance(self.unit, Add):
            assert flow.skip is not None
            return Flow(self.unit(flow.x, flow.skip))
        return Flow(self.unit(flow.x), flow.x if self.opens else flow.skip)


class Classifier(nn.Module):
    """The final exit: global average pool, then fully connected. [N, C, H, W] to logits [N, K]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


class ExitBranch(nn.Module):
    """The early exit of Sec. III-B: average pool (kernel 3, stride 2), then fully connected.

    Args:
        shape: what it sees, (C, H, W); H and W, where it is pooled, at least the kernel's side.
        classes: number of classes K.
        kernel: side of the pool's kernel; None: all that there is to pool, whose sides are equal.
        widths: channels of 3x3 convolutions of its own before the pool, each with a stride of 2; none: the
            paper's.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        kernel: int | None = 3,
        widths: Sequence[int] = (),
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.convolutions = nn.ModuleList()
        for wide in widths:
            self.convolutions.append(ConvUnit(channels, wide, 3, stride=2))
            channels, height, width = wide, -(-height // 2), -(-width // 2)
        kernel = height if kernel is None else kernel
        if min(height, width) < kernel:
            raise ConfigError(
                f"no early exit fits a {height}x{width} activation: its pool needs {kernel}x{kernel}"
            )
        self.channels, self.kernel = channels, kernel
        self.pool = nn.AvgPool2d(kernel, stride=2)
        rows, columns = ((side - kernel) // 2 + 1 for side in (height, width))
        self.linear = nn.Linear(channels * rows * columns, classes)

    @classmethod
    def of_code(cls, shape: tuple[int, int, int], classes: int) -> ExitBranch:
        """The one behind an encoder, whose few rows and columns all count: kernel 2 where they are even."""
        return cls(shape, classes, 2 if shape[1] % 2 == shape[2] % 2 == 0 else 3)

    @classmethod
    def widened(cls, shape: tuple[int, int, int], classes: int, widths: Sequence[int]) -> ExitBranch:
        """One with convolutions of its own, whose pool is over all that they leave; sides are equal."""
        return cls(shape, classes, None, widths)

    def units(self) -> list[ConvUnit]:
        """Its convolutions."""
        return [unit for unit in self.convolutions if isinstance(unit, ConvUnit)]

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.convolutions:
            x = unit(x)
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


class Backbone(nn.Module):
    """An unsplit classifier: float32 images [N, 3, H, W] to float32 logits [N, K].

    Args:
        stem: the unit at position 0.
        blocks: the sub-blocks at positions 1, 2, ...
        top: units after the last position at which an exit can sit.
        channels: channels that reach the classifier.
        classes: number of classes K.
        input_shape: (3, H, W) of one image.
    """

    def __init__(
        self,
        stem: ConvUnit,
        blocks: Iterable[SubBlock],
        top: Iterable[ConvUnit],
        *,
        channels: int,
        classes: int,
        input_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([SubBlock("stem", stem), *blocks])
        self.top = nn.ModuleList(top)
        self.classifier = Classifier(channels, classes)
        self.classes = classes
        self.input_shape = input_shape

    def positions(self) -> list[SubBlock]:
        """The sub-blocks by exit number; entry 0 is the stem."""
        return [block for block in self.blocks if isinstance(block, SubBlock)]

    def run(self, flow: Flow, start: int, stop: int) -> Flow:
        """Run the sub-blocks at positions start <= p < stop."""
        for block in self.positions()[start:stop]:
            flow = block(flow)
        return flow

    def finish(self, flow: Flow, start: int) -> Tensor:
        """From position ``start`` to the logits of the final exit."""
        x = self.run(flow, start, len(self.blocks)).x
        for unit in self.top:
            x = unit(x)
        logits: Tensor = self.classifier(x)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.finish(Flow(images), 0)


@dataclass(frozen=True)
class Outputs:
    """``early`` and ``final`` logits [N, K], and all that travels, ``activation`` [N, C, H, W].

    Behind a bottleneck ``activation`` is its encoder's output before rounding.
    """

    early: Tensor
    final: Tensor
    activation: Tensor


class SplitModel(nn.Module):
    """A backbone cut after position ``exit_number``, with an early exit there.

    A cut inside a residual block leaves two tensors to send: the activation and the block's input (Sec.
    III-A). Both travel, stacked along the channels in this order; the early exit sees the activation only.
    With ``insert`` a narrow code travels in place of the activation.

    Raises:
        ConfigError: if the backbone has no such exit, or the two tensors differ in height or width.
    """

    def __init__(self, backbone: Backbone, exit_number: int) -> None:
        super().__init__()
        last = len(backbone.blocks) - 1
        if not 1 <= exit_number <= last:
            raise ConfigError(f"exit {exit_number} does not exist: this model has exits 1 to {last}")
        self.backbone = backbone
        self.exit_number = exit_number
        flow = self._probe()
        self.exit_shape = _image_shape(flow.x)
        skip_channels = 0
        if flow.skip is not None:
            if flow.skip.shape[2:] != flow.x.shape[2:]:
                raise ConfigError(
                    f"exit {exit_number} cuts a residual block whose branches differ in height or width: "
                    "split after the block instead"
                )
            skip_channels = flow.skip.shape[1]
        channels, height, width = self.exit_shape
        self.split_shape = (channels + skip_channels, height, width)
        self.branch = ExitBranch(self.exit_shape, backbone.classes)
        self.bottleneck: Bottleneck | None = None
        self.exit_behind = False

    def insert(self, bottleneck: Bottleneck, *, exit_behind: bool = False) -> None:
        """Put a bottleneck at the split; never inside a residual block, where two tensors travel.

        exit_behind: a new early exit takes the old one's place, which sees the encoder's last layer but one
            in place of the activation: deeper, and no dearer, as that has to be computed for the code.

        Raises:
            ConfigError: if that layer is too small for an early exit.
        """
        assert self.split_shape == self.exit_shape
        if exit_behind:
            self.branch = ExitBranch.of_code(bottleneck.hidden_shape, self.backbone.classes)
        self.bottleneck, self.exit_behind = bottleneck, exit_behind
        self.split_shape = bottleneck.shape

    def widen_exit(self, widths: Sequence[int]) -> None:
        """Put a new early exit in the old one's place: `ExitBranch.widened`."""
        behind = self.bottleneck if self.exit_behind else None
        shape = self.exit_shape if behind is None else behind.hidden_shape
        self.branch = ExitBranch.widened(shape, self.backbone.classes, widths)

    @property
    def seen(self) -> int:
        """Which of ``blocks`` it is whose output the early exit sees."""
        return self.cut - 2 if self.exit_behind else self.exit_number

    @property
    def cut(self) -> int:
        """How many of ``blocks`` run on the device."""
        encoder = [] if self.bottleneck is None else self.bottleneck.blocks()[0]
        return self.exit_number + 1 + len(encoder)

    def blocks(self) -> list[SubBlock]:
        """All sub-blocks from image to top, those of a bottleneck among them."""
        positions, after = self.backbone.positions(), self.exit_number + 1
        encoder, decoder = ([], []) if self.bottleneck is None else self.bottleneck.blocks()
        return [*positions[:after], *encoder, *decoder, *positions[after:]]

    def _probe(self) -> Flow:
        training = self.backbone.training
        self.backbone.eval()
        with torch.no_grad():
            flow = self.backbone.run(
                Flow(torch.zeros(1, *self.backbone.input_shape)), 0, self.exit_number + 1
            )
        self.backbone.train(training)
        return flow

    def device_parts(self) -> list[nn.Module]:
        """What is on the device whatever travels: stem and sub-blocks up to the split."""
        return list[nn.Module](self.backbone.positions()[: self.exit_number + 1])

    def server_parts(self) -> list[nn.Module]:
        """What is on the server whatever travels: sub-blocks behind the split, top and classifier."""
        backbone = self.backbone
        return [*backbone.positions()[self.exit_number + 1 :], *backbone.top, backbone.classifier]

    def activation(self, images: Tensor) -> Tensor:
        """float32 images [N, 3, H, W] to all that the rest of the network needs: float32 [N, C,
        *exit_shape[1:]], the open residual branch behind the activation."""
        flow = self.backbone.run(Flow(images), 0, self.exit_number)
        # What travels is counted in 256 bins, finer than bfloat16 near the ends of its range.
        with torch.autocast(images.device.type, enabled=False):
            skip = None if flow.skip is None else flow.skip.float()
            flow = self.backbone.run(Flow(flow.x.float(), skip), self.exit_number, self.exit_number + 1)
        return flow.x if flow.skip is None else torch.cat([flow.x, flow.skip], dim=1)

    def encode(self, activation: Tensor) -> tuple[Tensor, Tensor]:
        """`activation` to what travels and the early logits [N, K].

        What travels, float32 [N, *split_shape], is the activation itself, or a bottleneck's code that is not
        yet rounded.
        """
        sees = activation[:, : self.exit_shape[0]]
        if self.bottleneck is None:
            return activation, self._early(sees)
        *others, last = self.bottleneck.blocks()[0]
        hidden = activation
        for block in others:
            hidden = block(Flow(hidden)).x
        with torch.autocast(activation.device.type, enabled=False):
            code = last(Flow(hidden.float())).x
        return code, self._early(hidden if self.exit_behind else sees)

    def _early(self, sees: Tensor) -> Tensor:
        logits: Tensor = self.branch(sees)
        return logits

    def decode(self, sent: Tensor) -> Tensor:
        """What travels [N, *split_shape] to `activation`; a bottleneck's code is rounded first."""
        if self.bottleneck is None:
            return sent
        flow = Flow(self.bottleneck.rounding(sent))
        for block in self.bottleneck.blocks()[1]:
            flow = block(flow)
        return flow.x

    def head(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float32 images [N, 3, H, W] to what travels [N, *split_shape] and the early logits [N, K]."""
        return self.encode(self.activation(images))

    def tail(self, sent: Tensor) -> Tensor:
        """What travels [N, *split_shape] to the final logits [N, K]."""
        return self.finish(self.decode(sent))

    def finish(self, activation: Tensor) -> Tensor:
        """`activation` to the final logits [N, K]."""
        channels = self.exit_shape[0]
        skip = activation[:, channels:] if activation.shape[1] > channels else None
        return self.backbone.finish(Flow(activation[:, :channels], skip), self.exit_number + 1)

    def forward(self, images: Tensor) -> Outputs:
        activation, early = self.head(images)
        return Outputs(early, self.tail(activation), activation)


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


BACKBONES: dict[str, Callable[[int, int], Backbone]] = {
    "mobilenet-v2": mobilenet_v2,
    "mobilenet-v2-large": mobilenet_v2_large,
    "resnet-32": resnet_32,
    "vgg-19": vgg_19,
}
"""By the name that recipes use: from the number of classes and the side of the images."""


_Module = TypeVar("_Module", bound=nn.Module)


def folded(module: _Module) -> _Module:
    """A copy for inference only, a third faster: each batch norm is folded into the convolution before it."""
    copied = copy.deepcopy(module).eval().requires_grad_(False)
    for unit in copied.modules():
        if isinstance(unit, ConvUnit):
            unit.conv = nn.utils.fuse_conv_bn_eval(unit.conv, unit.norm)
            unit.norm = nn.Identity()  # type: ignore[assignment]
    return copied


@dataclass(frozen=True)
class Cost:
    """Table II's units: weights without biases or batch norm, and multiply-accumulates for one image."""

    weights: int = 0
    macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.weights + other.weights, self.macs + other.macs)


@dataclass(frozen=True)
class Partition:
    """Table II for one split: ``device`` includes ``branch``, the early exit."""

    device: Cost
    branch: Cost
    server: Cost


def partition(model: SplitModel) -> Partition:
    """Count convolution and linear weights and their MACs on each side of the split (Table II)."""
    costs = {"device": Cost(), "branch": Cost(), "server": Cost()}
    sides: dict[nn.Module, str] = dict.fromkeys(model.branch.modules(), "branch")
    for position, block in enumerate(model.blocks()):
        sides.update(dict.fromkeys(block.modules(), "device" if position < model.cut else "server"))

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        # Each output element of one channel takes one MAC per weight of that channel's filter.
        macs = output[0].numel() * weight[0].numel()
        side = sides.get(module, "server")
        costs[side] += Cost(weight.numel(), macs)

    handles = [
        m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, *model.backbone.input_shape))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return Partition(costs["device"] + costs["branch"], costs["branch"], costs["server"])


def _image_shape(x: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = x.shape
    return channels, height, width
