"""Classifiers as one list of named sub-blocks, cut at any of them, with an early exit at the cut.

A backbone is a stem, sub-blocks and a classifier. The stem has position 0 and every sub-block the next
number, so a sub-block's position *is* the exit number of the paper (Sec. V-A, Fig. 3). What flows from one
sub-block to the next is the activation and, inside a residual block, the block's input that is still to be
added.

    image -> [stem, 1, ... k] -> activation -> [k+1, ...] -> top -> classifier -> logits of the final exit
                                      \\-> ExitBranch -> logits of the early exit
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offramp.common.errors import ConfigError


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
        y: Tensor = self.norm(self.conv(x))
        return torch.relu(y) if self.relu else y


@dataclass(frozen=True)
class Flow:
    """What has to reach the next sub-block: an activation, the open residual branch; both [N, C, H, W]."""

    x: Tensor
    skip: Tensor | None = None


class SubBlock(nn.Module):
    """One numbered position: a unit, or (``unit`` None) the add that closes a residual block.

    ``opens`` keeps the unit's input as the residual branch, to be added at the position that closes the
    block.
    """

    def __init__(self, name: str, unit: ConvUnit | None, *, opens: bool = False) -> None:
        super().__init__()
        self.name = name
        self.unit = unit
        self.opens = opens

    def forward(self, flow: Flow) -> Flow:
        if self.unit is None:
            assert flow.skip is not None
            return Flow(flow.x + flow.skip)
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
        shape: the activation at the exit, (C, H, W), H and W at least 3.
        classes: number of classes K.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        if min(height, width) < 3:
            raise ConfigError(f"no early exit fits a {height}x{width} activation: its pool needs 3x3")
        self.pool = nn.AvgPool2d(kernel_size=3, stride=2)
        self.linear = nn.Linear(channels * ((height - 1) // 2) * ((width - 1) // 2), classes)

    def forward(self, x: Tensor) -> Tensor:
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
    """``early`` and ``final`` logits [N, K], and all that travels, ``activation`` [N, C, H, W]."""

    early: Tensor
    final: Tensor
    activation: Tensor


class SplitModel(nn.Module):
    """A backbone cut after position ``exit_number``, with an early exit there.

    A cut inside a residual block leaves two tensors to send: the activation and the block's input (Sec.
    III-A). Both travel, stacked along the channels in this order; the early exit sees the activation only.

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

    def _probe(self) -> Flow:
        training = self.backbone.training
        self.backbone.eval()
        with torch.no_grad():
            flow = self.backbone.run(
                Flow(torch.zeros(1, *self.backbone.input_shape)), 0, self.exit_number + 1
            )
        self.backbone.train(training)
        return flow

    def head(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float32 images [N, 3, H, W] to the activation [N, *split_shape] and the early logits [N, K]."""
        flow = self.backbone.run(Flow(images), 0, self.exit_number + 1)
        early = self.branch(flow.x)
        return (flow.x if flow.skip is None else torch.cat([flow.x, flow.skip], dim=1)), early

    def tail(self, activation: Tensor) -> Tensor:
        """The activation [N, *split_shape] to the final logits [N, K]."""
        channels = self.exit_shape[0]
        skip = activation[:, channels:] if self.split_shape[0] > channels else None
        return self.backbone.finish(Flow(activation[:, :channels], skip), self.exit_number + 1)

    def forward(self, images: Tensor) -> Outputs:
        activation, early = self.head(images)
        return Outputs(early, self.tail(activation), activation)


# Expansion factor, output channels, repeats, stride of the first repeat. For 32x32 images the stem and the
# first repeat with 24 channels keep stride 1, which gives exit 5 its 24x32x32 and exit 12 its 32x16x16 (Fig.
# 5).
_MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(classes: int) -> Backbone:
    """MobileNetV2, width 1.0, for 3x32x32 images: 17 blocks, identity shortcuts only (Sec. V-A, Table I)."""
    blocks: list[SubBlock] = []
    c_in, number = 32, 0
    for expansion, c_out, repeats, first_stride in _MOBILENET_V2:
        for repeat in range(repeats):
            number += 1
            stride = first_stride if repeat == 0 else 1
            residual = stride == 1 and c_in == c_out
            wide = c_in * expansion
            if expansion > 1:
                blocks.append(SubBlock(f"block{number}.C1", ConvUnit(c_in, wide, 1), opens=residual))
            blocks.append(SubBlock(f"block{number}.C2", ConvUnit(wide, wide, 3, stride=stride, groups=wide)))
            blocks.append(SubBlock(f"block{number}.C3", ConvUnit(wide, c_out, 1, relu=False)))
            if residual:
                blocks.append(SubBlock(f"block{number}.add", None))
            c_in = c_out
    return Backbone(
        ConvUnit(3, 32, 3),
        blocks,
        [ConvUnit(c_in, 1280, 1)],
        channels=1280,
        classes=classes,
        input_shape=(3, 32, 32),
    )


BACKBONES: dict[str, Callable[[int], Backbone]] = {"mobilenet-v2": mobilenet_v2}


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
    for position, block in enumerate(model.backbone.positions()):
        sides.update(dict.fromkeys(block.modules(), "device" if position <= model.exit_number else "server"))

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
