import torch

from offramp.training.models.backbone import Backbone
from offramp.training.models.layers import Add, Shortcut, folded
from offramp.training.models.mobilenet import mobilenet_v2
from offramp.training.models.resnet import resnet_32
from offramp.training.models.split_model import SplitModel


def warmed(backbone: Backbone, exit_number: int) -> SplitModel:
    """A model whose batch norms have seen something, so that they are no identity."""
    torch.manual_seed(exit_number)
    model = SplitModel(backbone, exit_number)
    with torch.no_grad():
        model.train()(torch.randn(4, *backbone.input_shape))
    return model.eval()


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
