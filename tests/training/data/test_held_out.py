"""A bundle's data, found again from any folder; tests/cli/test_split.py has those of `offramp split`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError, DataError
from offramp.training.data import sources
from offramp.training.data.held_out import load_data, write_beside
from offramp.training.recipe import Recipe

DATA = """[data]
source = "imagefolder"
train = "photos/train"
test = "photos/test"
size = 8
validation = 0.2
"""


@pytest.fixture
def made(tmp_path: Path, recipe_text: str) -> tuple[Bundle, str]:
    """A bundle of a recipe that lies beside its photos, and the recipe."""
    for part, count in (("train", 10), ("test", 2)):
        for level, name in enumerate(("cat", "dog")):
            for number in range(count):
                path = tmp_path / "photos" / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (100 * level, number, 0)).save(path)
    i, j = recipe_text.index("[data]"), recipe_text.index("[model]")
    text = recipe_text[:i] + DATA + recipe_text[j:]
    recipe = Recipe.parse(text).beside(tmp_path)
    digest = sources.load(recipe.data, seed=recipe.seed).sha256
    (tmp_path / "bundle").mkdir()
    write_beside(tmp_path / "bundle", text, recipe)
    provenance = SimpleNamespace(recipe=text, dataset=SimpleNamespace(sha256=digest))
    found: Any = SimpleNamespace(path=tmp_path / "bundle", manifest=SimpleNamespace(provenance=provenance))
    return cast(Bundle, found), text


def test_the_recipe_beside_a_bundle_says_where_its_photos_are(
    made: tuple[Bundle, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, text = made
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    data = load_data(bundle)
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 4, 4)
    beside = (bundle.path / "recipe.toml").read_text()
    assert 'train = "../photos/train"' in beside and Recipe.parse(beside).seed == Recipe.parse(text).seed
    # Without it, the photos are looked for here.
    (bundle.path / "recipe.toml").unlink()
    with pytest.raises(
        ConfigError, match=r"the recipe in .*bundle says; expected --train-data and --test-data"
    ):
        load_data(bundle)
    photos = tmp_path / "photos"
    assert len(load_data(bundle, [str(photos / "train")], [str(photos / "test")]).train) == 16
    with pytest.raises(ConfigError, match=r"was made by `offramp train`; expected"):
        load_data(bundle, photos=photos)
    with pytest.raises(ConfigError, match="expected both or neither"):
        load_data(bundle, ["a"])


def test_other_photos_are_refused(made: tuple[Bundle, str], tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "test" / "cat" / "1.png")
    with pytest.raises(DataError, match=r"these data have SHA-256 .* the bundle was made of"):
        load_data(made[0])


def test_a_recipe_of_digits_needs_no_paths(recipe_text: str, tmp_path: Path) -> None:
    write_beside(tmp_path, recipe_text, Recipe.parse(recipe_text))
    assert list(tmp_path.iterdir()) == []
