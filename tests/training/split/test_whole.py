"""The unsplit classifier as a bundle: only the rounding is lost."""

import pytest
import torch

from offramp.common.errors import ConfigError
from offramp.training.split.code import Code, CodeShape
from offramp.training.split.layout import Layout
from offramp.training.split.whole import STEPS, WholeCode


def fitted(layout: Layout) -> Code:
    torch.manual_seed(3)
    channels = layout.map_shape[0]
    mean, std = torch.linspace(-1, 1, channels), torch.linspace(0.5, 2, channels)
    return Code(layout, CodeShape(4, 1, 16), 5, mean, std).eval()


@pytest.mark.parametrize("shape", [(6, 8, 8), (8, 8, 6), (16, 6), (6,)])
def test_an_activation_crosses_with_at_most_half_a_step_lost(shape: tuple[int, ...]) -> None:
    layout = Layout.of(shape)
    code = fitted(layout)
    whole = WholeCode(code)
    map_ = torch.randn(3, *layout.map_shape) * code.features.std + code.features.mean
    x = layout.from_map(map_)
    with torch.inference_mode():
        symbols = whole.encode(x, whole.features(x)).clamp(-128, 127).round()
        lost = (layout.to_map(whole.decoder(symbols)) - map_) / code.features.std
    assert 0 < float(lost.abs().max()) <= 0.5 / STEPS + 1e-5
    assert whole.symbols_shape == layout.map_shape


def test_the_early_exit_is_the_fitted_one() -> None:
    code = fitted(Layout.of((6, 8, 8)))
    whole, x = WholeCode(code), torch.randn(2, 6, 8, 8)
    with torch.inference_mode():
        assert torch.equal(whole.exit(whole.features(x)), code.exit(code.features(x)))


def test_a_class_token_has_no_place() -> None:
    with pytest.raises(ConfigError, match="a class token crosses"):
        WholeCode(fitted(Layout.of((17, 6))))
