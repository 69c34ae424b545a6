"""What a head would need in C: by the planner of the export; nothing is said where C lacks an operator."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch
from torch import fx, nn

from offramp.cli.export_c.estimate import needs_at, needs_of
from offramp.cli.export_c.program import CODE_BYTES
from offramp.training.split.board import Needs
from offramp.training.split.capture import capture, closure
from offramp.training.split.cuts import find_cuts
from offramp.training.split.place import place_at
from tests.training.split import tiny


class Head(nn.Module):
    """A residual block with a depthwise layer and an activation of its own, and what is tested."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.act = nn.SiLU()
        self.point = nn.Conv2d(8, 8, 1)
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.first(x)))
        y = y + self.point(self.act(self.deep(y)))
        kept: torch.Tensor = self.last(y)
        return kept.mean((2, 3))


def needs(last: nn.Module) -> Needs | None:
    """Of all but the mean."""
    graph = capture(Head(last), (3, 12, 10), name="toy").graph.graph
    nodes: list[fx.Node] = list(graph.nodes)
    end = next(node for node in nodes if node.name == "mean").all_input_nodes[0]
    head = closure(end)
    return needs_of([node for node in nodes if node in head], end)


def test_a_place_has_its_code_and_exit() -> None:
    captured = capture(tiny.build(), (3, tiny.SIDE, tiny.SIDE), name="tiny")
    cuts = find_cuts(captured)
    place = place_at(cuts, cuts.find("1"), 12)
    found = needs_at(captured, place)
    assert found is not None
    least = place.head.weights + CODE_BYTES
    # With biases and scales, and tables of 256 values for each of 16 channels, one of them in float.
    assert least + 256 * 16 * 6 < found.flash_bytes < least + 256 * 16 * 6 + 8000
    # The symbols whole, which are fewer than the values that cross.
    assert place.code.channels * 64 < found.ram_bytes

    # A vector is not a map: C has no way to make it one.
    assert needs_at(captured, place_at(cuts, cuts.cuts[-1], 12)) is None


def test_a_heads_memory_and_flash() -> None:
    found = needs(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(8, 4, 3)))

    assert found is not None
    # Rings of the sum: 3 rows of 5 x 8 for the depthwise layer, its results, and the symbols whole.
    assert 3 * 40 + 4 * 6 * 5 < found.ram_bytes - 280 < 8 * 6 * 5 * 4
    weights = 3 * 9 * 8 + 9 * 8 + 256 + 64 + 9 * 8 * 4
    assert weights < found.flash_bytes - 11_500 < weights + 8 * 28 + 500
    assert found.fits(found.ram_bytes, found.flash_bytes) and not found.fits(found.ram_bytes - 1, None)
    assert not found.fits(None, found.flash_bytes - 1)


@pytest.mark.parametrize("last", [nn.MaxPool2d(2), nn.Conv2d(8, 4, 3, 1, 2, dilation=2)])
def test_what_c_has_not(last: nn.Module) -> None:
    assert needs(last) is None
