import pytest

from offramp.training.models.cost import partition
from offramp.training.models.mobilenet import mobilenet_v2, mobilenet_v2_large
from offramp.training.models.split_model import SplitModel


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


def test_other_sizes_of_images() -> None:
    assert SplitModel(mobilenet_v2(3, 64), 12).split_shape == (32, 32, 32)


def test_large_images_have_the_strides_of_its_authors() -> None:
    """Their Table 2; 300 million multiply-adds, of which the last layer's 1,000 classes are 1.28."""
    assert SplitModel(mobilenet_v2_large(10, 224), 5).split_shape == (24, 56, 56)
    assert SplitModel(mobilenet_v2_large(10, 160), 12).split_shape == (32, 20, 20)
    sides = partition(SplitModel(mobilenet_v2_large(1000, 224), 12))
    branch = 13 * 13 * 32 * 1000
    assert sides.device.macs + sides.server.macs - branch == pytest.approx(300e6, rel=0.01)
