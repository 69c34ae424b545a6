from pathlib import Path

import pytest

from offramp.common.errors import ConfigError
from offramp.training.recipe import Recipe
from offramp.training.recipe_file import read

RUNS = Path(__file__).resolve().parents[2] / "runs"


VARIANTS = """
variants = [
  { name = "a", model.exit = 1 },
  { name = "b1.5", model.exit = 2, train.regularised.entropy = 1.5 },
]
"""


def with_variants(recipe_text: str, variants: str = VARIANTS) -> str:
    return recipe_text.replace("seed = 3", f"seed = 3{variants}")


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.toml")), ids=lambda path: path.name)
def test_the_recipes_in_runs_are_valid(path: Path) -> None:
    recipes = read(path)
    assert len({recipe.name for recipe, _ in recipes}) == len(recipes)
    for recipe, text in recipes:
        assert Recipe.parse(text) == recipe


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read recipe"):
        read(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read recipe"):
        read(tmp_path / "binary.toml")


def test_variants_are_the_recipe_with_fields_replaced(recipe_text: str, tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(with_variants(recipe_text))
    (first, _), (second, text) = read(path)
    assert (first.name, first.model.exit, first.train.regularised.entropy) == ("tiny-digits-a", 1, 1.0)
    assert (second.name, second.model.exit, second.train.regularised.entropy) == ("tiny-digits-b1.5", 2, 1.5)
    assert second.train.base == first.train.base
    # A text of its own, which makes the same again.
    assert Recipe.parse(text) == second
    assert [recipe.name for recipe, _ in read(path, only=["b1.5"])] == ["tiny-digits-b1.5"]
    assert first.stage_sha256("base") == second.stage_sha256("base")


def test_settings_replace_what_a_variant_leaves(recipe_text: str, tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(with_variants(recipe_text))
    settings = ["train.base.epochs=7", "train.regularised.entropy=9.0"]
    (first, _), (second, text) = read(path, settings=settings)
    assert (first.train.base.epochs, first.train.regularised.entropy) == (7, 9.0)
    assert (second.train.base.epochs, second.train.regularised.entropy) == (7, 1.5)
    assert "epochs = 7" in text
    path.write_text(recipe_text)
    ((alone, text),) = read(path, settings=settings)
    assert Recipe.parse(text) == alone
    assert alone.train.base.epochs == 7


@pytest.mark.parametrize(
    ("variants", "arguments", "message"),
    [
        ("\nvariants = 1", {}, "variants: expected tables, each with a name"),
        ("\nvariants = [{ model.exit = 1 }]", {}, "variants: expected tables, each with a name"),
        ('\nvariants = [{ name = "a" }, { name = "a" }]', {}, "variants: 'a' is there twice"),
        ('\nvariants = [{ name = "a", x = 1 }]', {}, "variant a: x: no such field; expected one of"),
        (VARIANTS, {"only": ["c"]}, "variant: unknown 'c', use one of a, b1.5"),
        (VARIANTS, {"settings": ["x"]}, "--set x is not TOML"),
        ("", {"only": ["c"]}, "has no variants"),
    ],
)
def test_bad_variants_are_one_clear_error(
    recipe_text: str, tmp_path: Path, variants: str, arguments: dict[str, list[str]], message: str
) -> None:
    path = tmp_path / "my.toml"
    path.write_text(with_variants(recipe_text, variants))
    with pytest.raises(ConfigError, match=message) as error:
        read(path, **arguments)
    assert "\n" not in str(error.value)
