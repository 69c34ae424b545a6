import pytest
import torch

from offramp.common.errors import ConfigError
from offramp.training.models.backbone import Backbone
from offramp.training.models.cost import partition
from offramp.training.models.layers import Add, ConvUnit, Shortcut, SubBlock, folded
from offramp.training.models.mobilenet import mobilenet_v2, mobilenet_v2_large
from offramp.training.models.networks import BACKBONES
from offramp.training.models.resnet import resnet_32
from offramp.training.models.split_model import SplitModel


def warmed(backbone: Backbone, exit_number: int) -> SplitModel:
    """A model whose batch norms have seen something, so that they are no identity."""
    torch.manual_seed(exit_number)
    model = SplitModel(backbone, exit_number)
    with torch.no_grad():
        model.train()(torch.randn(4, *backbone.input_shape))
    return model.eval()


# Table II, but for exit 8 on the device: the paper prints 268.9 KB, where its server and branch columns leave
# 267.9.
TABLE_II = {
    2: (147.1, 140.6, 8597.3, 1.7, 86.3),
    5: (235.8, 210.9, 8578.9, 6.6, 81.5),
    8: (267.9, 210.9, 8546.8, 15.0, 73.1),
    12: (154.8, 61.3, 8510.3, 20.0, 68.0),
    15: (209.5, 61.3, 8455.5, 23.6, 64.4),
}


@pytest.mark.parametrize("exit_number", TABLE_II)
def test_table_ii(exit_number: int) -> None:
    sides = partition(SplitModel(mobilenet_v2(10), exit_number))
    kilobytes = (side.weights * 4 / 1024 for side in (sides.device, sides.branch, sides.server))
    megamacs = (side.macs / 1e6 for side in (sides.device, sides.server))
    # Halves are rounded up, as the paper does.
    found = tuple(int(value * 10 + 0.5) / 10 for value in (*kilobytes, *megamacs))
    assert found == TABLE_II[exit_number]
    assert sides.device.weights - sides.branch.weights + sides.server.weights == 2_202_560


@pytest.mark.parametrize(
    ("exit_number", "name", "shape"),
    [
        (1, "block1.C2", (32, 32, 32)),
        (2, "block1.C3", (16, 32, 32)),
        (4, "block2.C2", (96, 32, 32)),
        (5, "block2.C3", (24, 32, 32)),
        (9, "block3.add", (24, 32, 32)),
        (12, "block4.C3", (32, 16, 16)),
        (16, "block5.add", (32, 16, 16)),
    ],
)
def test_exit_numbers_are_the_papers(exit_number: int, name: str, shape: tuple[int, int, int]) -> None:
    model = SplitModel(mobilenet_v2(10), exit_number)
    assert model.backbone.positions()[exit_number].name == name
    assert model.split_shape == model.exit_shape == shape


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


@pytest.mark.parametrize(
    ("backbone", "exit_number", "name", "shape", "weights"),
    [
        ("resnet-32", 6, "block2.add", (16, 32, 32), 461_232),
        ("vgg-19", 5, "block2.pool", (128, 8, 8), 20_018_880),
    ],
)
def test_the_papers_other_networks(
    backbone: str, exit_number: int, name: str, shape: tuple[int, int, int], weights: int
) -> None:
    model = warmed(BACKBONES[backbone](10, 32), exit_number)
    assert model.backbone.positions()[exit_number].name == name
    assert model.split_shape == model.exit_shape == shape
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        activation, early = model.head(images)
        assert early.shape == (2, 10)
        assert float(activation.min()) == 0
        assert torch.equal(model.tail(activation), model.backbone(images))
    convolutions = (m for m in model.backbone.modules() if isinstance(m, torch.nn.Conv2d))
    assert sum(m.weight.numel() for m in convolutions) == weights


def test_a_strided_shortcut_has_no_parameters() -> None:
    shortcut = Shortcut(2, 5, 2)
    assert not list(shortcut.parameters())
    x = torch.arange(32.0).view(1, 2, 4, 4)
    y = shortcut(x)
    assert y.shape == (1, 5, 2, 2)
    assert y[0, 1].tolist() == [[16, 18], [24, 26]]
    assert not y[0, 2:].any()
    strided = [b for b in resnet_32(10).positions() if isinstance(b.unit, Add) and b.unit.shortcut]
    assert [block.name for block in strided] == ["block6.add", "block11.add"]


def test_a_cut_inside_a_strided_block_is_refused() -> None:
    with pytest.raises(ConfigError, match="split after the block"):
        SplitModel(resnet_32(10), 16)
    assert SplitModel(resnet_32(10), 18).split_shape == (32, 16, 16)


def test_other_sizes_of_images() -> None:
    assert SplitModel(mobilenet_v2(3, 64), 12).split_shape == (32, 32, 32)


def test_large_images_have_the_strides_of_its_authors() -> None:
    """Their Table 2; 300 million multiply-adds, of which the last layer's 1,000 classes are 1.28."""
    assert SplitModel(mobilenet_v2_large(10, 224), 5).split_shape == (24, 56, 56)
    assert SplitModel(mobilenet_v2_large(10, 160), 12).split_shape == (32, 20, 20)
    sides = partition(SplitModel(mobilenet_v2_large(1000, 224), 12))
    branch = 13 * 13 * 32 * 1000
    assert sides.device.macs + sides.server.macs - branch == pytest.approx(300e6, rel=0.01)


def test_a_folded_model_answers_as_before_and_leaves_it_alone() -> None:
    model = warmed(mobilenet_v2(10), 12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found, wanted = folded(model)(images), model(images)
    for one, other in ((found.early, wanted.early), (found.final, wanted.final)):
        assert torch.allclose(one, other, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


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


def test_an_activation_smaller_than_the_exits_pool_is_refused() -> None:
    small = Backbone(
        ConvUnit(3, 4, 3),
        [SubBlock("a", ConvUnit(4, 4, 3, stride=2))],
        [],
        channels=4,
        classes=2,
        input_shape=(3, 4, 4),
    )
    with pytest.raises(ConfigError, match="its pool needs 3x3"):
        SplitModel(small, 1)
