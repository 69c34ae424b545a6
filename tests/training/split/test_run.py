"""The recipe that a run leaves; tests/cli/test_split.py has whole runs."""

from dataclasses import replace
from pathlib import Path

from offramp.training.data.photos import Columns
from offramp.training.split.crossings import time_for
from offramp.training.split.place import Place, Wanted, choose_place, choose_places
from offramp.training.split.run import Job, recipe_text
from offramp.training.split_recipe import parse_recipe, read_recipe, together
from tests.training.split import networks

MODEL = "paper-mobilenetv2"


def job(data: Path = Path("photos"), out: Path = Path("out"), **more: object) -> Job:
    return Job(MODEL, data, out, **more)  # type: ignore[arg-type]


def test_more_minutes_count_where_no_number_is_fixed() -> None:
    assert time_for(5.0, None) == 5
    assert time_for(5.0, 100) is None


def place() -> Place:
    return choose_place(networks.found("resnet")[1], Wanted("layer1", None, None, None, 60))


def test_the_recipe_is_toml_without_paths() -> None:
    made = job(data=Path("/home/me/photos"), weights=Path("/home/me/w.pth"), minutes=5.0, head_macs=0.2)
    text = recipe_text(made, [place()], None)
    values = parse_recipe(text.encode(), "recipe")
    assert values["data"] == "photos" and values["weights"] == "w.pth" and "/home" not in text
    assert values["cut"] == "layer1" and values["minutes"] == 5 and values["drop"] == 1
    # The cut was chosen for it.
    assert "head_macs" not in values


def test_the_recipe_that_is_written_is_the_same_job_again(tmp_path: Path) -> None:
    made = job(
        data=tmp_path / "photos", out=tmp_path / "out", mean=(0.1, 0.2, 0.3), std=(0.5,) * 3, seed=7,
        drop=None, budget=12.5, columns=Columns("a", "b", ("x", "y")), flip=False, skip_bad=True,
        cut="layer1", epochs=2, versions=3, steps=4, minutes=None,
    )  # fmt: skip
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "recipe.toml"
    path.write_text(recipe_text(made, [place()], tmp_path / "out"))
    again = Job.of(together(read_recipe(path), {}))
    assert replace(again, data=again.data.resolve(), out=again.out.resolve()) == made
    (tmp_path / "out").rename(tmp_path / "moved")
    (tmp_path / "photos").mkdir()
    moved = Job.of(together(read_recipe(tmp_path / "moved" / "recipe.toml"), {}))
    assert moved.data.samefile(tmp_path / "photos") and moved.out.samefile(tmp_path / "moved")


def test_the_recipe_of_a_chain_is_the_same_job_again(tmp_path: Path) -> None:
    made = job(
        data=tmp_path / "photos", out=tmp_path, cuts=("layer1", "layer2"), bytes=(80.0, 30.0), joint=5,
        drop=None, budget=(20.0, 4.0), hop_costs=(1.0, 0.0), rho=(1.0, 0.5, 1.0),
    )  # fmt: skip
    places = choose_places(networks.found("resnet")[1], Wanted(None, None, None, None, made.bytes, made.cuts))
    (tmp_path / "recipe.toml").write_text(recipe_text(made, places, tmp_path))
    again = Job.of(together(read_recipe(tmp_path / "recipe.toml"), {}))
    assert replace(again, data=again.data.resolve(), out=again.out.resolve()) == made
