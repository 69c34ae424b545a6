import pytest
import torch

from offramp.common.errors import ConfigError
from offramp.training.models.backbone import Backbone
from offramp.training.models.exit_branch import ExitBranch
from offramp.training.models.layers import ConvUnit, SubBlock
from offramp.training.models.split_model import SplitModel


@pytest.mark.parametrize(("side", "widths", "left"), [(8, [96, 192], 2), (5, [8], 3), (3, [8, 8, 8], 1)])
def test_it_pools_all_that_its_convolutions_leave(side: int, widths: list[int], left: int) -> None:
    branch = ExitBranch.widened((64, side, side), 10, widths)
    assert branch.kernel == left and branch.linear.in_features == widths[-1]
    assert branch(torch.randn(2, 64, side, side)).shape == (2, 10)


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
