"""Post-training quantization (Sec. V-D1): a trained split model and calibration images in, integers out.

Activations are uint8 with one scale and zero point per tensor, weights int8 with one scale per output channel
and no zero point, biases int32. Batch norm is folded into the convolution before it, and a ReLU is the lower
end of the range that uint8 can hold, so neither is left (`QuantLayer.relu` is the one exception).

The transmitted activation is coded losslessly afterwards, and every bit of its step that no exit needs is a
bit sent in vain: its step may be coarser than that of 256 codes over its range (`_coarser_code`).

At last the biases take back what all of this moves the means by (`bias_correction`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offramp.common.errors import DataError
from offramp.training.data.datasets import Labelled, to_float
from offramp.training.models.exit_branch import ExitBranch
from offramp.training.models.layers import Add, ConvUnit, Flow, MaxPool, Shortcut, Shuffle
from offramp.training.models.split_model import SplitModel
from offramp.training.quantize.bias_correction import with_corrected_biases
from offramp.training.quantize.quantized import (
    IMAGE,
    WHOLE,
    Affine,
    QuantAdd,
    QuantBlock,
    QuantLayer,
    QuantModel,
    QuantPool,
    QuantShuffle,
)
from offramp.training.quantize.recipe import QuantizeRecipe

_BATCH = 128
# Each range is chosen among these fractions of the observed one (see `_choose_range`).
_SHRINK = np.linspace(1.0, 0.5, 26)
_SAMPLE = 1 << 16
# Steps of the transmitted activation that are tried, as multiples of the finest that holds its range; on how
# many images.
_FINER, _COARSER = 2.0 ** (-np.arange(1, 9) / 2), 2.0 ** (np.arange(1, 17) / 2)
_STEP_IMAGES = 512


class _Observed:
    """The values of one tensor over the calibration images: range, and an evenly spaced sample."""

    def __init__(self) -> None:
        self.low, self.high = 0.0, 0.0
        self.samples: list[NDArray[np.float32]] = []

    def add(self, x: Tensor) -> None:
        flat = x.detach().flatten()
        self.low = min(self.low, float(flat.min()))
        self.high = max(self.high, float(flat.max()))
        # An odd step: an even one would keep to a few columns of every image.
        # A copy: a view would keep all of the tensor.
        self.samples.append(flat[:: flat.numel() // _SAMPLE | 1].numpy().copy())

    def merge(self, other: _Observed) -> None:
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.samples += other.samples

    def affine(self) -> Affine:
        sample = np.concatenate(self.samples)
        return _choose_range(self.low, self.high, sample[:: len(sample) // (2 * _SAMPLE) | 1])


def _choose_range(low: float, high: float, sample: NDArray[np.float32]) -> Affine:
    """The shrunk range with the smallest mean squared rounding-plus-clipping error on the sample."""
    best, best_error = Affine.covering(low, high), float("inf")
    for shrink in _SHRINK:
        code = Affine.covering(low * shrink, high * shrink)
        error = float(np.square(sample - code.dequantize(code.quantize(sample))).mean())
        if error < best_error:
            best, best_error = code, error
    return best


def calibration_part(count: int, *, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of ``count`` validation images calibrate, a seeded ``share`` of them, and which do not."""
    order = np.random.default_rng(seed).permutation(count)
    # At least one image, however small the share.
    first = int(np.ceil(count * share))
    return order[:first], order[first:]


def quantize_calibrated(
    model: SplitModel, validation: Labelled, settings: QuantizeRecipe, seed: int
) -> QuantModel:
    """`quantize` as a recipe has it, calibrated by its part of the validation images."""
    part, _ = calibration_part(len(validation), share=settings.calibration, seed=seed)
    images = to_float(torch.from_numpy(validation.images[part]))
    return quantize(model, images, settings.divergence)


