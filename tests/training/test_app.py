import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.bench.answers import tail_answers
from offramp.common.bundle.load import load_bundle
from offramp.common.bundle.manifest import Rans, RunHuffman
from offramp.common.part.engine import Engine
from offramp.training.app import _Display, main
from offramp.training.data.datasets import Dataset
from offramp.training.display import Screen
from offramp.training.record import CODECS, RECORD, read_record, read_records

pytestmark = pytest.mark.usefixtures("coarse_context")


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
    assert manifest.cut.name == "b.C2"
    # Exit 3 lies inside a residual block: 32 channels, and the block's 16 that wait to be added.
    assert manifest.activation.shape == (48, 16, 16)
    assert manifest.provenance.recipe == recipe_text
    assert manifest.provenance.dataset.sha256 == digits.sha256
    assert isinstance(manifest.codec, RunHuffman | Rans)

    engine = Engine(bundle)
    symbols, early = engine.head(digits.test.images)
    assert float((early.argmax(1) == digits.test.labels).mean()) == figures.accuracy_early
    assert float((engine.tail(symbols).argmax(1) == digits.test.labels).mean()) == figures.accuracy_final
    payloads = [len(bundle.codec.encode(image)[1]) for image in symbols]
    assert float(np.mean(payloads)) == figures.payload_bytes_mean
    never, always = figures.thresholds[-1], figures.thresholds[0]
    answers = tail_answers(engine, symbols).answers(early, manifest.sent_answer)
    assert (never.threshold, never.exit_rate) == (1.0, 0.0)
    assert never.accuracy == float((answers == digits.test.labels).mean())
    assert (always.threshold, always.payload_bytes_mean) == (0.0, 0.0)
    assert manifest.threshold in {at.threshold for at in figures.thresholds}
    # What a deployed device compares its audits and its images with.
    assert manifest.threshold in {at.threshold for at in figures.agreement or []}
    assert figures.drift is not None and figures.drift.images == len(digits.test)

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


VARIANTS = """seed = 3
variants = [
  { name = "a", model.exit = 2, train.regularised.epochs = 0 },
  { name = "b", model.exit = 2 },
]
"""


def test_variants_share_stages_and_what_is_done_stays(
    recipe_text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "two.toml"
    path.write_text(recipe_text.replace("seed = 3\n", VARIANTS))
    out = tmp_path / "out"
    command = [str(path), "--out", str(out), "--checkpoints", str(tmp_path / "c"), "--json"]
    command += ["--set", "train.base.epochs=1", "train.batch_size=64"]
    assert main([*command, "--only", "a"]) == 0
    printed = capsys.readouterr()
    assert "base 1/1" in printed.err
    assert json.loads(printed.out)["bundle"] == str(out / "tiny-digits-a")
    first = load_bundle(out / "tiny-digits-a")
    assert "epochs = 0" in first.manifest.provenance.recipe

    assert main([*command, "--resume"]) == 0
    printed = capsys.readouterr()
    assert f"{out / 'tiny-digits-a'} is done" in printed.err
    assert "base" not in printed.err.replace("tiny", "")
    assert "regularised 1/1" in printed.err
    assert len(printed.out.splitlines()) == 2
    names = [record.name for record in read_records(out)]
    assert names == ["tiny-digits-a", "tiny-digits-b"]


def test_a_run_that_is_out_of_time_says_how_to_go_on(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(recipe_file), "--out", str(tmp_path / "out"), "--checkpoints", str(tmp_path / "c")]
    assert main([*command, "--seconds", "1e-6"]) == 130
    printed = capsys.readouterr()
    assert "1e-06 s are over in tiny-digits; --resume goes on" in printed.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_within_an_epoch_a_line_says_what_is_left() -> None:
    stream, now = io.StringIO(), [0.0]
    progress = _Display(True, Screen(stream, clock=lambda: now[0])).progress()
    for epoch in (1, 2):
        for step in range(1, 31):
            progress.batch("base", epoch, step, 30)
            now[0] += 1
    lines = ["base 1: 11 of 30; 19 s left", "base 1: 21 of 30; 9 s left"]
    assert stream.getvalue().splitlines() == lines + [line.replace("base 1", "base 2") for line in lines]
    _Display(False, Screen(stream)).progress().say("nothing")
    assert len(stream.getvalue().splitlines()) == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(recipe_file), "--out", str(tmp_path), "--device", "cuda"]) == 2
    assert capsys.readouterr().err == "offramp train: --device cuda: torch finds no GPU here\n"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_stops_and_goes_on(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(recipe_file), "--out", str(tmp_path / "out"), "--checkpoints", str(tmp_path / "c")]
    assert main([*command, "--device", "cuda", "--set", "train.base.epochs=3"]) == 0
    record = read_record(tmp_path / "out" / RECORD)
    assert record.machine.precision == "bfloat16"
    assert record.accuracy.final > 0.5


@pytest.mark.parametrize("command", ["train", "threshold", "step"])
def test_help_needs_no_torch(command: str) -> None:
    code = f"import sys; from offramp.cli.app import main; main([{command!r}, '--help'])"
    watch = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); "
    run = subprocess.run([sys.executable, "-c", watch + code], capture_output=True, text=True, check=True)
    assert "examples:" in run.stdout
    assert run.stderr == "False\n"
