import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp.common.errors import DataError
from offramp.training.data.datasets import to_float
from offramp.training.models.layers import ConvUnit
from offramp.training.models.networks import BACKBONES
from offramp.training.models.split_model import SplitModel
from offramp.training.quantize.quantize import _Observed, quantize
from offramp.training.quantize.quantized import IMAGE, Affine, QuantLayer


@given(low=st.floats(-1e3, 1e3), width=st.floats(0, 1e3))
def test_a_code_holds_its_range_and_zero_exactly(low: float, width: float) -> None:
    high = low + width
    code = Affine.covering(low, high)
    assert 0 <= code.zero_point <= 255
    assert float(np.float32(code.scale)) == code.scale
    assert code.dequantize(np.array([code.zero_point], np.uint8))[0] == 0
    x = np.linspace(low, high, 50, dtype=np.float32)
    # Half a step of rounding, and up to half of one more at the ends, for zero's sake.
    np.testing.assert_allclose(code.dequantize(code.quantize(x)), x, rtol=1e-5, atol=code.scale * 1.01)


def test_pixels_are_their_own_codes() -> None:
    pixels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(IMAGE.dequantize(pixels), to_float(torch.from_numpy(pixels)).numpy())


def test_no_images_no_calibration() -> None:
    with pytest.raises(DataError, match="at least one calibration image"):
        quantize(SplitModel(BACKBONES["tiny"](10, 32), 1), torch.empty(0, 3, 32, 32))


def test_a_sample_of_a_tensor_does_not_hold_all_of_it() -> None:
    seen = _Observed()
    seen.add(torch.arange(-20_000.0, 20_000.0))
    (sample,) = seen.samples
    assert sample.flags.owndata
    assert (seen.low, seen.high) == (-20_000, 19_999)


def test_a_dead_channel_keeps_its_bias() -> None:
    torch.manual_seed(0)
    model = SplitModel(BACKBONES["tiny"](10, 32), 7)
    unit = model.backbone.positions()[7].unit
    assert isinstance(unit, ConvUnit)
    with torch.no_grad():
        unit.conv.weight[4] = 0
        unit.norm.bias[4] = 1.5
    quantized = quantize(model, torch.randn(8, 3, 32, 32))
    layer = quantized.blocks[7].layer
    assert isinstance(layer, QuantLayer)
    assert not layer.weight[4].any()
    assert layer.bias[4] * layer.weight_scale[4] * layer.input.scale == pytest.approx(1.5, rel=1e-4)


def moved(model: SplitModel, images: torch.Tensor, code: Affine) -> float:
    """Mean divergence of the answers, in float but for the transmitted activation, of the worse exit."""
    with torch.no_grad():
        travels = model.head(images)[0]
        coarse = torch.from_numpy(code.dequantize(code.quantize(travels.numpy())))
        channels = model.exit_shape[0]
        pairs = [
            (call(coarse).log_softmax(1), call(travels).log_softmax(1))
            for call in (lambda x: model.branch(x[:, :channels]), model.tail)
        ]
    return max(float((b.exp() * (b - a)).sum(1).mean()) for a, b in pairs)


def trained_a_little(exit_number: int) -> tuple[SplitModel, torch.Tensor]:
    """A model whose batch norms have seen images, in eval mode, and images."""
    torch.manual_seed(0)
    model = SplitModel(BACKBONES["tiny"](10, 32), exit_number)
    images = torch.randn(64, 3, 32, 32)
    with torch.no_grad():
        for _ in range(20):
            model(images)
    return model.eval(), images


# At the end, and inside a residual block, where two tensors travel in one code.
@pytest.mark.parametrize("exit_number", [7, 3])
def test_what_travels_has_the_coarsest_step_that_the_answers_bear(exit_number: int) -> None:
    model, images = trained_a_little(exit_number)
    plain, stepped = quantize(model, images), quantize(model, images, divergence=0.001)
    assert plain.step == 1.0 and stepped.step > 1.0
    assert stepped.symbols.zero_point == plain.symbols.zero_point
    assert stepped.symbols.scale == pytest.approx(plain.symbols.scale * stepped.step, rel=1e-6)
    assert moved(model, images, stepped.symbols) <= 0.001
    coarser = Affine(stepped.symbols.scale * 2**0.5, stepped.symbols.zero_point)
    assert moved(model, images, coarser) > 0.001
    same = [index for index, block in enumerate(plain.blocks) if block.output == plain.symbols]
    assert len(same) == 1 + (model.split_shape != model.exit_shape)
    for index, (before, after) in enumerate(zip(plain.blocks, stepped.blocks, strict=True)):
        assert after.output == (stepped.symbols if index in same else before.output)


def test_values_far_out_do_not_decide_the_step() -> None:
    model, images = trained_a_little(7)
    unit = model.backbone.positions()[7].unit
    assert isinstance(unit, ConvUnit)
    with torch.no_grad():
        # One channel far from the others, which neither exit looks at.
        unit.norm.bias[0] = 50.0 * float(model.head(images)[0].std())
        following = model.backbone.top[0]
        assert isinstance(following, ConvUnit)
        following.conv.weight[:, 0] = 0
        early = model.branch.linear
        early.weight[:, : early.in_features // model.exit_shape[0]] = 0
    plain, stepped = quantize(model, images), quantize(model, images, divergence=1e-7)
    assert stepped.step < 1.0
    assert moved(model, images, stepped.symbols) < moved(model, images, plain.symbols)
