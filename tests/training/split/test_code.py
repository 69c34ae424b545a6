"""A code at a cut: its sizes, its cost, and that what was rounded still learns."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from offramp.training.split.code import Code, CodeShape, choose_shape, encoder_macs, rounded
from offramp.training.split.layout import Layout


def make(shape: tuple[int, ...], code: CodeShape, classes: int = 5) -> Code:
    layout = Layout.of(shape)
    channels = layout.map_shape[0]
    return Code(layout, code, classes, torch.linspace(-1, 1, channels), torch.linspace(0.5, 2, channels))


@pytest.mark.parametrize(
    ("shape", "halvings"), [((24, 8, 8), 0), ((24, 10, 10), 1), ((12, 30, 23), 2), ((26, 16), 0), ((40,), 0)]
)
def test_a_code_has_the_shapes_that_it_says(shape: tuple[int, ...], halvings: int) -> None:
    size = choose_shape(Layout.of(shape), target=20, most_macs=1e6)
    assert size.halvings == halvings
    code = make(shape, size).eval()
    x = torch.randn(2, *shape)
    features = code.features(x)
    symbols = code.encode(x, features)
    assert symbols.shape[1:] == code.symbols_shape and max(code.symbols_shape[1:]) <= 8
    assert code.exit(features).shape == (2, 5)
    assert code.decoder(rounded(symbols)).shape == x.shape


def test_the_encoder_costs_what_is_counted() -> None:
    size = CodeShape(channels=12, halvings=2, width=32)
    code = make((24, 30, 30), size).eval()
    x = torch.randn(1, 24, 30, 30)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = code.features(x)
        code.encode(x, features)
        code.exit.unit(features)
    assert encoder_macs(code.layout, size) == counter.get_total_flops() // 2


def test_more_bytes_make_more_channels_and_a_budget_makes_it_narrow() -> None:
    layout = Layout.of((80, 10, 10))
    assert choose_shape(layout, target=60, most_macs=1e9) == CodeShape(28, 1, 160)
    assert choose_shape(layout, target=300, most_macs=1e9).channels == 128
    narrow = choose_shape(layout, target=60, most_macs=3e6)
    assert narrow.width < 160 and encoder_macs(layout, narrow) <= 3e6


def test_symbols_are_bytes_and_the_gradient_passes() -> None:
    x = torch.tensor([-300.0, -0.6, 0.4, 2.5, 300.0], requires_grad=True)
    found = rounded(x)
    assert found.tolist() == [-128.0, -1.0, 0.0, 2.0, 127.0]
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and x.grad.tolist() == [1.0] * 5


def test_values_that_spread_cost_more_bits() -> None:
    code = make((24, 8, 8), CodeShape(8, 0, 16))
    x = torch.randn(4, *code.symbols_shape)
    with torch.no_grad():
        rate, density = code.bits(x)
        wide, _ = code.bits(x * 20)
    assert 0 < float(rate) < float(wide) and float(rate) == pytest.approx(float(density))


def test_what_a_coder_needs_is_counted_without_the_noise() -> None:
    code = make((24, 8, 8), CodeShape(8, 0, 16))
    code.density.begin(torch.full((8,), 0.2))
    x = (torch.rand(16, *code.symbols_shape) < 0.03).float()
    share = 0.03
    entropy = -(share * np.log2(share) + (1 - share) * np.log2(1 - share)) * x[0].numel()
    with torch.no_grad():
        noisy, _ = code.bits(x)
    assert code.coded_bits(x) < 1.6 * entropy < float(noisy)