def quantize(model: SplitModel, images: Tensor, divergence: float = 0.0) -> QuantModel:
    """Quantize a trained model.

    Args:
        model: float32, put in eval mode.
        images: calibration images, float32 [N, 3, H, W], never test images.
        divergence: by how much the step of the transmitted activation may move the answers of either exit:
            mean Kullback-Leibler divergence, nats. 0: the finest step that holds the range, as in the paper.
            A bottleneck's code has its own step, which this leaves alone.

    Raises:
        DataError: if there are no calibration images.
    """
    if len(images) == 0:
        raise DataError("quantization needs at least one calibration image")
    model.eval()
    backbone, all_blocks = model.backbone, model.blocks()
    seen = _observe(model, images)
    codes = [tensor.affine() for tensor in seen.positions]
    step = 1.0
    if model.bottleneck is None:
        _share_code(model, seen.positions, codes)
        if divergence > 0:
            finest = codes[model.exit_number]
            chosen = _coarser_code(model, images[:_STEP_IMAGES], finest, divergence)
            step = chosen.scale / finest.scale
            codes = [chosen if code is finest else code for code in codes]
    else:
        codes[model.cut - 1] = WHOLE
    for position, block in enumerate(all_blocks):
        # Of what is pooled only the largest go on, so the range of these is what counts.
        if isinstance(block.unit, MaxPool):
            codes[position - 1] = codes[position]
        elif isinstance(block.unit, Shuffle):
            codes[position] = codes[position - 1]

    blocks: list[QuantBlock] = []
    incoming = skip = IMAGE
    for block, output in zip(all_blocks, codes, strict=True):
        skip = incoming if block.opens else skip
        layer: QuantLayer | QuantAdd | QuantPool | QuantShuffle
        if isinstance(block.unit, ConvUnit):
            layer = _conv(block.unit, incoming, output)
        elif isinstance(block.unit, MaxPool):
            layer = QuantPool(block.unit.kernel)
        elif isinstance(block.unit, Shuffle):
            layer = QuantShuffle(block.unit.factor)
        else:
            layer = _add(block.unit, skip, output)
        blocks.append(QuantBlock(block.name, layer, block.opens, output))
        incoming = output
    top, _ = _chain(backbone.top, seen.top, incoming)
    own, exit_code = _chain(model.branch.units(), seen.exit_convolutions, codes[model.seen])
    pooled, exit_pooled = seen.pooled.affine(), seen.exit_pooled.affine()
    final, early = backbone.classifier.linear, model.branch.linear
    quantized = QuantModel(
        blocks=tuple(blocks),
        top=top,
        pooled=pooled,
        classifier=_integers(_numpy(final.weight), _numpy(final.bias), pooled, None),
        exit_convolutions=own,
        exit_pool=_average(model.branch, exit_code, exit_pooled),
        exit_linear=_integers(_numpy(early.weight), _numpy(early.bias), exit_pooled, None),
        exit_number=model.exit_number,
        seen=model.seen,
        cut=model.cut,
        symbols=codes[model.cut - 1],
        step=step,
        exit_shape=model.exit_shape,
        split_shape=model.split_shape,
        input_shape=backbone.input_shape,
        classes=backbone.classes,
    )
    return with_corrected_biases(model, quantized, images)


@dataclass(frozen=True)
class _Ranges:
    positions: list[_Observed]
    top: list[_Observed]
    pooled: _Observed
    exit_convolutions: list[_Observed]
    exit_pooled: _Observed


@torch.no_grad()
def _observe(model: SplitModel, images: Tensor) -> _Ranges:
    backbone, blocks = model.backbone, model.blocks()
    seen = _Ranges(
        [_Observed() for _ in blocks],
        [_Observed() for _ in backbone.top],
        _Observed(),
        [_Observed() for _ in model.branch.units()],
        _Observed(),
    )
    for batch in torch.split(images, _BATCH):
        # The default layout takes three times as long.
        flow = Flow(batch.contiguous(memory_format=torch.channels_last))
        for position, (block, tensor) in enumerate(zip(blocks, seen.positions, strict=True)):
            flow = block(flow)
            tensor.add(flow.x)
            if model.bottleneck is not None and position == model.cut - 1:
                flow = Flow(model.bottleneck.rounding(flow.x))
            if position == model.seen:
                x = _observe_chain(model.branch.units(), seen.exit_convolutions, flow.x)
                seen.exit_pooled.add(model.branch.pool(x))
        x = _observe_chain(backbone.top, seen.top, flow.x)
        seen.pooled.add(x.mean(dim=(2, 3)))
    return seen


def _observe_chain(units: Iterable[nn.Module], seen: list[_Observed], x: Tensor) -> Tensor:
    """Convolutions one after the other: what the last one makes of ``x``."""
    for unit, tensor in zip(units, seen, strict=True):
        x = unit(x)
        tensor.add(x)
    return x


def _chain(
    units: Iterable[nn.Module], seen: list[_Observed], incoming: Affine
) -> tuple[tuple[QuantLayer, ...], Affine]:
    """Convolutions one after the other, and the code of what the last one leaves."""
    layers = []
    for unit, tensor in zip(units, seen, strict=True):
        assert isinstance(unit, ConvUnit)
        output = tensor.affine()
        layers.append(_conv(unit, incoming, output))
        incoming = output
    return tuple(layers), incoming


def _share_code(model: SplitModel, seen: list[_Observed], codes: list[Affine]) -> None:
    """Give both tensors that travel from inside a residual block one code: the symbols have a single one."""
    if model.split_shape == model.exit_shape:
        return
    opener = max(p for p in range(model.exit_number + 1) if model.backbone.positions()[p].opens)
    both = _Observed()
    for position in (model.exit_number, opener - 1):
        both.merge(seen[position])
    codes[model.exit_number] = codes[opener - 1] = both.affine()


