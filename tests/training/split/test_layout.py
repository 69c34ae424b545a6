"""What crosses at a cut as a map and back."""

import pytest
import torch

from offramp.common.errors import ConfigError
from offramp.training.split.layout import Layout


@pytest.mark.parametrize(
    ("shape", "kind", "extra", "as_map"),
    [
        ((80, 10, 12), "map", 0, (80, 10, 12)),
        ((7, 7, 96), "last", 0, (96, 7, 7)),
        ((16, 24), "tokens", 0, (24, 4, 4)),
        ((17, 24), "tokens", 1, (24, 4, 4)),
        ((320,), "vector", 0, (320, 1, 1)),
    ],
)
def test_every_kind_becomes_a_map_and_comes_back(
    shape: tuple[int, ...], kind: str, extra: int, as_map: tuple[int, int, int]
) -> None:
    layout = Layout.of(shape)
    assert (layout.kind, layout.extra, layout.map_shape) == (kind, extra, as_map)
    x = torch.randn(3, *shape)
    found = layout.to_map(x)
    assert found.shape == (3, *as_map)
    token = layout.extra_of(x) if extra else None
    assert torch.equal(layout.from_map(found, token), x)


@pytest.mark.parametrize(
    ("shape", "why"), [((19, 24), "a square number of tokens"), ((2, 3, 4, 5), "shape 2×3×4×5")]
)
def test_what_is_not_a_map_is_refused(shape: tuple[int, ...], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Layout.of(shape, "blocks.3")
