import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from offramp.common.bundle import load_bundle
from offramp.common.engine import Engine
from offramp.common.errors import DataError
from offramp.evaluation.baselines import tail_answers
from offramp.training.app import main as train_main
from offramp.training.calibration import wilson
from offramp.training.data import Dataset
from offramp.training.measure import Answers
from offramp.training.threshold import choose, main


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, recipe_words: str, tiny_backbone: None) -> Path:
    folder = tmp_path_factory.mktemp("threshold")
    (folder / "tiny.toml").write_text(recipe_words)
    arguments = [str(folder / "tiny.toml"), "--out", str(folder / "bundle")]
    assert train_main([*arguments, "--checkpoints", str(folder / "checkpoints")]) == 0
    return folder / "bundle"


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
    told = tail_answers(engine, symbols).told(early, manifest.sent_answer)
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


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["none", "--drop", "0.1"], 4, "none"),
        (["none"], 2, "one of the arguments --accuracy --drop --bytes is required"),
        (["none", "--accuracy", "2"], 2, "2, expected 0 … 1"),
        (["none", "--bytes", "-1"], 2, "-1, expected a number of bytes"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_other_data_than_the_bundles_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from offramp.training import sources

    load = sources.load

    def other(*arguments: object, **words: object) -> Dataset:
        data = load(*arguments, **words)  # type: ignore[arg-type]
        return Dataset(data.name, data.classes, data.train, data.validation, data.test, "0" * 64)

    monkeypatch.setattr(sources, "load", other)
    assert main([str(trained), "--drop", "0.1"]) == 5
    assert "these data have SHA-256 000000000000…, the bundle was made of" in capsys.readouterr().err
