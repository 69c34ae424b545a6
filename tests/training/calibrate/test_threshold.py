import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.bench.baselines import tail_answers, whole_answers
from offramp.common.bundle.load import load_bundle
from offramp.common.bundle.manifest import CODEBOOK, HEAD, TAIL
from offramp.common.bundle.write import write_bundle
from offramp.common.errors import DataError
from offramp.common.part.answer import both_exits
from offramp.common.part.engine import Engine, softmax
from offramp.common.wire.picture import decode_picture, encode_picture
from offramp.training.calibrate.calibration import wilson
from offramp.training.calibrate.measure import Answers
from offramp.training.calibrate.pictures import Pictures
from offramp.training.calibrate.threshold import Choice, choose, main
from offramp.training.data.datasets import Dataset
from tests.training.bundles import trained_bundle


def answers(count: int = 200) -> Answers:
    """The more confident the early exit, the more often it is right; the final exit is right in 9 of 10."""
    sure = np.linspace(0.5, 0.995, count).astype(np.float32)
    rng = np.random.default_rng(0)
    right = rng.random(count) < sure
    final = np.arange(count) % 10 != 0
    eye = np.eye(2, dtype=np.float32)
    some = Answers(
        np.empty((count, 0), np.uint8), eye[right.astype(int)], eye[final.astype(int)], np.ones(count, int)
    )
    vars(some)["confidence"] = sure
    return some


PAYLOADS = np.full(200, 100)


def test_an_accuracy_floor_takes_the_fewest_bytes() -> None:
    seen = answers()
    found = choose(seen, PAYLOADS, accuracy=0.85)
    assert found.accuracy >= 0.85
    below = [step / 100 for step in range(101) if step / 100 < found.threshold]
    assert all(seen.accuracy(at) < 0.85 for at in below)
    assert found.bytes_mean == pytest.approx(100 * (1 - found.exit_rate))
    assert found.accuracy_interval == wilson(round(found.accuracy * 200), 200)
    low, high = found.bytes_interval
    assert low < found.bytes_mean < high


def test_sure_asks_more() -> None:
    found = choose(answers(), PAYLOADS, accuracy=0.8, sure=True)
    assert found.accuracy_interval[0] >= 0.8
    assert found.threshold > choose(answers(), PAYLOADS, accuracy=0.8).threshold
    budget = choose(answers(), PAYLOADS, budget=50.0, sure=True)
    assert budget.bytes_interval[1] <= 50


def test_a_drop_is_counted_from_the_best_of_all_thresholds() -> None:
    seen = answers()
    best = max(seen.accuracy(step / 100) for step in range(101))
    assert best > seen.final_right.mean()
    found = choose(seen, PAYLOADS, drop=0.05)
    assert best - 0.05 <= found.accuracy < best
    assert choose(seen, PAYLOADS, drop=1.0).threshold == 0


def test_a_byte_budget_takes_the_most_accurate() -> None:
    seen = answers()
    found = choose(seen, PAYLOADS, budget=40.0)
    assert found.bytes_mean <= 40
    cheap = [s / 100 for s in range(101) if 100 * (1 - seen.exits(s / 100).mean()) <= 40]
    assert found.accuracy == max(seen.accuracy(at) for at in cheap)
    assert choose(seen, PAYLOADS, budget=0.0).exit_rate == 1


def test_goals_that_cannot_be_met() -> None:
    with pytest.raises(
        DataError, match=r"no threshold reaches an accuracy of 0.9990 on these images: the best"
    ):
        choose(answers(), PAYLOADS, accuracy=0.999)
    with pytest.raises(DataError, match="with 95 % confidence"):
        choose(answers(), PAYLOADS, accuracy=0.9, sure=True)
    unsure = answers()
    vars(unsure)["confidence"] = np.zeros(200, np.float32)
    with pytest.raises(DataError, match=r"no threshold sends 40 B an image or fewer: at 0 it is 100\.0"):
        choose(unsure, PAYLOADS, budget=40.0)


