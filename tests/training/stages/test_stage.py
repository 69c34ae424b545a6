from offramp.training.recipe import Recipe
from offramp.training.stages.rate import RateRecipe
from offramp.training.stages.stage import StageRecipe, decisive


def test_fields_that_came_later_and_do_nothing_decide_nothing() -> None:
    assert decisive(StageRecipe(epochs=1, learning_rate=0.1)) == {
        "epochs": 1,
        "learning_rate": 0.1,
        "images": None,
    }
    assert decisive(StageRecipe(epochs=1, learning_rate=0.1, crop=0.5))["crop"] == 0.5
    assert "cutmix" not in decisive(RateRecipe(epochs=1, learning_rate=0.1))


def test_the_hash_of_a_stage_is_that_of_earlier_releases(recipe: Recipe) -> None:
    # Of the release before stages had files of their own: its checkpoints still fit.
    known = {"base": "f4b6e0a2c17a", "exit": "253b9586b59a", "regularised": "e3bf8fb297d8"}
    assert {name: recipe.stage_sha256(name)[:12] for name in known} == known
