import pytest

from offramp.common.errors import ConfigError
from offramp.training.data.recipe import ParquetRecipe
from offramp.training.recipe import Recipe


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("shift = 1", "shif = 1", r"data\.shif: no such field; expected shift"),
        ("seed = 3", "", "seed: is missing; expected an integer"),
        ("validation = 0.2", "", r"data\.validation: is missing; expected a number"),
        ('source = "sklearn-digits"', "", r"data\.source: is missing; expected one of hub, imagefolder"),
        ("exit = 3", 'exit = "3"', r'model\.exit = "3": Input should be a valid integer'),
        ("batch_size = 32", "batch_size = 1", r"train\.batch_size = 1: .* greater than or equal to 2"),
        (
            "entropy = 1.0",
            "entropy = -1.0",
            r"train\.regularised\.entropy = -1.0: .* greater than or equal to 0",
        ),
        ('backbone = "tiny"', 'backbone = "huge"', r"model\.backbone = .*unknown 'huge', use one of"),
        ('source = "sklearn-digits"', 'source = "x"', r"data: .* 'x' .* 'sklearn-digits'"),
        ("[train.exit]", "sides = [8, 8]\n[train.exit]", "train.base: .*sides: expected fewer than epochs"),
        (
            "exit = 3",
            "exits = [3, 4]",
            r"model: exits: .* one early exit; expected exit = 12, or .* `offramp split tiny --cuts ",
        ),
        ("seed = 3", "seed = ", "is not TOML"),
        ('name = "tiny-digits"', 'name = "../up"', "name = .*: String should match pattern"),
    ],
)
def test_one_clear_error(recipe_text: str, old: str, new: str, message: str) -> None:
    assert old in recipe_text
    with pytest.raises(ConfigError, match=message) as error:
        Recipe.parse(recipe_text.replace(old, new), origin="my.toml")
    assert str(error.value).startswith("my.toml")
    assert "\n" not in str(error.value)


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
def test_stages_depend_on_what_decides_them(recipe_text: str, old: str, new: str, changed: set[str]) -> None:
    before = recipe_text + "\n# nothing\n[quantize]\n"
    stages: tuple[str, ...] = ("base", "exit", "regularised")
    first, second = (Recipe.parse(text) for text in (before, before.replace(old, new)))
    assert {stage for stage in stages if first.stage_sha256(stage) != second.stage_sha256(stage)} == changed


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("rate = 1", "rate = 2", {"regularised", "tail"}),
        ("channels = 4", "channels = 8", {"code", "regularised", "tail"}),
        ("epochs = 3", "epochs = 4", {"code", "regularised", "tail"}),
    ],
)
def test_a_code_decides_its_own_stage_and_those_after_it(
    recipe_text: str, old: str, new: str, changed: set[str]
) -> None:
    code = "[model.bottleneck]\nchannels = 4\n[train.code]\nepochs = 3\nlearning_rate = 0.002\n"
    before = recipe_text.replace("entropy = 1.0", "rate = 1\n" + code)
    stages: tuple[str, ...] = ("base", "exit", "code", "regularised", "tail")
    first, second = (Recipe.parse(text) for text in (before, before.replace(old, new)))
    assert {stage for stage in stages if first.stage_sha256(stage) != second.stage_sha256(stage)} == changed


def test_where_pictures_lie_does_not_decide_how_training_ends(recipe_text: str) -> None:
    digits = '[data]\nsource = "sklearn-digits"\nvalidation = 0.2\ntest = 0.2\nshift = 1\n'
    hub = '[data]\nsource = "hub"\nname = "a/b"\nimage = "img"\nvalidation = 0.2\nshift = 1\n'
    assert digits in recipe_text
    first = Recipe.parse(recipe_text.replace(digits, hub))
    files = first.with_files(["/some/train.parquet"], ["/some/test.parquet"])
    assert first.stage_sha256("regularised") == files.stage_sha256("regularised")
    assert isinstance(files.data, ParquetRecipe)
    assert (files.data.image, files.data.title) == ("img", "train.parquet, test.parquet")
    with pytest.raises(ConfigError, match="takes its data from sklearn-digits"):
        Recipe.parse(recipe_text).with_files(["a"], ["b"])
