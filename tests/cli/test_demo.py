"""``offramp demo`` on the toy bundle: real processes, their counters, and the rows of its table."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import sys
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from offramp.bench.labels import labels_of
from offramp.cli import demo
from offramp.common.bundle.load import Bundle
from offramp.common.bundle.write import write_bundle
from offramp.common.errors import ConfigError
from offramp.common.part.engine import Engine
from tests import toy
from tests.processes import WAIT, processes, scrape, until


@pytest.fixture
def pictures(toy_bundle: Bundle, tmp_path: Path) -> Path:
    """A folder of 30 images, labelled by the toy's own server."""
    images = toy.images(30, seed=3)
    engine = Engine(toy_bundle)
    named = engine.tail(engine.head(images)[0]).argmax(axis=1)
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        for number, (image, best) in enumerate(zip(images, named, strict=True)):
            Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{number:02}.png")
            writer.writerow([f"{number:02}.png", toy.CLASSES[best]])
    return tmp_path


def test_pictures_have_rows_of_their_own_and_counters_that_agree(
    toy_bundle: Bundle,
    picture_bundle: Bundle,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "THRESHOLDS", (0.0, 1.0))
    flags = ["--bundle", str(toy_bundle.path), "--whole", str(picture_bundle.path), "--images", str(pictures)]
    flags += ["--threshold", "0.7", "--picture-threshold", "1", "--picture-quality", "50", "--json"]
    assert demo.main(flags) == 0
    found = json.loads(capsys.readouterr().out)
    # Its own T_c is among them.
    names = ["T_c = 0", "T_c = 0.7", "T_c = 0.8", "T_c = 1"]
    assert [row["name"] for row in found["offramp"]] == names
    assert [row["name"] for row in found["then_pictures"]] == names
    alone, then = (found[name][3] for name in ("offramp", "then_pictures"))
    assert alone["accuracy"] == 1.0 and alone["exit_rate"] == then["exit_rate"] == 0
    # Another network answers the second question, for every image.
    engine = Engine(picture_bundle)
    named = engine.tail(engine.head(toy.images(30, seed=3))[0]).argmax(axis=1)
    symbols = Engine(toy_bundle).head(toy.images(30, seed=3))[0]
    agree = float((named == Engine(toy_bundle).tail(symbols).argmax(axis=1)).mean())
    assert then["accuracy"] == pytest.approx(agree, abs=0.15) and then["accuracy"] < 1
    assert then["payload_bytes_mean"] > alone["payload_bytes_mean"] + 20
    counters = {line["what"]: line for line in found["counters"]}
    assert all(line["agree"] for line in counters.values())
    sent = found["then_pictures"][1]["payload_bytes_mean"] * 30
    assert counters["payload bytes"]["summary"] == pytest.approx(sent)
    assert 0 < counters["of these pictures"]["summary"] < sent
    assert counters["of these pictures, by the server"]["summary"] == counters["of these pictures"]["summary"]


@pytest.mark.parametrize("flag", ["--threshold", "--picture-threshold"])
@pytest.mark.parametrize("value", ["x", "1.5", "nan"])
def test_a_threshold_is_a_share(flag: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"argument {flag}: '{value}', expected 0 … 1"):
        demo.main([flag, value])


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_bundle_that_sends_nothing_or_all_has_a_table(
    toy_bundle: Bundle,
    pictures: Path,
    tmp_path: Path,
    threshold: float,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "THRESHOLDS", (1.0,))
    # As class folders, whose files have the same names.
    images = tmp_path / "folders"
    for name, label in labels_of(pictures, list(toy.CLASSES)).items():
        (images / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / name, images / label / f"{len(list((images / label).iterdir()))}.png")
    changed = toy_bundle.manifest.changed(threshold=threshold)
    files: dict[str, bytes] = {name: (toy_bundle.path / name).read_bytes() for name in changed.files}
    bundle = write_bundle(tmp_path / "changed", changed, files)
    assert demo.main(["--bundle", str(bundle.path), "--images", str(images)]) == 0
    printed = capsys.readouterr().out
    assert "T_c = 1                            100.00%" in printed
    assert f"At the bundle's own threshold (T_c = {threshold:g}" in printed
    assert ("early exit, then pictures: the early exit alone is as often right (" in printed) == (
        threshold == 0
    )
    assert ("times as many (" in printed) == (threshold == 1)


def test_its_pages_are_live_until_ctrl_c(toy_bundle: Bundle, pictures: Path) -> None:
    with processes(toy_bundle.path) as run:
        flags = ["--bundle", str(toy_bundle.path), "--images", str(pictures), "--threshold", "0.7", "--page"]
        program = run.start([sys.executable, "-m", "offramp.cli.app", "demo", *flags])
        until(lambda: len(program.stdout) == 2 or program.process.poll() is not None, "the addresses")
        pages = re.findall(r"http://127.0.0.1:\d+/", program.stdout[0])
        assert len(pages) == 2, program.errors
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for page in pages:
            with direct.open(page, timeout=WAIT) as response:
                assert b"<!doctype html>" in response.read()
        assert scrape(f"{pages[0]}metrics")["offramp_device_threshold_ratio"] == 0.7
        answered = "offramp_server_frames_total{result=answered}"
        until(lambda: scrape(f"{pages[1]}metrics")[answered] > 0, "the server's first answer")
        program.send(signal.SIGINT)
        assert program.wait() == 0
        for page in pages:
            with pytest.raises(OSError):
                direct.open(page, timeout=WAIT)
