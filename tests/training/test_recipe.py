from pathlib import Path

import pytest

from offramp.common.errors import ConfigError
from offramp.training.recipe import Recipe, Stage, read

RUNS = Path(__file__).resolve().parents[2] / "runs"


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.toml")), ids=lambda path: path.name)
def test_the_recipes_in_runs_are_valid(path: Path) -> None:
    recipe, text = read(path)
    assert text == path.read_text()
    assert recipe.name


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("shift = 1", "shif = 1", r"data\.shif: Extra inputs are not permitted"),
        ("seed = 3", "", "seed: Field required"),
        ("exit = 3", 'exit = "3"', r"model\.exit: Input should be a valid integer"),
        ("batch_size = 32", "batch_size = 1", r"train\.batch_size: .* greater than or equal to 2"),
        ("entropy = 1.0", "entropy = -1.0", r"train\.regularised\.entropy: .* greater than or equal to 0"),
        ('backbone = "tiny"', 'backbone = "huge"', r"model\.backbone: .*unknown 'huge', use one of"),
        ('source = "sklearn-digits"', 'source = "x"', r"data\.source: .*unknown 'x', use one of"),
        ("seed = 3", "seed = ", "is not TOML"),
        ('name = "tiny-digits"', 'name = "../up"', "name: String should match pattern"),
    ],
)
def test_one_clear_error(recipe_text: str, old: str, new: str, message: str) -> None:
    assert old in recipe_text
    with pytest.raises(ConfigError, match=message) as error:
        Recipe.parse(recipe_text.replace(old, new), origin="my.toml")
    assert str(error.value).startswith("my.toml")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read recipe"):
        read(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read recipe"):
        read(tmp_path / "binary.toml")


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("# nothing", "", set()),
        ("[quantize]", "[quantize]\ncalibration = 0.5", set()),
        ("entropy = 1.0", "entropy = 2.0", {"regularised"}),
        ("exit = 3", "exit = 5", {"exit", "regularised"}),
        ("shift = 1", "shift = 2", {"base", "exit", "regularised"}),
    ],
)
def test_stages_depend_on_what_decides_them(
    recipe_text: str, old: str, new: str, changed: set[Stage]
) -> None:
    before = recipe_text + "\n# nothing\n[quantize]\n"
    stages: tuple[Stage, ...] = ("base", "exit", "regularised")
    first, second = (Recipe.parse(text) for text in (before, before.replace(old, new)))
    assert {stage for stage in stages if first.stage_sha256(stage) != second.stage_sha256(stage)} == changed
