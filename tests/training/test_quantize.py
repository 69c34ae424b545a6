import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp.common.errors import DataError
from offramp.training.data import to_float
from offramp.training.models import BACKBONES, ConvUnit, SplitModel
from offramp.training.quantize import IMAGE, Affine, QuantLayer, quantize


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
