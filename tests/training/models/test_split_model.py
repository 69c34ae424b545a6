import pytest
import torch

from offramp.common.errors import ConfigError
from offramp.training.hardware import Hardware
from offramp.training.models.backbone import Backbone
from offramp.training.models.bottleneck import (
    Bottleneck,
    BottleneckShape,
)
from offramp.training.models.cost import partition
from offramp.training.models.layers import ConvUnit, SubBlock
from offramp.training.models.mobilenet import mobilenet_v2
from offramp.training.models.networks import BACKBONES
from offramp.training.models.resnet import resnet_32
from offramp.training.models.split_model import SplitModel
from offramp.training.recipe import Recipe


def warmed(backbone: Backbone, exit_number: int) -> SplitModel:
    """A model whose batch norms have seen something, so that they are no identity."""
    torch.manual_seed(exit_number)
    model = SplitModel(backbone, exit_number)
    with torch.no_grad():
        model.train()(torch.randn(4, *backbone.input_shape))
    return model.eval()


@pytest.mark.parametrize(
    ("channels", "stride", "growth", "shape"),
    [
        (8, 2, 1, (8, 8, 8)),
        (16, 4, 1, (16, 4, 4)),
        (16, 4, 2, (16, 4, 4)),
        (2, 1, 2, (2, 16, 16)),
        (4, 8, 2, (4, 2, 2)),
    ],
)
def test_the_code_travels_in_place_of_the_activation(
    channels: int, stride: int, growth: int, shape: tuple[int, ...]
) -> None:
    model = SplitModel(mobilenet_v2(10), 12)
    before = partition(model)
    narrow = Bottleneck(model.exit_shape, BottleneckShape(channels, stride, 32, growth))
    halvings = stride.bit_length() - 1
    assert narrow.hidden_shape == (32 * growth ** max(0, halvings - 1), *shape[1:])
    model.insert(narrow)
    assert model.split_shape == shape
    out = model.eval()(torch.randn(2, 3, 32, 32))
    assert out.activation.shape == (2, *shape)
    assert out.final.shape == out.early.shape == (2, 10)
    after = partition(model)
    assert after.branch == before.branch
    assert model.bottleneck is not None
    encoder, decoder = (
        sum(m.weight.numel() for block in part for m in block.modules() if isinstance(m, torch.nn.Conv2d))
        for part in model.bottleneck.blocks()
    )
    assert after.device.weights - before.device.weights == encoder
    assert after.server.weights - before.server.weights == decoder


def test_an_early_exit_behind_the_encoder_sees_its_last_layer_but_one() -> None:
    model = SplitModel(mobilenet_v2(10), 12)
    before = partition(model)
    model.insert(Bottleneck(model.exit_shape, BottleneckShape(16, 4, 32)), exit_behind=True)
    # 32 channels of 4x4, of which the pool leaves 2x2: each of the 16 places counts.
    assert model.branch.linear.weight.shape == (10, 32 * 2 * 2)
    assert model.blocks()[model.seen].name == "encoder2"
    with torch.no_grad():
        code, early = model.eval().encode(model.activation(torch.randn(2, 3, 32, 32)))
    assert code.shape == (2, 16, 4, 4) and early.shape == (2, 10)
    assert partition(model).branch.weights == 1280 < before.branch.weights


def test_what_travels_is_computed_in_float32(recipe: Recipe) -> None:
    torch.manual_seed(0)
    model = SplitModel(BACKBONES["tiny"](10, 32), 7).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), Hardware(precision="bfloat16").autocast():
        out = model(images)
    assert out.activation.dtype == torch.float32
    assert len(out.activation.unique()) > len(out.activation.bfloat16().unique())
    assert out.final.dtype == torch.bfloat16


@pytest.mark.parametrize("exit_number", [2, 5, 8, 9, 12, 14, 15, 16])
def test_head_then_tail_is_the_unsplit_mobilenet(exit_number: int) -> None:
    model = warmed(mobilenet_v2(10), exit_number)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        activation, early = model.head(images)
        assert activation.shape == (2, *model.split_shape)
        assert early.shape == (2, 10)
        assert torch.equal(model.tail(activation), model.backbone(images))


@pytest.mark.parametrize("exit_number", range(1, 8))
def test_head_then_tail_is_the_unsplit_model_at_every_position(exit_number: int) -> None:
    model = warmed(BACKBONES["tiny"](10, 32), exit_number)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.tail(model.head(images)[0]), model.backbone(images))


def test_a_cut_inside_a_strided_block_is_refused() -> None:
    with pytest.raises(ConfigError, match="split after the block"):
        SplitModel(resnet_32(10), 16)
    assert SplitModel(resnet_32(10), 18).split_shape == (32, 16, 16)


def test_inside_a_residual_block_the_blocks_input_travels_too() -> None:
    inside, after = (SplitModel(mobilenet_v2(10), number) for number in (8, 9))
    assert inside.exit_shape == after.exit_shape == (24, 32, 32)
    assert inside.split_shape == (48, 32, 32)
    assert after.split_shape == (24, 32, 32)


@pytest.mark.parametrize("exit_number", [0, -1, 1000])
def test_an_exit_that_does_not_exist(exit_number: int) -> None:
    with pytest.raises(ConfigError, match="this model has exits 1 to 7"):
        SplitModel(BACKBONES["tiny"](10, 32), exit_number)


def test_a_cut_whose_two_tensors_do_not_stack_is_refused() -> None:
    uneven = Backbone(
        ConvUnit(3, 4, 3),
        [SubBlock("a", ConvUnit(4, 4, 3, stride=2), opens=True)],
        [],
        channels=4,
        classes=2,
        input_shape=(3, 16, 16),
    )
    with pytest.raises(ConfigError, match="split after the block"):
        SplitModel(uneven, 1)
