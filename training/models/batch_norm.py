"""Batch norm and ReLU in one, for training on a CPU: the numbers of torch's two layers, to rounding.

In bfloat16 a value is read as the upper half of its float32 and rounded when written; between is float32.

Between two convolutions of a narrow network there is more memory traffic than arithmetic. torch's own layers
pass over it thirteen times and take two thirds of a training step. Here it is two passes forward and two
back, over rows of channels, which is how channels-last tensors lie in memory.

    forward   moments of x        y = max(0, scale x + shift)
    backward  sums of g and g x'  dx = a g + b x' + c, where g is dy wherever y > 0, and x' is x - mean
"""

from __future__ import annotations

from typing import Any, TypeVar

import numba
import numpy as np
import torch
from numba import njit, prange
from numba.extending import overload
from numpy.typing import NDArray
from torch import Tensor, nn

from offramp.training import processes

_Float = TypeVar("_Float", np.float32, np.float64)
# Sums are float32 over this many rows, and float64 over the blocks.
_ROWS = 64


def fits(x: Tensor) -> bool:
    """Whether `norm_relu` takes this tensor: float32 or bfloat16 on the CPU, outside a compiled graph."""
    known = x.dtype in (torch.float32, torch.bfloat16)
    return x.device.type == "cpu" and known and not torch.compiler.is_compiling()


def norm_relu(norm: nn.BatchNorm2d, x: Tensor, *, relu: bool) -> Tensor:
    """What ``norm`` in training mode makes of [N, C, H, W], float32 or bfloat16, and its ReLU if ``relu``.

    The result has x's shape and dtype. Updates the running mean and variance as ``norm`` would. Where several
    processes train, x is this one's equal share of a batch and the statistics are those of all of it.
    """
    y, mean, variance = _NormRelu.apply(x, norm.weight, norm.bias, norm.eps, relu)  # type: ignore[no-untyped-call]
    assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
    count = processes.count() * x.numel() // x.shape[1]
    with torch.no_grad():
        norm.running_mean.lerp_(mean, norm.momentum)
        # The running variance is the unbiased one.
        norm.running_var.lerp_(variance * (count / max(1, count - 1)), norm.momentum)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked += 1
    out: Tensor = y
    return out


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        rows = _rows(x)
        # Around any value of the channel, squares stay small enough for float32.
        pivot = _mean_of_all(x[0, :, 0, 0].detach().float().numpy())
        sums = _mean_of_all(_moments(rows, pivot, _threads()))
        offset = sums[0] / len(rows)
        mean = pivot + offset
        variance = np.maximum(sums[1] / len(rows) - offset**2, 0.0)
        inverse = 1 / np.sqrt(variance + eps)
        scale = weight.detach().numpy() * inverse
        shift = bias.detach().numpy() - mean * scale
        ctx.line = scale.astype(np.float32), shift.astype(np.float32)
        y = torch.empty_like(x)
        _write(rows, *ctx.line, relu, _rows(y), _threads())
        ctx.save_for_backward(x)
        ctx.moments, ctx.scale, ctx.relu = (mean, inverse), scale, relu
        moments = _tensor(mean), _tensor(variance)
        ctx.mark_non_differentiable(*moments)
        return y, *moments

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (x,) = ctx.saved_tensors
        rows, given = _rows(x), _rows(dy.contiguous(memory_format=torch.channels_last))
        (mean, inverse), scale = ctx.moments, ctx.scale
        middle = mean.astype(np.float32)
        sums = _gradient_sums(rows, given, *ctx.line, ctx.relu, middle, _threads())
        d_bias, d_weight = sums[0], inverse * sums[1]
        through_bias, through_weight = _mean_of_all(np.stack([d_bias, d_weight]))
        b = -scale * inverse * through_weight / len(rows)
        c = -scale * through_bias / len(rows)
        dx = torch.empty_like(x)
        line = (one.astype(np.float32) for one in (scale, b, c))
        _write_gradient(rows, given, *ctx.line, ctx.relu, middle, *line, _rows(dx), _threads())
        return dx, _tensor(d_weight), _tensor(d_bias), None, None


def _mean_of_all(values: NDArray[_Float]) -> NDArray[_Float]:
    """The mean over all processes; each has as many rows."""
    if processes.count() == 1:
        return values
    total: NDArray[_Float] = processes.summed(torch.from_numpy(values)).numpy()
    return total / values.dtype.type(processes.count())


