"""``offramp split`` end to end on a tiny network: bundle, report, both programs, going on, and bad inputs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from offramp.cli import split
from offramp.cli.export_c.program import make_program
from offramp.common.bundle.load import load_bundle
from offramp.common.bundle.write import write_bundle
from offramp.common.errors import ConfigError, DataError, OfframpError
from offramp.common.inputs.pictures import decode
from offramp.training.calibrate import threshold_command
from offramp.training.calibrate.measure import run_graphs
from offramp.training.data.datasets import Labelled
from offramp.training.data.held_out import load_data
from offramp.training.export import Graphs
from tests.processes import Processes, Program, until
from tests.training.split import tiny

FIXED = ["--epochs", "40", "--versions", "2", "--steps", "120"]


def command(photos: Path, out: Path, *more: object) -> list[str]:
    flags = ["tests.training.split.tiny:build", "--data", photos, "--out", out, "--side", tiny.SIDE]
    flags += ["--mean", tiny.MEAN, "--std", tiny.STD, "--bytes", 12, "--cut", "2", *FIXED, *more]
    return [str(each) for each in flags]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As many as `run_split` gives its process: sums are then the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_photos(tmp_path_factory.mktemp("split") / "photos")


@pytest.fixture(scope="module")
def made(photos: Path) -> Path:
    """A bundle that was made in one go."""
    out = photos.parent / "made"
    assert split.main(command(photos, out)) == 0
    return out


def report_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def test_photos_become_a_bundle_that_has_learned(made: Path) -> None:
    bundle = load_bundle(made)
    manifest = bundle.manifest
    assert manifest.classes == list(tiny.CLASSES)
    assert (manifest.model, manifest.cut.name) == ("tests.training.split.tiny:build", "2")
    assert (manifest.activation.scale, manifest.activation.zero_point) == (1.0, 128)
    assert manifest.activation.shape[1:] == (4, 4)
    recipe = manifest.provenance.recipe
    assert 'cut = "2"' in recipe and 'data = "photos"' in recipe and str(made.parent) not in recipe
    # Beside the bundle the same, with paths from there.
    beside = (made / "recipe.toml").read_text()
    assert beside == recipe.replace('data = "photos"', 'data = "../photos"').replace('"made"', '"."')
    found = report_of(made)
    accuracy = found["accuracy"]
    assert accuracy["unsplit"] > 0.6 and accuracy["pair"] > accuracy["unsplit"] - 0.2 > 0.4
    assert found["photos"] == {"train": 78, "validation": 18, "test": 24}
    assert sum(each["photos"] for each in found["classes"]) == 24
    # The quantized graphs stay close to what was trained.
    assert min(found["quantized"]["head_decibels"] + found["quantized"]["tail_decibels"]) > 20
    at = manifest.threshold
    chosen = next(each for each in manifest.figures.thresholds if each.threshold == at)
    assert chosen.accuracy == pytest.approx(accuracy["pair"])
    assert chosen.payload_bytes_mean == pytest.approx(found["bytes_mean"])
    # What a deployed device compares its audits and its images with.
    assert at in {each.threshold for each in manifest.figures.agreement or []}
    assert manifest.figures.drift is not None and manifest.figures.drift.images == 24


def test_the_report_has_pictures_beside_it_and_a_verdict(made: Path) -> None:
    found, text = report_of(made), (made / "report.md").read_text()
    assert found["verdict"] in text and "## By class" in text
    comparison = found["comparison"]
    assert {"WebP 1", "JPEG 50"} <= {each["name"] for each in comparison["pictures"]}
    assert len(comparison["ours"]) == 101 and len(comparison["hybrids"]) == 8 * 101
    # Without a photo sent, a picture costs nothing either.
    assert comparison["ours"][0]["bytes_mean"] == comparison["hybrids"][0]["bytes_mean"] == 0


@pytest.fixture
def processes(made: Path) -> Iterator[Processes]:
    running = Processes(made)
    yield running
    running.end()


def test_both_programs_answer_as_the_graphs_do(made: Path, photos: Path, processes: Processes) -> None:
    bundle = load_bundle(made)
    server = processes.server()
    device = processes.start_device(
        "--server", server.address, "--threshold", "1", "--json", str(photos / "red")
    )
    assert device.wait() == 0
    assert {each["source"] for each in device.answers} == {"server"}
    answers = {Path(each["image"]).name: each["class_index"] for each in device.answers}
    names = sorted(answers)
    assert len(names) == 40
    pictures = [
        decode(name, (photos / "red" / name).read_bytes(), bundle.manifest.preprocessing) for name in names
    ]
    data = Labelled(np.stack(pictures), np.full(40, 2, np.int64))
    seen = replace(
        run_graphs(Graphs(bundle.head, bundle.tail), data),
        temperature=bundle.manifest.temperature,
        sent_answer=bundle.manifest.sent_answer,
    )
    assert [answers[name] for name in names] == seen.replied.answers.tolist()
    assert seen.sent_right.mean() > 0.5


def run_split(photos: Path, out: Path) -> Program:
    arguments = [sys.executable, "-m", "offramp.cli.app", "split", *command(photos, out)]
    return Program(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_a_killed_run_goes_on_to_the_same_bundle(
    made: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "killed"
    for stage, file, by in (("cache", "done.json", signal.SIGKILL), ("code", "stage.json", signal.SIGINT)):
        # A fast run may have come as far before it was killed: what shows that this one has is its own.
        shutil.rmtree(out / "work" / stage, ignore_errors=True)
        program = run_split(photos, out)
        try:
            until(lambda s=stage, f=file: (out / "work" / s / f).exists(), f"{stage} to begin")  # type: ignore[misc]
            program.send(by)
            status = program.wait()
        finally:
            program.end()
    assert status == 130
    assert program.errors.splitlines()[-1].startswith("offramp split: interrupted; the same command goes on")
    assert not (out / "report.json").exists()
    before = (out / "work" / "cache" / "activations.f16").stat().st_mtime_ns
    assert split.main(command(photos, out)) == 0
    assert "begins again" not in capsys.readouterr().err
    assert (out / "work" / "cache" / "activations.f16").stat().st_mtime_ns == before
    for name in ("head.onnx", "tail.onnx", "codebook.bin"):
        assert (out / name).read_bytes() == (made / name).read_bytes(), name


def test_another_goal_repeats_no_training_by_the_recipe_beside_it_from_elsewhere(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = (made / "head.onnx").read_bytes()
    trained = (made / "work" / "code" / "code.pt").read_bytes()
    assert split.main([str(made / "recipe.toml"), "--budget", "0", "--json", "--ram", "256k"]) == 0
    out, err = capsys.readouterr()
    found, program = json.loads(out), make_program(load_bundle(made))
    assert found["microcontroller"] == {
        "ram_limit": 262_144, "flash_limit": None, "ram_bytes": program.ram_bytes,
        "flash_bytes": program.flash_bytes, "fits": True,
    }  # fmt: skip
    assert "- microcontroller: fits as C: " in (made / "report.md").read_text()
    assert found["bytes_mean"] == 0 and "begins again" not in err
    assert (made / "head.onnx").read_bytes() == before
    assert (made / "work" / "code" / "code.pt").read_bytes() == trained
    kept = tomllib.loads((made / "recipe.toml").read_text())["split"]
    assert kept["ram"] == 262_144 and kept["budget"] == 0 and "drop" not in kept
    with pytest.raises(ConfigError, match=r"recipe\.toml and --recipe x\.toml: expected one recipe"):
        split.main([str(made / "recipe.toml"), "--recipe", "x.toml"])


def test_a_head_that_cannot_fit_is_refused_before_it_is_trained(made: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        split.main([str(made / "recipe.toml"), "--flash", "1k"])
    found = re.fullmatch(
        "2: its head needs about (.*) bytes of RAM and (.*) bytes of flash; expected .*at most 1,024 bytes "
        "of flash; without --cut one that fits is chosen",
        str(caught.value),
    )
    assert found is not None
    ram, flash = (int(each.replace(",", "")) for each in found.groups())
    program = make_program(load_bundle(made))
    # What it has more was not known: the coder with its memory, the classes, and the exit's last layer.
    assert 0 <= program.ram_bytes - ram < 1000
    assert 0 <= program.flash_bytes - program.coder.flash_bytes - flash < 1000


def test_a_head_that_does_not_fit_after_all_is_written_and_an_error(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = report_of(made) | {"microcontroller": {"fits": False, "refused": "it has an Erf"}}
    done = SimpleNamespace(report=SimpleNamespace(values=values))
    monkeypatch.setattr(split, "_run", lambda *_: done)
    with pytest.raises(
        ConfigError, match="made: is written, but its head does not run as C: it has an Erf; exp"
    ):
        split.main([str(made / "recipe.toml"), "--json"])
    assert json.loads(capsys.readouterr().out) == values


def test_offramp_threshold_finds_the_photos_from_elsewhere(
    made: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path / "pair", ignore=shutil.ignore_patterns("work"))
    copied = load_bundle(tmp_path / "pair")
    files = {name: (copied.path / name).read_bytes() for name in copied.manifest.files}
    before = write_bundle(copied.path, copied.manifest.changed(threshold=0.123), files)
    # Not where the copied recipe says.
    assert threshold_command.main(["pair", "--bytes", "1000"]) == 2
    error = capsys.readouterr().err
    assert "photos: no such folder or file; expected --data FOLDER" in error
    assert threshold_command.main(["pair", "--bytes", "1000", "--data", str(photos)]) == 0
    after = load_bundle(tmp_path / "pair")
    assert after.manifest.threshold != 0.123
    assert capsys.readouterr().err == (
        f"pair: its digest was {before.digest.hex()[:16]}, now {after.digest.hex()[:16]}; device and server "
        "both need the bundle again, or the server refuses the device\n"
    )
    data = load_data(load_bundle(made))
    assert (len(data.train), len(data.validation), len(data.test)) == (78, 18, 24)
    assert threshold_command.main([str(made), "--drop", "1", "--train-data", "a", "--test-data", "b"]) == 2
    assert "was made by `offramp split`; expected --data" in capsys.readouterr().err
    (tmp_path / "pair" / "recipe.toml").unlink()
    with pytest.raises(ConfigError, match=r"recipe.toml: is not there .* expected --data FOLDER"):
        load_data(after)


def test_what_cannot_be_split_is_one_clear_error(photos: Path, tmp_path: Path) -> None:
    def refused(*flags: object, model: str = "tests.training.split.tiny:build") -> str:
        rest = {"--data": photos, "--out": tmp_path / "out", "--side": 32, "--mean": 0.5, "--std": 0.5}
        rest |= dict(zip(map(str, flags[::2]), flags[1::2], strict=True))
        given = [model]
        for name, value in rest.items():
            given += [] if value is None else [str(name), str(value)]
        with pytest.raises(OfframpError) as caught:
            split.main([*given, *FIXED])
        assert isinstance(caught.value, ConfigError | DataError)
        text = str(caught.value).replace(str(tmp_path), "…")
        assert "\n" not in text and "Traceback" not in text
        return text

    (tmp_path / "file").write_text("x")
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    assert refused("--mean", None).startswith("--mean and --std: expected both or neither")
    assert "does not say which mean and deviation" in refused("--mean", None, "--std", None)
    assert refused("--data", tmp_path / "nowhere") == "--data …/nowhere: no such folder or file"
    assert refused("--out", tmp_path / "file") == "--out …/file: is a file; expected a folder"
    assert "no such cut" in refused("--cut", "9.nothing")
    assert "0 needs" in refused("--head-macs", 0.05)
    assert "at most 10 bytes of activations" in refused("--head-memory", 10)
    profile = tmp_path / "device.toml"
    profile.write_text("flash_bytes = 100\n")
    assert "at most 100 bytes of weights (0 needs" in refused("--profile", profile)
    profile.write_text("flash = 100\n")
    assert refused("--profile", profile) == "…/device.toml: flash: no such field; expected flash_bytes"
    assert refused("--drop", "0.01").endswith(
        "expected points, 0 or 0.1 … 100; 1 is one of 100 (see offramp split --help)"
    )
    assert "expected a size, as 500kB" in refused("--head-memory", "large")
    assert "bad.pth: not a safetensors file" in refused("--weights", tmp_path / "bad.pth")
    assert "its last step is not a linear layer" in refused(
        "--cut", "0", model="tests.training.split.tiny:without_linear"
    )
    assert "an ONNX file cannot be split" in refused(model="some.onnx")
    assert "the model has 7 classes, the photos 3" in refused("--classifier", "keep", "--cut", "1")


def test_cuts_are_names_behind_one_flag_and_bytes_are_by_hop(tmp_path: Path) -> None:
    given = [
        "m",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--cuts",
        "0",
        "2",
        "--bytes",
        "80,30",
    ]
    values = split._values(split._parser().parse_args(given))
    assert values["cuts"] == ("0", "2") and values["bytes"] == (80.0, 30.0)
    (tmp_path / "r.toml").write_text('[split]\nmodel = "m"\ncut = "1"\nbytes = [8, 9]\n')
    given[0] = str(tmp_path / "r.toml")
    assert split._values(split._parser().parse_args(given[:8]))["cut"] is None
    with pytest.raises(ConfigError, match="--cut and --cuts: expected one of them"):
        split._values(split._parser().parse_args([*given, "--cut", "1"]))


def test_an_interrupted_run_says_how_it_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(split, "_run", interrupted)
    assert split.main(command(photos, tmp_path / "out")) == 130
    assert capsys.readouterr().err == (
        "offramp split: interrupted; the same command goes on, and repeats half a minute at most\n"
    )


def test_help_has_examples_and_needs_no_torch() -> None:
    code = (
        "import sys; from offramp.cli import split\n"
        "try: split.main(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "offramp split my_model:build --weights best.safetensors" in found.stdout
    assert found.stdout.endswith("False\n")
