"""Bias correction: what rounding moves the mean of a channel by, its bias takes back.

Weights and activations are rounded to the nearest code, but over all places of a channel these errors do not
cancel: its mean moves, most in the depthwise layers, whose channels have few weights, and every layer behind
it sees the moved one. The difference is measured on calibration images, layer after layer, each behind those
that are already corrected, and added to the bias (Nagel et al., "Data-free quantization through weight
equalization and bias correction", 2019, Sec. 4.2 and appendix D).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from offramp.training.models.layers import Add, ConvUnit, Flow
from offramp.training.models.split_model import SplitModel
from offramp.training.quantize.quantized import Affine, QuantLayer, QuantModel

_BATCH = 32
# Means over all places of a channel are sure with few images. What a layer takes and gives is held of all.
_IMAGES = 256
_BYTES = 1 << 30


@dataclass(frozen=True)
class _Batch:
    """An activation as it is in float32, and as it is behind codes; both of one shape."""

    exact: Tensor
    coded: Tensor


_Batches = list[_Batch]


@torch.no_grad()
def with_corrected_biases(model: SplitModel, quantized: QuantModel, images: Tensor) -> QuantModel:
    """``quantized`` with the mean of every channel before its activation function as it is in ``model``.

    Args:
        model: float32, in eval mode.
        quantized: made of it.
        images: calibration images, float32 [N, 3, H, W], of which the first 256 are used, or as many as a
            layer's activations have a GiB for.
    """
    used = images[: _count(model, images[:1])].contiguous(memory_format=torch.channels_last)
    batches = [_Batch(x, x) for x in torch.split(used, _BATCH)]
    skip = batches
    blocks = []
    exit_convolutions, exit_linear = quantized.exit_convolutions, quantized.exit_linear
    for position, (block, coded) in enumerate(zip(model.blocks(), quantized.blocks, strict=True)):
        skip = batches if block.opens else skip
        layer = coded.layer
        if isinstance(block.unit, ConvUnit):
            assert isinstance(layer, QuantLayer)
            layer, batches = _convolution(block.unit, layer, batches)
        elif isinstance(block.unit, Add):
            batches = [
                _Batch(
                    block.unit(new.exact, old.exact),
                    _rounded(block.unit(new.coded, old.coded), coded.output),
                )
                for new, old in zip(batches, skip, strict=True)
            ]
        else:
            batches = [_Batch(block.unit(one.exact), block.unit(one.coded)) for one in batches]
        blocks.append(replace(coded, layer=layer))
        if model.bottleneck is not None and position == model.cut - 1:
            batches = [replace(one, exact=model.bottleneck.rounding(one.exact)) for one in batches]
        if position == model.seen:
            exit_convolutions, seen = _chain(model.branch.units(), exit_convolutions, batches)
            exit_linear = _linear(model.branch.linear, exit_linear, model.branch.pool, seen)
    top, batches = _chain(model.backbone.top, quantized.top, batches)
    return replace(
        quantized,
        blocks=tuple(blocks),
        top=top,
        classifier=_linear(
            model.backbone.classifier.linear, quantized.classifier, lambda x: x.mean(dim=(2, 3)), batches
        ),
        exit_convolutions=exit_convolutions,
        exit_linear=exit_linear,
    )


def _count(model: SplitModel, image: Tensor) -> int:
    """How many images to use, from what one of them, float32 [1, 3, H, W], is in each layer."""
    flow = Flow(image)
    sizes = [image.numel()]
    for block in model.blocks():
        flow = block(flow)
        sizes.append(flow.x.numel())
    both_in_float32 = 2 * 4
    of_one = both_in_float32 * max(before + after for before, after in pairwise(sizes))
    return min(_IMAGES, max(_BATCH, _BYTES // of_one))


def _chain(
    units: Iterable[nn.Module], layers: tuple[QuantLayer, ...], batches: _Batches
) -> tuple[tuple[QuantLayer, ...], _Batches]:
    """Convolutions one after the other, corrected, and what the last one leaves."""
    corrected = []
    for unit, layer in zip(units, layers, strict=True):
        assert isinstance(unit, ConvUnit)
        layer, batches = _convolution(unit, layer, batches)
        corrected.append(layer)
    return tuple(corrected), batches


def _convolution(unit: ConvUnit, layer: QuantLayer, batches: _Batches) -> tuple[QuantLayer, _Batches]:
    weight, bias = _real(layer)
    output = layer.output
    assert output is not None
    results = [
        _Batch(
            unit.norm(unit.conv(one.exact)),
            nn.functional.conv2d(one.coded, weight, bias, layer.stride, layer.padding, groups=layer.groups),
        )
        for one in batches
    ]
    layer, moved = _corrected(layer, results)
    ends = torch.relu if unit.relu else nn.Identity()
    # In place, so that what is done with is freed.
    for number, one in enumerate(results):
        results[number] = _Batch(ends(one.exact), _rounded(ends(one.coded + moved[:, None, None]), output))
    return layer, results


def _linear(
    linear: nn.Linear, layer: QuantLayer, pool: Callable[[Tensor], Tensor], batches: _Batches
) -> QuantLayer:
    """The linear layer behind a pool of ``batches``, corrected."""
    weight, bias = _real(layer)
    results = [
        _Batch(
            linear(pool(one.exact).flatten(1)),
            nn.functional.linear(_rounded(pool(one.coded), layer.input).flatten(1), weight, bias),
        )
        for one in batches
    ]
    return _corrected(layer, results)[0]


def _corrected(layer: QuantLayer, results: _Batches) -> tuple[QuantLayer, Tensor]:
    """The layer with its bias moved, and by how much that is, float32 [C]; ``results`` [N, C, ...]."""
    other = [axis for axis in range(results[0].exact.dim()) if axis != 1]
    sums = torch.stack([(one.exact - one.coded).double().sum(dim=other) for one in results]).sum(dim=0)
    mean = sums.numpy() / sum(one.exact.numel() // one.exact.shape[1] for one in results)
    unit = layer.weight_scale.astype(np.float64) * layer.input.scale
    steps = np.rint(mean / unit)
    corrected = replace(layer, bias=(layer.bias + steps).astype(np.int32))
    return corrected, torch.from_numpy((steps * unit).astype(np.float32))


def _real(layer: QuantLayer) -> tuple[Tensor, Tensor]:
    """The weight and the bias that the integers stand for, float32."""
    scale = layer.weight_scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    bias = layer.bias * (layer.weight_scale.astype(np.float64) * layer.input.scale)
    return torch.from_numpy(layer.weight * scale), torch.from_numpy(bias.astype(np.float32))


def _rounded(x: Tensor, code: Affine) -> Tensor:
    """What the codes of ``x`` stand for."""
    return torch.from_numpy(code.dequantize(code.quantize(x.numpy())))
