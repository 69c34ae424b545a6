"""All images of the command line: what is taken, in which order, and again and again."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import numpy as np
import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError
from offramp.device.sources import source
from offramp.device.sources.source import Source
from offramp.device.sources.watch import WATCH_SECONDS
from tests import toy
from tests.device.sources.reading import (
    PREPROCESSING,
    failing_scan,
    write_png,
)
from tests.processes import Processes, until


@pytest.mark.parametrize("name", ["missing", "n" * 300], ids=["missing", "too long"])
def test_a_path_that_is_not_there_stops_the_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: .*, expected a file or a folder"):
        Source([tmp_path / name], PREPROCESSING)


def test_the_shipped_preprocessing_is_used(toy_bundle: Bundle, toy_images: Path) -> None:
    items = list(Source([toy_images], toy_bundle.manifest.preprocessing))
    assert len(items) == 40
    np.testing.assert_array_equal([item.image for item in items], toy.images(40, seed=2))


def test_watching_needs_a_folder(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="expected a folder to watch"):
        Source([tmp_path / "a.png"], PREPROCESSING, watch=True)


def test_repeating_starts_again_and_sees_what_is_new(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png")
    items = iter(Source([tmp_path], PREPROCESSING, repeat=True))
    assert [Path(next(items).name).name for _ in range(3)] == ["a.png"] * 3
    write_png(tmp_path / "b.png")
    assert sorted(Path(next(items).name).name for _ in range(4)) == ["a.png", "a.png", "b.png", "b.png"]


def test_repeating_an_empty_folder_waits_for_the_signal(tmp_path: Path) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 3

    assert list(Source([tmp_path], PREPROCESSING, wait=wait, repeat=True)) == []
    assert waits == [WATCH_SECONDS] * 3


@pytest.mark.parametrize(("path", "watch"), [("-", False), ("camera:0", False), (".", True)])
def test_what_has_no_end_is_not_repeated(path: str, watch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "opencv", lambda: None)
    with pytest.raises(ConfigError, match="--repeat: expected folders and files, which have an end"):
        Source([path], PREPROCESSING, watch, repeat=True)


def test_a_repeated_folder_as_a_process(run: Processes, toy_images: Path) -> None:
    """The first images of the second pass are answered as in the first."""
    device = run.start_device("--threshold", 0, "--repeat", "--rate", 500, "--json", toy_images)
    until(lambda: len(device.answers) > 100, "a third pass")
    device.send(signal.SIGTERM)
    assert device.wait() == 130 and device.errors == ""
    answers = sorted(device.answers, key=lambda answer: int(answer["index"]))
    assert [answer["index"] for answer in answers] == list(range(len(answers)))
    for one, other in zip(answers, answers[40:], strict=False):
        assert [one[key] for key in ("image", "label")] == [other[key] for key in ("image", "label")]


def test_a_repeated_folder_of_faults_only_does_not_spin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_scan(monkeypatch, tmp_path, errno.EIO)
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 3

    items = list(Source([tmp_path], PREPROCESSING, wait=wait, repeat=True))
    assert len(items) == 1 and len(waits) == 3
