from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from offramp.cli.app import main as offramp
from offramp.common.bundle.load import load_bundle
from offramp.common.inputs.folder import find
from offramp.common.inputs.pictures import decode
from offramp.common.part.engine import Engine
from offramp.common.part.unknown import UnknownScore
from offramp.training.calibrate.unknown_command import main

PHOTOS = Path(__file__).parents[3] / "examples" / "trashnet"
SHIPPED = Path(__file__).parents[3] / "models" / "digits-mobilenetv2-exit12"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped digits' bundle with a score; only read it."""
    path = tmp_path_factory.mktemp("unknown") / "digits"
    shutil.copytree(SHIPPED, path)
    assert main([str(path)]) == 0
    return path


def test_false_alarms_on_test_images_are_what_was_chosen(
    scored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(scored), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    assert found["tested"] == found["chosen_on"] == 364
    wrong, chosen = (round(share * 364) for share in (found["false_alarms"], 0.05))
    assert found["interval"][0] <= found["false_alarms"] <= found["interval"][1]
    # 364 images choose and 364 are counted: both are uncertain.
    assert stats.fisher_exact([[wrong, 364 - wrong], [chosen, 364 - chosen]]).pvalue > 0.05


def test_the_bundle_says_what_is_no_digit(scored: Path) -> None:
    before, bundle = load_bundle(SHIPPED), load_bundle(scored)
    found = bundle.manifest.unknown
    assert found is not None
    assert bundle.digest != before.digest
    assert bundle.manifest.model_dump() == before.manifest.model_dump() | {"unknown": found.model_dump()}
    assert (bundle.head, bundle.tail) == (before.head, before.tail)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (50, 3, 32, 32), dtype=np.uint8)
    photos = np.stack(
        [decode(path.name, path.read_bytes(), bundle.manifest.preprocessing) for path in find(PHOTOS).files]
    )

    score, engine = UnknownScore(found), Engine(bundle)
    assert score.are_unknown(*engine.head(noise)).all()
    assert score.are_unknown(*engine.head(photos)).mean() > 0.5


def test_it_can_be_removed(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(scored, path)

    assert main([str(path), "--remove"]) == 0

    assert "a signature must be made again" in capsys.readouterr().out
    # What the shipped manifest leaves to its default is written now.
    assert load_bundle(path).manifest.model_dump() == load_bundle(SHIPPED).manifest.model_dump()
    assert "unknown" not in json.loads((path / "manifest.json").read_text())


def test_a_folder_of_pictures_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, photos = tmp_path / "bundle", tmp_path / "photos"
    shutil.copytree(SHIPPED, path)
    rng = np.random.default_rng(0)
    for number in range(160):
        folder = photos / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(folder / f"{number}.png")

    assert offramp(["unknown", str(path), str(photos), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["chosen_on"], found["tested"]) == (40, 40)
    assert found["digest"] == load_bundle(path).digest.hex() != found["digest_before"]
    assert found["false_alarms"] < 0.5


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["none"], 4, "none"),
        ([str(SHIPPED), "none"], 2, "no such folder"),
        ([str(SHIPPED), str(SHIPPED)], 5, "has no pictures"),
        ([str(SHIPPED), str(SHIPPED), "--train-data", "a", "--test-data", "b"], 2, "one or the other"),
        ([str(SHIPPED), "--false-alarms", "0.001"], 5, "364 images choose"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--dry-run"]) == status
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
