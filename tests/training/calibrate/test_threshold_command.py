import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from offramp.bench.answers import tail_answers, whole_answers
from offramp.common.bundle.load import load_bundle
from offramp.common.bundle.manifest import CODEBOOK, HEAD, TAIL
from offramp.common.bundle.write import write_bundle
from offramp.common.part.answer import both_exits
from offramp.common.part.engine import Engine
from offramp.common.wire.picture import decode_picture, encode_picture
from offramp.training.calibrate.threshold_command import main
from offramp.training.data.datasets import Dataset
from tests.training.bundles import trained_bundle


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, recipe_words: str, tiny_backbone: None) -> Path:
    return trained_bundle(recipe_words, tmp_path_factory.mktemp("threshold"))


def test_the_bundle_is_rewritten_and_measured_again(
    trained: Path, digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(trained, path)
    before = load_bundle(path)
    command = [str(path), "--drop", "5", "--temperature", "--json"]
    assert main([*command, "--dry-run"]) == 0
    assert load_bundle(path).digest == before.digest
    assert main(command) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed.split("\n}\n")[1] + "\n}")
    after = load_bundle(path)
    manifest = after.manifest
    assert after.digest != before.digest
    assert (manifest.threshold, manifest.temperature) == (found["threshold"], found["temperature"])
    assert manifest.temperature != 1
    assert found["images"] == len(digits.validation)
    assert (after.head, after.tail) == (before.head, before.tail)
    assert manifest.figures.accuracy_early_float == before.manifest.figures.accuracy_early_float
    # The card is what the programs would do, on test images.
    row = next(at for at in manifest.figures.thresholds if at.threshold == manifest.threshold)
    engine = Engine(after)
    symbols, early = engine.head(digits.test.images)
    exits = early.max(axis=1) > manifest.threshold
    answers = tail_answers(engine, symbols).answers(early, manifest.sent_answer)
    right = np.where(exits, early.argmax(1) == digits.test.labels, answers == digits.test.labels)
    assert manifest.sent_answer == found["sent_answer"]
    assert row.exit_rate == exits.mean()
    agreement = {at.threshold: at.exits for at in manifest.figures.agreement or []}
    assert agreement[manifest.threshold] == exits.sum()
    assert manifest.figures.drift is not None
    assert manifest.figures.drift.classes == np.bincount(early.argmax(1), minlength=10).tolist()
    assert row.accuracy == right.mean()
    assert found["ece"] < found["ece_before"] or found["ece_before"] < 0.05


def test_text_for_people(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(trained), "--bytes", "2000", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("T_c = ")
    assert "95 % intervals" in printed
    assert "bytes an image" in printed


def test_with_pictures_it_says_what_to_set_on_a_device(
    trained: Path, recipe_words: str, digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Hardly trained: the whole model of the other one knows better.
    poorly = recipe_words.replace("learning_rate = 0.05", "learning_rate = 0.0001").replace(
        "exit = 3", "exit = 1"
    )
    poor = trained_bundle(poorly.replace("epochs = 2", "epochs = 1"), tmp_path)
    capsys.readouterr()
    command = [str(poor), "--drop", "0", "--pictures", str(trained), "--dry-run"]
    assert main(command) == 0
    assert re.search(
        r"\n  once more +\d+\.\d\d% of all images: --picture-threshold \S+ --picture-quality \d+\n",
        capsys.readouterr().out,
    )
    assert main([*command, "--picture-quality", "75", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["picture"]["quality"] == 75

    # As the two programs would do it.
    bundle, images = load_bundle(poor), digits.validation.images
    engine = Engine(bundle)
    symbols, early = engine.head(images)
    reply = tail_answers(engine, symbols)
    joint = both_exits(early, reply.best, reply.probability)
    rule = found["sent_answer"]
    confidence = reply.probability if rule == "server" else joint.max(1)
    sent = early.max(1) <= np.float32(found["threshold"])
    again = sent & (confidence <= np.float32(found["picture"]["threshold"]))
    pictures = [encode_picture(image, 75) for image in images]
    seen = np.stack([decode_picture(one, *images.shape[2:]) for one in pictures])
    after = whole_answers(Engine(load_bundle(trained)), seen).answers(joint.astype(np.float32), rule)
    answers = np.where(again, after, np.where(sent, reply.answers(early, rule), early.argmax(1)))
    payloads = [len(bundle.codec.encode(one)[1]) for one in symbols]
    total = np.where(sent, payloads, 0) + np.where(again, [len(one) for one in pictures], 0)
    assert found["picture"]["rate"] == again.mean() > 0
    assert found["accuracy"] == pytest.approx((answers == digits.validation.labels).mean())
    assert found["bytes_mean"] == pytest.approx(total.mean())


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["none", "--drop", "10"], 4, "none"),
        (["none"], 2, "one of the arguments --accuracy --drop --bytes is required"),
        (["none", "--accuracy", "2"], 2, "--accuracy: '2', expected 0 … 1"),
        (["none", "--drop", "much"], 2, "--drop: 'much', expected points, 0 … 100"),
        (["none", "--drop", "0.01"], 2, "--drop: '0.01', expected points, 0 or 0.1 … 100; 1 is one of 100"),
        (["none", "--bytes", "-1"], 2, "'-1', expected a number of bytes"),
        (["none", "--bytes", "few"], 2, "'few', expected a number of bytes"),
        (["none", "--drop", "0", "--picture-quality", "101"], 2, "'101', expected a whole number, 0 … 100"),
        (["none", "--drop", "0", "--picture-quality", "20"], 2, "--picture-quality: expected --pictures too"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_pictures_of_other_classes_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = load_bundle(trained)
    names = [f"{name}?" for name in other.manifest.classes]
    files = {HEAD: other.head, TAIL: other.tail}
    if other.tables is not None:
        files[CODEBOOK] = other.tables.to_bytes()
    write_bundle(tmp_path / "other", other.manifest.model_copy(update={"classes": names}), files)
    assert main([str(trained), "--drop", "0", "--pictures", str(tmp_path / "other")]) == 2
    printed = capsys.readouterr().err
    assert f"its classes are not those of {trained}" in printed and printed.count("\n") == 1


def test_other_data_than_the_bundles_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from offramp.training.data import sources

    load = sources.load

    def other(*arguments: object, **words: object) -> Dataset:
        data = load(*arguments, **words)  # type: ignore[arg-type]
        return Dataset(data.name, data.classes, data.train, data.validation, data.test, "0" * 64)

    monkeypatch.setattr(sources, "load", other)
    assert main([str(trained), "--drop", "10"]) == 5
    assert "these data have SHA-256 000000000000…, the bundle was made of" in capsys.readouterr().err
