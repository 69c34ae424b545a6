"""Small networks of the families that get split, with random weights that are always the same."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from offramp.training.models.mobilenet import mobilenet_v2
from offramp.training.models.resnet import resnet_32
from offramp.training.models.vgg import vgg_19
from offramp.training.split.capture import Captured, capture
from offramp.training.split.cuts import Cuts, find_cuts

SHAPE = (3, 32, 32)
CLASSES = 10


class Residual(nn.Module):
    """A ResNet's basic block, which changes tensors in place and runs one activation twice."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample: nn.Module | None = None
        if stride > 1 or c_in != c_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Residual(8, 8), Residual(8, 8))
        self.layer2 = nn.Sequential(Residual(8, 16, 2), Residual(16, 16))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


class Gated(nn.Module):
    """MobileNetV3's block: expand, depthwise, squeeze and excite, project, add."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.expand = nn.Sequential(nn.Conv2d(channels, wide, 1), nn.BatchNorm2d(wide), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.BatchNorm2d(wide), nn.Hardswish()
        )
        self.squeeze = nn.Conv2d(wide, 8, 1)
        self.excite = nn.Conv2d(8, wide, 1)
        self.project = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        gate = self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        out: Tensor = x + self.project(y * nn.functional.hardsigmoid(gate))
        return out


class MobileNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.Hardswish()),
            Gated(8),
            Gated(8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(8, CLASSES),
        )


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        each = self.qkv(self.norm(x)).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = each.permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.out(y.transpose(1, 2).reshape(n, tokens, width))
        return out


class Windows(nn.Module):
    """Swin's trick: attention within windows, which go into the batch."""

    def __init__(self, width: int, side: int, window: int) -> None:
        super().__init__()
        self.side, self.window = side, window
        self.attention = Attention(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        count, w = self.side // self.window, self.window
        y = x.view(n, count, w, count, w, width).transpose(2, 3).reshape(-1, w * w, width)
        y = self.attention(y).view(n, count, count, w, w, width).transpose(2, 3)
        out: Tensor = y.reshape(n, tokens, width)
        return out


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(2 * width, width),
            nn.Dropout(0.1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(self.norm(x))
        return out


class ViT(nn.Module):
    """Patches, a class token, positions, blocks of attention; windows in the last."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 17, 16))
        self.blocks = nn.Sequential(Attention(16, 4), Mlp(16), Attention(16, 4), Mlp(16))
        self.windows = Windows(16, 4, 2)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        x = self.blocks(x)
        x = self.windows(x[:, 1:])
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


class ShiftedWindows(nn.Module):
    """A block of a Swin transformer on [N, H, W, C]: windows rolled by half, with a bias looked up by
    relative position, and a mask where the roll brought strangers together."""

    index: Tensor
    mask: Tensor

    def __init__(self, width: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.side, self.window, self.shift, self.heads = side, window, shift, 2
        self.norm, self.mlp = nn.LayerNorm(width), Mlp(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, self.heads))
        place = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)
        offset = place[:, :, None] - place[:, None, :] + window - 1
        self.register_buffer("index", offset[0] * (2 * window - 1) + offset[1])
        region = torch.zeros(side, side)
        if shift:
            region[-shift:] += 1
            region[:, -shift:] += 2
        parts = (
            region.view(side // window, window, side // window, window).transpose(1, 2).reshape(-1, window**2)
        )
        self.register_buffer("mask", (parts[:, None] != parts[:, :, None]) * -100.0)

    def forward(self, x: Tensor) -> Tensor:
        n, side, _, width = x.shape
        count, w = side // self.window, self.window
        y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(n, count, w, count, w, width).transpose(2, 3).reshape(-1, w * w, width)
        q, k, v = (
            self.qkv(y)
            .reshape(-1, w * w, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        weights = q @ k.transpose(-2, -1) + self.table[self.index.view(-1)].view(w * w, w * w, -1).permute(
            2, 0, 1
        )
        weights = weights.view(n, count * count, self.heads, w * w, w * w) + self.mask[:, None]
        y = weights.view(-1, self.heads, w * w, w * w).softmax(-1) @ v
        y = self.out(y.transpose(1, 2).reshape(-1, w * w, width))
        y = y.view(n, count, count, w, w, width).transpose(2, 3).reshape(n, side, side, width)
        out: Tensor = self.mlp(x + torch.roll(y, (self.shift, self.shift), (1, 2)))
        return out


class Merged(nn.Module):
    """Four neighbours become one place of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, side, _, width = x.shape
        x = x.reshape(n, side // 2, 2, side // 2, 2, width).permute(0, 1, 3, 4, 2, 5).flatten(3)
        out: Tensor = self.reduce(self.norm(x))
        return out


class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.stages = nn.Sequential(
            ShiftedWindows(16, 8, 4, 0), ShiftedWindows(16, 8, 4, 2), Merged(16), ShiftedWindows(32, 4, 4, 0)
        )
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.patches(x).permute(0, 2, 3, 1))
        logits: Tensor = self.head(self.norm(x).mean((1, 2)))
        return logits


class Sound(nn.Module):
    """A classifier of one-dimensional inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 8, 9, stride=4)
        self.gru = nn.Linear(8, 8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.gru(torch.relu(self.conv(x)).transpose(1, 2)))
        logits: Tensor = self.fc(y.amax(1))
        return logits


class InTransformersStyle(nn.Module):
    """Answers with an object that has ``.logits``, as the models of `transformers` do."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = MobileNet()

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": self.backbone(pixel_values), "other": pixel_values}


class WithAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.fc(x.flatten(1)), hidden_states=None)


def build(name: str) -> nn.Module:
    """One of NETWORKS, in evaluation; batch norm has statistics of its own."""
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = NETWORKS[name][0]()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


NETWORKS = {
    "resnet": (ResNet, SHAPE),
    "mobilenet": (MobileNet, SHAPE),
    "vit": (ViT, SHAPE),
    "swin": (Swin, SHAPE),
    "sound": (Sound, (1, 400)),
    "logits": (InTransformersStyle, SHAPE),
    "paper-vgg19": (lambda: vgg_19(CLASSES), SHAPE),
    "paper-resnet32": (lambda: resnet_32(CLASSES), SHAPE),
    "paper-mobilenetv2": (lambda: mobilenet_v2(CLASSES), SHAPE),
}
"""Class and shape of one input, by name."""


@cache
def found(name: str) -> tuple[Captured, Cuts]:
    """One of NETWORKS, captured, and its cuts; only read them."""
    captured = capture(build(name), NETWORKS[name][1])
    return captured, find_cuts(captured)
