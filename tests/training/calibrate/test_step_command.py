import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from offramp.common.bundle.load import load_bundle
from offramp.common.part.engine import Engine
from offramp.training.calibrate.step_command import main
from offramp.training.data.datasets import Dataset
from tests.training.bundles import trained_bundle
from tests.training.coded import code_text

pytestmark = pytest.mark.usefixtures("coarse_context")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, recipe_words: str, tiny_backbone: None) -> Path:
    return trained_bundle(code_text(recipe_words), tmp_path_factory.mktemp("step"))


def test_a_bundle_of_another_step_is_written_beside_its_own(
    trained: Path, digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_bundle(trained)
    capsys.readouterr()
    command = [str(trained), "--step", "0.5", "--out", str(tmp_path / "fine"), "--json"]
    assert main([*command, "--export-test", str(tmp_path / "images")]) == 0
    assert len(list((tmp_path / "images").glob("*.png"))) == len(digits.test)
    (found,) = json.loads(capsys.readouterr().out)
    assert load_bundle(trained).digest == before.digest
    after = load_bundle(tmp_path / "fine")
    manifest = after.manifest
    assert manifest.name == f"{before.manifest.name}-step0.5"
    assert (manifest.activation.scale, before.manifest.activation.scale) == (0.5, 1.0)
    assert manifest.threshold == found["threshold"]
    assert manifest.sent_answer == found["sent_answer"]
    figures = manifest.figures
    assert figures.accuracy_early == before.manifest.figures.accuracy_early
    assert figures.accuracy_final_float == before.manifest.figures.accuracy_final_float
    assert figures.payload_bytes_mean > before.manifest.figures.payload_bytes_mean
    # The card is of what the programs do, on test images.
    engine = Engine(after)
    symbols, _ = engine.head(digits.test.images)
    payloads = [len(after.codec.encode(one)[1]) for one in symbols]
    assert figures.payload_bytes_mean == np.mean(payloads)
    right = engine.tail(symbols).argmax(1) == digits.test.labels
    assert figures.accuracy_final == right.mean()
    # And what is printed, on validation images.
    symbols, _ = engine.head(digits.validation.images)
    right = engine.tail(symbols).argmax(1) == digits.validation.labels
    assert found["accuracy_final"] == right.mean()
    assert found["payload_bytes"] == np.mean([len(after.codec.encode(one)[1]) for one in symbols])
    # Another step takes this one's place.
    assert main([str(tmp_path / "fine"), "--step", "2", "--out", str(tmp_path / "coarse")]) == 0
    manifest = load_bundle(tmp_path / "coarse").manifest
    assert manifest.name == f"{before.manifest.name}-step2"
    assert manifest.activation.scale == 2


def test_steps_are_compared_and_nothing_is_written(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "bundle")
    files = {path: path.read_bytes() for path in (tmp_path / "bundle").iterdir()}
    assert main([str(tmp_path / "bundle"), "--step", "0.5", "2"]) == 0
    titles, *lines = capsys.readouterr().out.splitlines()
    assert titles.split() == [
        *["step", "B", "sent", "final", "exit", "best", "of", "all", "T_c"],
        *["T_c", "accuracy", "B", "an", "image", "answered", "by"],
    ]
    assert [line.split()[0] for line in lines] == ["0.5", "2"]
    sent = [float(line.split()[1]) for line in lines]
    assert sent == sorted(sent, reverse=True)
    assert {path: path.read_bytes() for path in (tmp_path / "bundle").iterdir()} == files
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["none", "--step", "1"], 4, "none"),
        (["none"], 2, "the following arguments are required: --step"),
        (["none", "--step", "0"], 2, "--step: '0', expected a number, 0.05 … 20"),
        (["none", "--step", "nan"], 2, "'nan', expected a number"),
        (["none", "--step", "fine"], 2, "'fine', expected a number"),
        (["none", "--step", "1", "2", "--out", "x"], 2, "--out: expected one --step with it, not 2"),
        (["none", "--step", "1", "--out", "/"], 2, "--out /: expected a folder that is empty"),
        (["models/digits-mobilenetv2-exit12", "--step", "1"], 5, "expected a rate-trained split"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
