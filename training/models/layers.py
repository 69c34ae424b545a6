"""What backbones are made of: units of one or three layers, each in a sub-block with a name."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from offramp.training.models.batch_norm import fits, norm_relu


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


_Module = TypeVar("_Module", bound=nn.Module)


def folded(module: _Module) -> _Module:
    """A copy for inference only, a third faster: each batch norm is folded into the convolution before it."""
    copied = copy.deepcopy(module).eval().requires_grad_(False)
    for unit in copied.modules():
        if isinstance(unit, ConvUnit):
            unit.conv = nn.utils.fuse_conv_bn_eval(unit.conv, unit.norm)
            unit.norm = nn.Identity()  # type: ignore[assignment]
    return copied
