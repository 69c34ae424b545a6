from pathlib import Path

import pytest

from offramp.training.recipe import Recipe
from offramp.training.stages import schedule
from offramp.training.stages.schedule import STAGES, stages_in

NEW = """
from offramp.training.stages.exit import ExitStage


class Late(ExitStage):
    name, place, stream = "late", 15, 7 << 40


STAGE = Late()
"""


def test_stages_run_in_the_papers_order_and_ours_after_it() -> None:
    names = [stage.name for stage in STAGES]
    assert names == ["base", "exit", "code", "regularised", "branch", "restart", "tail"]


def test_each_stage_draws_from_a_stream_of_its_own() -> None:
    streams = [3 * seed + stage.stream for seed in range(1000) for stage in STAGES]
    assert len(set(streams)) == len(streams)


def test_a_new_stage_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "more_stages"
    package.mkdir()
    (package / "late.py").write_text(NEW)
    (package / "helper.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [stage.name for stage in stages_in(package, "more_stages")] == ["late"]


def test_every_file_with_a_stage_is_in_the_schedule() -> None:
    files = Path(schedule.__file__).parent.glob("*.py")
    names = {path.stem for path in files if "\nSTAGE = " in path.read_text()}
    assert names == {stage.name for stage in STAGES}


def test_a_recipe_has_a_section_for_each_stage(recipe: Recipe) -> None:
    assert list(recipe.train.stages) == [stage.name for stage in STAGES]
    for stage in STAGES:
        assert type(recipe.train.stages[stage.name]) is stage.recipe
        assert stage.settings(recipe.plan) is recipe.train.stages[stage.name]
    present = [stage.name for stage in STAGES if stage.present(recipe.plan)]
    assert present == ["base", "exit", "regularised"]