@torch.no_grad()
def _coarser_code(model: SplitModel, images: Tensor, finest: Affine, limit: float) -> Affine:
    """The code with the coarsest step at which the answers of both exits move by no more.

    Its cost is looked for where it counts, in the answers: the squared error says nothing of what the tail
    needs. Where even the finest step moves them by more, a few values far out have stretched the range; then
    it is the step that moves them least, and these values are clipped.
    """
    sent = [
        model.head(batch.contiguous(memory_format=torch.channels_last))[0]
        for batch in torch.split(images, _BATCH)
    ]
    exact = [_answers(model, x) for x in sent]

    def scale(multiple: float) -> float:
        """A step in float32, as `Affine.covering` has it."""
        return float(np.float32(finest.scale * multiple))

    def moved(code: Affine) -> float:
        """Mean nats, of the exit where it is more."""
        sums = np.zeros(2)
        for x, theirs in zip(sent, exact, strict=True):
            ours = _answers(model, torch.from_numpy(code.dequantize(code.quantize(_numpy(x)))))
            for side, (a, b) in enumerate(zip(ours, theirs, strict=True)):
                sums[side] += float(torch.nn.functional.kl_div(a, b, log_target=True, reduction="sum"))
        return float(sums.max()) / len(images)

    best, least = finest, moved(finest)
    if least <= limit:
        for step in _COARSER:
            # Zero stays where it is, so that the whole range is held.
            trial = Affine(scale(step), finest.zero_point)
            if moved(trial) > limit:
                break
            best = trial
        return best
    for step in _FINER:
        trial = _densest(scale(step), sent)
        if (here := moved(trial)) < least:
            best, least = trial, here
    return best


def _answers(model: SplitModel, sent: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities of the early and the final exit, [N, K] each."""
    x = sent.contiguous(memory_format=torch.channels_last)
    early, final = model.branch(x[:, : model.exit_shape[0]]), model.tail(x)
    return torch.log_softmax(early, dim=1), torch.log_softmax(final, dim=1)


def _densest(scale: float, sent: list[Tensor]) -> Affine:
    """The code of this step whose 256 values clip the fewest numbers."""
    numbers = np.concatenate([_numpy(x).ravel() for x in sent])
    steps = np.clip(np.rint(numbers / np.float32(scale)), -256, 256).astype(np.int64)
    counts = np.bincount(steps + 256, minlength=513)
    below = np.concatenate([[0], np.cumsum(counts)])
    # With zero at z the codes hold -z … 255 - z; both ends of the counts lie outside for every z.
    held = [below[512 - zero] - below[256 - zero] for zero in range(256)]
    return Affine(scale, int(np.argmax(held)))


def _conv(unit: ConvUnit, incoming: Affine, output: Affine) -> QuantLayer:
    norm, conv = unit.norm, unit.conv
    assert norm.running_mean is not None and norm.running_var is not None
    gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = conv.weight.double() * gain[:, None, None, None]
    bias = norm.bias.double() - norm.running_mean.double() * gain
    layer = _integers(_numpy(weight), _numpy(bias), incoming, output)
    return replace(
        layer,
        stride=conv.stride[0],
        padding=conv.kernel_size[0] // 2,
        groups=conv.groups,
        # A code that starts at 0 already ends there what ReLU would. One shared with a tensor of both signs
        # does not.
        relu=unit.relu and output.zero_point > 0,
    )


def _add(unit: Add, skip: Affine, output: Affine) -> QuantAdd:
    shortcut = None if unit.shortcut is None else _shortcut(unit.shortcut, skip)
    return QuantAdd(shortcut, relu=unit.relu and output.zero_point > 0)


def _shortcut(unit: Shortcut, code: Affine) -> QuantLayer:
    """As a convolution with weights 0 and 1: exact, and one of the operators that run in integers."""
    identity = np.eye(unit.c_out, unit.c_in, dtype=np.int8)[:, :, None, None]
    ones, zeros = np.ones(unit.c_out, np.float32), np.zeros(unit.c_out, np.int32)
    return QuantLayer(identity, ones, zeros, code, code, stride=unit.stride)


def _integers(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    incoming: Affine,
    output: Affine | None,
) -> QuantLayer:
    rows = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    # A channel with next to no weight would give its bias a scale too fine for 32 bits.
    floor = np.abs(bias) / (incoming.scale * 2.0**30)
    scale = np.maximum(np.maximum(rows / 127.0, floor), 1e-12).astype(np.float32)
    codes = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
    return QuantLayer(
        np.clip(codes, -127, 127).astype(np.int8),
        scale,
        np.rint(bias.astype(np.float64) / (scale.astype(np.float64) * incoming.scale)).astype(np.int32),
        incoming,
        output,
    )


def _average(branch: ExitBranch, incoming: Affine, output: Affine) -> QuantLayer:
    """Average pool, stride 2: weights of 1 with a scale of one over their number."""
    channels, side = branch.channels, branch.kernel
    ones, part = np.ones((channels, 1, side, side), np.int8), np.full(channels, 1 / side**2, np.float32)
    return QuantLayer(
        ones, part, np.zeros(channels, np.int32), incoming, output, stride=2, padding=0, groups=channels
    )


def _numpy(x: Tensor) -> NDArray[np.float32]:
    return x.detach().float().numpy().copy()