def _threads() -> int:
    threads: int = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    return threads


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _rows(x: Tensor) -> NDArray[np.float32] | NDArray[np.uint16]:
    """The memory of a channels-last [N, C, H, W] as [N · H · W, C], that of bfloat16 as uint16."""
    rows = x.detach().permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    found: NDArray[np.float32] = (rows.view(torch.uint16) if x.dtype == torch.bfloat16 else rows).numpy()
    return found


def _read(values: Any, row: int, k: int) -> Any:  # pragma: no cover
    """float32 of one value in `_rows`."""
    raise NotImplementedError


def _put(values: Any, row: int, k: int, value: Any) -> None:  # pragma: no cover
    """Write float32 as one value in `_rows`, to the nearest, ties to even."""
    raise NotImplementedError


@overload(_read)
def _read_compiled(values, row, k):  # type: ignore[no-untyped-def]  # pragma: no cover
    if values.dtype == numba.float32:
        return lambda values, row, k: values[row, k]
    return lambda values, row, k: np.uint32(np.uint32(values[row, k]) << 16).view(np.float32)


@overload(_put)
def _put_compiled(values, row, k, value):  # type: ignore[no-untyped-def]  # pragma: no cover
    if values.dtype == numba.float32:

        def whole(values, row, k, value):  # type: ignore[no-untyped-def]
            values[row, k] = value

        return whole

    def upper_half(values, row, k, value):  # type: ignore[no-untyped-def]
        bits = np.float32(value).view(np.uint32)
        values[row, k] = np.uint32(bits + np.uint32(0x7FFF + ((bits >> 16) & 1))) >> 16

    return upper_half


_compiled = njit(parallel=True, fastmath={"contract", "reassoc", "nsz"}, cache=True, nogil=True)


@_compiled
def _moments(x, pivot, parts):  # type: ignore[no-untyped-def]  # pragma: no cover
    count, channels = x.shape
    sums = np.zeros((parts, 2, channels), np.float64)
    for part in prange(parts):
        some = np.empty((2, channels), np.float32)
        stop = count * (part + 1) // parts
        for first in range(count * part // parts, stop, _ROWS):
            some[:] = 0
            for row in range(first, min(stop, first + _ROWS)):
                for k in range(channels):
                    value = _read(x, row, k) - pivot[k]
                    some[0, k] += value
                    some[1, k] += value * value
            for k in range(channels):
                sums[part, 0, k] += some[0, k]
                sums[part, 1, k] += some[1, k]
    return sums.sum(axis=0)


@_compiled
def _write(x, scale, shift, relu, y, parts):  # type: ignore[no-untyped-def]  # pragma: no cover
    count, channels = x.shape
    least = np.float32(0 if relu else -np.inf)
    for part in prange(parts):
        for row in range(count * part // parts, count * (part + 1) // parts):
            for k in range(channels):
                value = scale[k] * _read(x, row, k) + shift[k]
                # What is no number stays none.
                _put(y, row, k, least if value < least else value)


@_compiled
def _gradient_sums(x, dy, scale, shift, relu, middle, parts):  # type: ignore[no-untyped-def]  # pragma: no cover
    count, channels = x.shape
    least = np.float32(0 if relu else -np.inf)
    sums = np.zeros((parts, 2, channels), np.float64)
    for part in prange(parts):
        some = np.empty((2, channels), np.float32)
        stop = count * (part + 1) // parts
        for first in range(count * part // parts, stop, _ROWS):
            some[:] = 0
            for row in range(first, min(stop, first + _ROWS)):
                for k in range(channels):
                    value = _read(x, row, k)
                    given = _read(dy, row, k) if scale[k] * value + shift[k] > least else np.float32(0)
                    some[0, k] += given
                    some[1, k] += given * (value - middle[k])
            for k in range(channels):
                sums[part, 0, k] += some[0, k]
                sums[part, 1, k] += some[1, k]
    return sums.sum(axis=0)


@_compiled
def _write_gradient(x, dy, scale, shift, relu, middle, a, b, c, dx, parts):  # type: ignore[no-untyped-def]  # pragma: no cover
    count, channels = x.shape
    least = np.float32(0 if relu else -np.inf)
    for part in prange(parts):
        for row in range(count * part // parts, count * (part + 1) // parts):
            for k in range(channels):
                value = _read(x, row, k)
                given = _read(dy, row, k) if scale[k] * value + shift[k] > least else np.float32(0)
                _put(dx, row, k, a[k] * given + b[k] * (value - middle[k]) + c[k])
