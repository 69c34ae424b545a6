"""``offramp init``: what it says of a folder, and a recipe that `offramp split` reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from offramp.cli import init
from offramp.common.errors import ConfigError
from offramp.training.data.survey import Survey
from offramp.training.split_recipe import read_recipe, together


def folder(root: Path, side: int = 64) -> Path:
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (side, side + number), (label, number, 0)).save(root / name / f"{number}.png")
    return root


def test_it_writes_a_recipe_and_says_what_it_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets" / "dog" / "broken.png").write_bytes(b"nothing")
    assert init.main(["pets", "--model", "my_model:build"]) == 0
    printed = capsys.readouterr().out
    assert "pets: 6 photos in 2 classes (parts are made by the seed)" in printed
    assert "1 cannot be used:" in printed and "broken.png" in printed
    assert "under 20 photos, so that their figures say little: cat, dog" in printed
    assert printed.endswith(
        "wrote pets.toml: my_model:build, which takes 4 minutes\nrun it: offramp split pets.toml\n"
    )
    found = together(read_recipe(Path("pets.toml")), {})
    assert (found["model"], found["data"], found["out"]) == (
        "my_model:build",
        Path("pets"),
        Path("pets-split"),
    )
    assert (found["side"], found["mean"], found["drop"], found["minutes"]) == (
        64,
        (0.485, 0.456, 0.406),
        1,
        4,
    )
    assert "# skip_bad = true" in Path("pets.toml").read_text()
    with pytest.raises(ConfigError, match=r"^pets\.toml: exists; expected a new file, by --out$"):
        init.main(["pets"])


def test_paths_are_from_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "pets")
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert init.main(["pets", "--out", "recipes/mine.toml"]) == 0
    found = read_recipe(tmp_path / "recipes" / "mine.toml")
    assert found["data"].samefile(tmp_path / "pets") and found["out"] == tmp_path / "recipes" / "mine-split"


def seen(photos: int, side: int) -> Survey:
    return Survey(("train",), {"a": (photos,), "b": (0,)}, (side, side, side), (), 0, 0, ())


def test_what_is_proposed_suits_the_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "find_spec", lambda name: None)
    small, large = init.propose(seen(300, 32), None), init.propose(seen(2500, 400), None)
    assert (small.model, small.side, small.minutes) == ("mobilenetv2", 32, 4)
    assert (large.model, large.side, large.minutes, large.pretrained) == (
        "mobilenet-v2-large",
        160,
        30,
        False,
    )
    assert "pip install timm" in large.why
    monkeypatch.setattr(init, "find_spec", lambda name: object())
    better = init.propose(seen(2500, 400), None)
    assert (better.model, better.side, better.pretrained) == ("timm:efficientnet_lite0", 160, True)
    own = init.propose(seen(2500, 400), "timm:resnet18")
    assert (own.model, own.side, own.pretrained) == ("timm:resnet18", None, True)
    assert init.minutes_for(10**9, 224) == 240


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="nowhere: no such folder or file"):
        init.main(["nowhere"])
