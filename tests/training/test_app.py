import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offramp.common.bundle import Huffman, Rans, load_bundle
from offramp.common.engine import Engine
from offramp.training.app import main
from offramp.training.data import Dataset
from offramp.training.record import CODECS, RECORD, read_record, read_records


def test_from_recipe_to_a_bundle_that_does_what_its_manifest_says(
    recipe_file: Path,
    recipe_text: str,
    digits: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, checkpoints, images = tmp_path / "bundle", tmp_path / "checkpoints", tmp_path / "images"
    arguments = [str(recipe_file), "--out", str(out), "--checkpoints", str(checkpoints)]
    assert main([*arguments, "--export-test", str(images), "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert "regularised 1/1" in printed.err

    bundle = load_bundle(out)
    manifest, figures = bundle.manifest, bundle.manifest.figures
    assert report["digest"] == bundle.digest.hex()
    assert report["figures"]["accuracy_final"] == figures.accuracy_final
    assert manifest.name == "tiny-digits"
    assert manifest.split.layer == "b.C2"
    # Exit 3 lies inside a residual block: 32 channels, and the block's 16 that wait to be added.
    assert manifest.activation.shape == (48, 16, 16)
    assert manifest.provenance.recipe == recipe_text
    assert manifest.provenance.dataset.sha256 == digits.sha256
    assert isinstance(manifest.codec, Huffman | Rans)

    engine = Engine(bundle)
    symbols, early = engine.head(digits.test.images)
    assert float((early.argmax(1) == digits.test.labels).mean()) == figures.accuracy_early
    assert float((engine.tail(symbols).argmax(1) == digits.test.labels).mean()) == figures.accuracy_final
    payloads = [len(bundle.codec.encode(image)[1]) for image in symbols]
    assert float(np.mean(payloads)) == figures.payload_bytes_mean
    never, always = figures.thresholds[-1], figures.thresholds[0]
    assert (never.threshold, never.exit_rate, never.accuracy) == (1.0, 0.0, figures.accuracy_final)
    assert (always.threshold, always.payload_bytes_mean) == (0.0, 0.0)
    assert manifest.threshold in {at.threshold for at in figures.thresholds}

    measured = read_record(out / RECORD)
    assert (measured.name, measured.digest) == ("tiny-digits", bundle.digest.hex())
    assert measured.accuracy.final == figures.accuracy_final
    assert set(measured.bytes) == set(measured.curve.bytes) == set(CODECS)
    assert measured.bytes["shipped"] == pytest.approx(figures.payload_bytes_mean)
    assert measured.bytes["raw"] == measured.raw_bytes == 48 * 16 * 16
    assert measured.bytes["Huffman, a table a channel"] < measured.bytes["raw"]
    assert measured.curve.bytes["raw"][0] == 0
    assert measured.curve.bytes["raw"][-1] == measured.raw_bytes
    assert [(one.stage, one.number) for one in measured.history][-1] == ("regularised", 1)
    assert len(measured.entropy_steps) == 17
    assert [one.name for one in read_records(tmp_path)] == ["tiny-digits"]

    with (images / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(digits.test)
    for row, pixels, label in zip(rows, digits.test.images, digits.test.labels, strict=True):
        assert row["label"] == digits.classes[label]
        with Image.open(images / row["file"]) as image:
            assert np.array_equal(np.asarray(image), pixels[0])

    # All that is left to do for a finished run is to write the bundle: the same one.
    again = ["--out", str(tmp_path / "again"), "--resume"]
    assert main([str(recipe_file), *again, "--checkpoints", str(checkpoints)]) == 0
    printed = capsys.readouterr()
    assert "regularised" not in printed.err
    assert f"digest {bundle.digest.hex()[:16]}" in printed.out
    assert "final exit" in printed.out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["none.toml", "--out", "x"], 2, "cannot read recipe none.toml"),
        (["none.toml"], 2, "--out"),
        (["none.toml", "--out", "x", "--fast"], 2, "--fast"),
    ],
)
def test_errors_are_one_line_and_an_exit_status(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    printed = capsys.readouterr()
    assert not printed.out
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "offramp train runs/digits.toml" in capsys.readouterr().out
