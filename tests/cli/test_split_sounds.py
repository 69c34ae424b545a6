"""``offramp split`` on sounds and on tensors, whole: bundle, report, both programs, ``offramp demo``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.cli import demo, inspect, split
from offramp.common.bundle.load import load_bundle
from offramp.common.errors import ConfigError
from offramp.common.inputs.prepare import prepare
from offramp.common.inputs.spec import TensorInput, WavFile
from offramp.common.part.engine import Engine
from offramp.training.calibrate import context_model
from tests.toy_tensor import npy
from tests.training.split.tiny import write_photos, write_sounds

FIXED = ["--epochs", "20", "--versions", "1", "--steps", "60", "--bytes", "12", "--cut", "2"]


def run(data: Path, out: Path, *more: object, model: str = "hears") -> dict[str, Any]:
    flags = [f"tests.training.split.tiny:{model}", "--data", data, "--out", out, *FIXED, *more]
    assert split.main([str(each) for each in flags]) == 0
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


@pytest.fixture(scope="module", autouse=True)
def _coarse() -> Iterator[None]:
    """How good a context model is, nothing here asks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context_model, "STEPS", 100)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    write_sounds(folder / "data", 30)
    run(folder / "data", folder / "pair", "--seconds", 0.25, "--mels", 32, "--hop", 64)
    return folder


def test_sounds_become_a_bundle_of_version_2_that_has_learned(made: Path) -> None:
    manifest = load_bundle(made / "pair").manifest
    report = json.loads((made / "pair" / "report.json").read_text())
    taken = manifest.input

    assert isinstance(taken, TensorInput) and isinstance(taken.file, WavFile)
    assert (taken.file.rate, taken.file.seconds, taken.shape) == (8000, 0.25, (1, 32, 28))
    assert manifest.format_version == 2
    assert [part.graph for part in manifest.parts] == ["head.onnx", "tail.onnx"]
    assert all(part.macs and part.weights for part in manifest.parts)
    assert report["accuracy"]["unsplit"] > 0.7 and report["accuracy"]["pair"] > 0.5
    assert manifest.sent_answer == report["sent_answer"]


def test_the_report_speaks_of_sounds(made: Path) -> None:
    text = (made / "pair" / "report.md").read_text()
    assert "\n- sounds: " in text and "| sound | bytes | right |" in text and "raw 16-bit samples" in text
    assert "photo" not in text and "WebP" not in text


def test_what_was_trained_is_what_the_device_computes(made: Path) -> None:
    bundle = load_bundle(made / "pair")
    files = sorted((made / "data").rglob("*.wav"))
    whole = np.stack([prepare(path.read_bytes(), bundle.manifest.input) for path in files])
    symbols, _ = Engine(bundle).head(whole)
    right = Engine(bundle).tail(symbols).argmax(axis=1)
    labels = [bundle.manifest.classes.index(path.parent.name) for path in files]
    assert (right == labels).mean() > 0.5


def test_demo_and_inspect_take_it(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = made / "images"
    images.mkdir()
    rows = ["file,label"]
    for path in sorted((made / "data").rglob("*.wav"))[::9]:
        name = f"{path.parent.name}-{path.name}"
        (images / name).write_bytes(path.read_bytes())
        rows.append(f"{name},{path.parent.name}")
    (images / "labels.csv").write_text("\n".join(rows))
    assert inspect.main([str(made / "pair")]) == 0
    assert "takes       sounds, 1×32×28" in capsys.readouterr().out
    assert demo.main(["--bundle", str(made / "pair"), "--images", str(images), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["baselines"] == [] and all(each["agree"] for each in found["counters"])


def test_tensors_of_floats_are_split_the_same_way(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label, name in enumerate(("high", "low", "middle")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(20):
            values = rng.normal(label * 3, 1, (1, 24, 24)).astype(np.float32)
            (tmp_path / "data" / name / f"{number}.npy").write_bytes(npy(values))
    report = run(tmp_path / "data", tmp_path / "pair", "--epochs", 2, "--steps", 10)

    assert [each["name"] for each in report["comparison"]["pictures"]] == ["raw bytes", "deflated bytes"]
    taken = load_bundle(tmp_path / "pair").manifest.input
    assert isinstance(taken, TensorInput) and taken.shape == (1, 24, 24) and taken.range[0] < -1


def test_flags_that_do_not_fit_are_one_error(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds pictures; flags of sounds and tensors say nothing of them"):
        run(write_photos(tmp_path / "photos", 1), tmp_path / "out", "--rate", 8000)
    with pytest.raises(ConfigError, match=r"does not run on float32 \[2, 1, 40, .*\]"):
        run(made / "data", tmp_path / "out", model="build")
