"""The linear transform at a cut: it inverts, keeps to its bytes, and spends them where the answer looks."""

import pytest
import torch
from torch import nn

from offramp.training.split.layout import Layout
from offramp.training.split.transform import Inverse, Transform, blocks_of, fit


def made(shape: tuple[int, ...], channels: int, halvings: int) -> tuple[Transform, Inverse]:
    layout = Layout.of(shape)
    mean = torch.linspace(-1, 1, layout.map_shape[0]).reshape(1, -1, 1, 1)
    return Transform(layout, channels, halvings, mean, mean.abs() + 0.5), Inverse(layout, channels, halvings)


class Tail(nn.Module):
    """Looks at the first channel alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = x[:, 0].mean((1, 2))
        return torch.stack([3 * own, -3 * own], dim=1)


@pytest.mark.parametrize(
    ("shape", "halvings"), [((3, 8, 8), 1), ((3, 7, 5), 1), ((2, 9, 6), 2), ((6, 4, 4), 0)]
)
def test_with_all_coefficients_and_small_steps_nothing_is_lost(shape: tuple[int, ...], halvings: int) -> None:
    torch.manual_seed(0)
    channels = shape[0] * 4**halvings
    transform, inverse = made(shape, channels, halvings)
    x = torch.randn(200, *shape)
    fit(transform, inverse, Tail(), x, target=1e5, seed=0)
    with torch.no_grad():
        code = transform(x)
        wanted = (x - transform.mean) / transform.std
        assert torch.allclose(inverse(code), wanted, atol=1e-3)
    high, wide = (blocks_of(side, halvings)[0] for side in shape[1:])
    assert code.shape == (200, channels, high, wide)


def test_what_is_lost_is_what_the_answer_does_not_look_at() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 6, 4, 4)
    transform, inverse = made((6, 4, 4), 3, 0)
    found = fit(transform, inverse, Tail(), x, target=6, seed=0)
    with torch.no_grad():
        wanted = (x - transform.mean) / transform.std
        lost = ((inverse(transform(x).round()) - wanted) ** 2).mean((0, 2, 3)) / wanted.var((0, 2, 3))
    assert lost[0] < 0.5 * lost[1:].min()
    assert found.bytes == pytest.approx(6, rel=0.2) and found.deviation.shape == (3,)


def test_more_bytes_make_smaller_steps_and_the_same_photos_the_same_transform() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 4, 6, 6)
    weights = []
    for target in (4.0, 16.0, 4.0):
        transform, inverse = made((4, 6, 6), 8, 1)
        found = fit(transform, inverse, Tail(), x, target=target, seed=0)
        assert found.bytes == pytest.approx(target, rel=0.2)
        weights.append(transform.linear.weight.detach())
    assert torch.equal(weights[0], weights[2]) and weights[1].norm() > 1.5 * weights[0].norm()


def test_a_tail_that_looks_at_nothing_is_no_reason_to_fail() -> None:
    transform, inverse = made((4, 4, 4), 4, 0)
    last = nn.Linear(64, 3)
    nn.init.zeros_(last.weight)
    blind = nn.Sequential(nn.Flatten(), last)
    found = fit(transform, inverse, blind, torch.randn(50, 4, 4, 4), target=8, seed=0)
    assert found.bytes > 0 and bool(torch.isfinite(transform.linear.weight).all())