def three_exits(count: int = 300) -> tuple[Answers, list[Pictures]]:
    """Ten classes; the server is right more often than the early exit, and where it is sure; a picture always
    is, at a price that differs from image to image."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 10, count)
    eye = np.eye(10, dtype=np.float32)[labels]
    early, final = (
        (eye * strength + rng.normal(size=eye.shape)).astype(np.float32) for strength in (2.0, 3.0)
    )
    seen = Answers(np.empty((count, 0), np.uint8), early, final, labels, sent_answer="both")
    return seen, [
        Pictures(20, rng.integers(200, 300, count), rng.random(count) < 0.93),
        Pictures(75, rng.integers(500, 900, count), np.ones(count, bool)),
    ]


def by_hand(
    seen: Answers, payloads: np.ndarray, pictures: list[Pictures]
) -> list[tuple[float, float, float, float, int]]:
    """Of every pair of thresholds and every quality: bytes, accuracy, and these three."""
    early = np.exp(seen.early) / np.exp(seen.early).sum(1, keepdims=True)
    both = both_exits(early, seen.final.argmax(1), softmax(seen.final).max(1))
    grid = np.arange(101) / 100
    found = []
    for first in grid:
        sent = early.max(1) <= np.float32(first)
        answer = np.where(sent, both.argmax(1) == seen.labels, early.argmax(1) == seen.labels)
        found.append((np.where(sent, payloads, 0).mean(), answer.mean(), first, 0.0, 0))
        for one in pictures:
            for second in grid:
                again = sent & (both.max(1) <= np.float32(second))
                total = np.where(sent, payloads, 0) + np.where(again, one.payloads, 0)
                right = np.where(again, one.right, answer).mean()
                found.append((total.mean(), right, first, second, one.quality))
    return found


def run(choice: Choice) -> tuple[float, float]:
    return choice.bytes_mean, choice.accuracy


@pytest.mark.parametrize(
    ("goal", "value"), [("accuracy", 0.9), ("accuracy", 0.99), ("drop", 0.02), ("budget", 60)]
)
def test_pictures_are_chosen_together_with_t_c(goal: str, value: float) -> None:
    seen, pictures = three_exits()
    payloads = np.full(len(seen), 70)
    asked: dict[str, Any] = {goal: value}
    found = choose(seen, payloads, pictures=pictures, **asked)
    every = by_hand(seen, payloads, pictures)
    best = max(right for _, right, *_ in every)
    if goal == "budget":
        sent, right = min((one[:2] for one in every if one[0] <= value), key=lambda one: (-one[1], one[0]))
    else:
        floor = value if goal == "accuracy" else best - value
        sent, right = min(one[:2] for one in every if one[1] >= floor - 1e-12)
    assert run(found) == pytest.approx((sent, right))
    picture = found.picture
    assert picture is not None
    # What it names is what it costs.
    named = (found.threshold, picture.threshold, picture.quality)
    own = next(one for one in every if one[2:] == named)
    assert run(found) == pytest.approx(own[:2])
    low, high = found.bytes_interval
    assert low < found.bytes_mean < high


def test_pictures_that_bring_nothing_are_left_out() -> None:
    seen, (poor, _) = three_exits()
    none = Pictures(20, poor.payloads, np.zeros(len(seen), bool))
    payloads = np.full(len(seen), 70)
    assert choose(seen, payloads, pictures=[none], drop=0.0) == choose(seen, payloads, drop=0.0)


def test_sure_of_pictures_too() -> None:
    seen, pictures = three_exits()
    payloads = np.full(len(seen), 70)
    floor = choose(seen, payloads, pictures=pictures, accuracy=0.93, sure=True)
    assert floor.accuracy_interval[0] >= 0.93
    within = choose(seen, payloads, pictures=pictures, budget=100.0, sure=True)
    assert within.bytes_interval[1] <= 100 and within.picture is not None
    with pytest.raises(DataError, match=r"no threshold reaches an accuracy of 1\.0000 with 95 % confidence"):
        choose(seen, payloads, pictures=pictures, accuracy=1.0, sure=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, recipe_words: str, tiny_backbone: None) -> Path:
    return trained_bundle(recipe_words, tmp_path_factory.mktemp("threshold"))


def test_the_bundle_is_rewritten_and_measured_anew(
    trained: Path, digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(trained, path)
    before = load_bundle(path)
    command = [str(path), "--drop", "0.05", "--temperature", "--json"]
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
    told = tail_answers(engine, symbols).answers(early, manifest.sent_answer)
    right = np.where(exits, early.argmax(1) == digits.test.labels, told == digits.test.labels)
    assert manifest.sent_answer == found["sent_answer"]
    assert row.exit_rate == exits.mean()
    assert row.accuracy == right.mean()
    assert found["ece"] < found["ece_before"] or found["ece_before"] < 0.05


def test_text_for_people(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(trained), "--bytes", "2000", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("T_c = ")
    assert "95 % intervals" in printed
    assert "bytes an image" in printed


def test_with_pictures_it_says_what_to_tell_a_device(
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
    told = np.where(again, after, np.where(sent, reply.answers(early, rule), early.argmax(1)))
    payloads = [len(bundle.codec.encode(one)[1]) for one in symbols]
    total = np.where(sent, payloads, 0) + np.where(again, [len(one) for one in pictures], 0)
    assert found["picture"]["rate"] == again.mean() > 0
    assert found["accuracy"] == pytest.approx((told == digits.validation.labels).mean())
    assert found["bytes_mean"] == pytest.approx(total.mean())


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["none", "--drop", "0.1"], 4, "none"),
        (["none"], 2, "one of the arguments --accuracy --drop --bytes is required"),
        (["none", "--accuracy", "2"], 2, "--accuracy: '2', expected 0 … 1"),
        (["none", "--drop", "much"], 2, "--drop: 'much', expected 0 … 1"),
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
    assert main([str(trained), "--drop", "0.1"]) == 5
    assert "these data have SHA-256 000000000000…, the bundle was made of" in capsys.readouterr().err
