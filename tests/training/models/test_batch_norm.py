"""Batch norm with its ReLU: torch's own layers in float64, to rounding."""

from functools import partial

import pytest
import torch
from torch import nn

from offramp.training.models.batch_norm import fits, norm_relu
from offramp.training.models.layers import ConvUnit


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("count", "channels", "offset"), [(1, 5, 0.0), (3, 32, 1.0), (200, 17, 30.0)])
def test_it_is_torchs_batch_norm(count: int, channels: int, offset: float, relu: bool) -> None:
    torch.manual_seed(channels)
    # Far from 0 a naive sum of squares in float32 would have no digit left.
    x = torch.randn(count, channels, 7, 3) + offset * torch.arange(channels)[:, None, None]
    x = x.contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(x)
    # In float64: at an offset of 30 torch's own float32 is further from it than ours, 24 times in a gradient.
    theirs, ours = nn.BatchNorm2d(channels).double(), nn.BatchNorm2d(channels)
    nn.init.uniform_(ours.weight, -1, 2)
    nn.init.uniform_(ours.bias, -1, 1)
    theirs.load_state_dict(ours.state_dict())
    a, b = x.double().requires_grad_(), x.clone().requires_grad_()

    y = torch.relu(theirs(a)) if relu else theirs(a)
    z = norm_relu(ours, b, relu=relu)
    # Where y is all but 0, rounding decides on which side of the ReLU it is.
    gradient[y.detach().abs() < 1e-2] = 0
    y.backward(gradient)
    z.backward(gradient)  # type: ignore[no-untyped-call]

    close = partial(torch.testing.assert_close, rtol=1e-4, atol=2e-3, check_dtype=False)
    close(z, y)
    close(b.grad, a.grad)
    for name in ("weight", "bias"):
        close(getattr(ours, name).grad, getattr(theirs, name).grad)
    for name in ("running_mean", "running_var"):
        close(getattr(ours, name), getattr(theirs, name))
    assert ours.num_batches_tracked == theirs.num_batches_tracked


def test_a_gradient_in_another_layout_is_read_as_it_is() -> None:
    x = torch.randn(2, 4, 5, 5)
    norm = nn.BatchNorm2d(4)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    norm_relu(norm, a, relu=True).mean(dim=(2, 3)).square().sum().backward()  # type: ignore[no-untyped-call]
    torch.relu(norm(b)).mean(dim=(2, 3)).square().sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("relu", [False, True])
def test_in_bfloat16_what_is_written_is_what_float32_would_be_rounded_to(relu: bool) -> None:
    torch.manual_seed(5)
    x = (torch.randn(8, 24, 9, 9) * 3 + 1).bfloat16().contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(x)
    half, whole = nn.BatchNorm2d(24), nn.BatchNorm2d(24)
    a, b = x.clone().requires_grad_(), x.float().requires_grad_()
    y, z = norm_relu(half, a, relu=relu), norm_relu(whole, b, relu=relu)
    y.backward(gradient)  # type: ignore[no-untyped-call]
    z.backward(gradient.float())  # type: ignore[no-untyped-call]

    assert y.dtype == torch.bfloat16
    assert torch.equal(y, z.bfloat16())
    assert a.grad is not None and b.grad is not None and a.grad.dtype == torch.bfloat16
    assert torch.equal(a.grad, b.grad.bfloat16())
    # Sums are of what was read, in float32 both times.
    for name in ("weight", "bias"):
        assert torch.equal(getattr(half, name).grad, getattr(whole, name).grad)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(half, name), getattr(whole, name), rtol=0, atol=0)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_stays_none(dtype: torch.dtype, relu: bool) -> None:
    x = torch.ones(1, 2, 2, 2, dtype=dtype)
    x[0, 1, 0, 0] = torch.nan
    y = norm_relu(nn.BatchNorm2d(2), x, relu=relu)
    assert torch.isfinite(y[0, 0]).all() and y[0, 1].isnan().all()


def test_it_is_used_in_training_only() -> None:
    unit = ConvUnit(3, 8, 3)
    x = torch.randn(2, 3, 8, 8)
    assert "NormRelu" in str(unit.train()(x).grad_fn)
    assert "NormRelu" not in str(unit.eval()(x).grad_fn)
    with torch.autocast("cpu", torch.bfloat16):
        assert "NormRelu" in str(unit.train()(x).grad_fn)
    assert fits(x.bfloat16()) and not fits(x.half())
