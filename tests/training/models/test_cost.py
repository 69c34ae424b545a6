import pytest

from offramp.training.models.cost import partition
from offramp.training.models.mobilenet import mobilenet_v2
from offramp.training.models.split_model import SplitModel

# Table II, but for exit 8 on the device: the paper prints 268.9 KB, where its server and branch columns leave
# 267.9.
TABLE_II = {
    2: (147.1, 140.6, 8597.3, 1.7, 86.3),
    5: (235.8, 210.9, 8578.9, 6.6, 81.5),
    8: (267.9, 210.9, 8546.8, 15.0, 73.1),
    12: (154.8, 61.3, 8510.3, 20.0, 68.0),
    15: (209.5, 61.3, 8455.5, 23.6, 64.4),
}


def test_what_it_costs_is_counted_as_the_early_exits() -> None:
    model = SplitModel(mobilenet_v2(10), 12)
    before = partition(model)
    model.widen_exit([48, 64])
    after = partition(model)
    # From 32x16x16: 3x3 convolutions to 48x8x8 and 64x4x4, and ten classes.
    assert after.branch.macs == 32 * 48 * 9 * 64 + 48 * 64 * 9 * 16 + 640
    assert after.device.macs - after.branch.macs == before.device.macs - before.branch.macs
    assert after.server == before.server


@pytest.mark.parametrize("exit_number", TABLE_II)
def test_table_ii(exit_number: int) -> None:
    sides = partition(SplitModel(mobilenet_v2(10), exit_number))
    kilobytes = (side.weights * 4 / 1024 for side in (sides.device, sides.branch, sides.server))
    megamacs = (side.macs / 1e6 for side in (sides.device, sides.server))
    # Halves are rounded up, as the paper does.
    found = tuple(int(value * 10 + 0.5) / 10 for value in (*kilobytes, *megamacs))
    assert found == TABLE_II[exit_number]
    assert sides.device.weights - sides.branch.weights + sides.server.weights == 2_202_560
