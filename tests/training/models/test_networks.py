import pytest
import torch

from offramp.training.models.backbone import Backbone
from offramp.training.models.networks import BACKBONES
from offramp.training.models.split_model import SplitModel


def warmed(backbone: Backbone, exit_number: int) -> SplitModel:
    """A model whose batch norms have seen something, so that they are no identity."""
    torch.manual_seed(exit_number)
    model = SplitModel(backbone, exit_number)
    with torch.no_grad():
        model.train()(torch.randn(4, *backbone.input_shape))
    return model.eval()


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
