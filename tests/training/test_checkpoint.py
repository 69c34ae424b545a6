from pathlib import Path

import pytest
import torch

from offramp.common.errors import ConfigError
from offramp.training.data.datasets import Dataset
from offramp.training.loop import train
from offramp.training.recipe import Recipe
from tests.training.coded import with_code


def narrowed(text: str, rate: float, density: str = "channel") -> Recipe:
    return with_code(text, f'density = "{density}"\n', rate=rate)


def test_a_checkpoint_of_another_releases_bottleneck(
    recipe_text: str, small: Dataset, tmp_path: Path
) -> None:
    recipe = narrowed(recipe_text, 1.0)
    train(recipe, small, tmp_path)
    (path,) = tmp_path.glob("regularised-*.pt")
    state = torch.load(path, weights_only=True)
    name = next(name for name in state["best"] if "decoder" in name and name.endswith("conv.weight"))
    state["best"][name] = state["best"][name][:1]
    torch.save(state, path)
    with pytest.raises(ConfigError, match=f"checkpoint {path} is of another release: remove it"):
        train(recipe, small, tmp_path, resume=True)


@pytest.mark.parametrize("damage", ["truncated", "other", "no checkpoint", "hostile"])
def test_a_checkpoint_that_does_not_fit(recipe: Recipe, few: Dataset, tmp_path: Path, damage: str) -> None:
    train(recipe, few, tmp_path)
    base = next(tmp_path.glob("base-*.pt"))
    if damage == "truncated":
        base.write_bytes(base.read_bytes()[:1000])
    elif damage == "other":
        next(tmp_path.glob("exit-*.pt")).replace(base)
    elif damage == "no checkpoint":
        torch.save([1, 2, 3], base)
    else:
        torch.save({"identity": base.stem, "code": Path("/")}, base)
    with pytest.raises(ConfigError, match=r"checkpoint .* remove it"):
        train(recipe, few, tmp_path, resume=True)
