"""What sounds and tensors cost as files, measured by the unsplit model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from offramp.training.calibrate.measure import Answers
from offramp.training.data.photos import Columns
from offramp.training.data.tensors import Options
from offramp.training.split.sound_rivals import compare_tensors, ogg_packets, sound_formats
from offramp.training.split.taken import Taken, take
from tests.toy_tensor import npy
from tests.training.split.tiny import write_sounds


def taken(folder: Path, options: Options = Options(seconds=0.3)) -> Taken:  # noqa: B008
    found = take(
        folder, "auto", options, seed=0, columns=Columns(), counted=lambda _: lambda: None, skipped=None
    )
    assert found is not None
    return found


def knows(found: Taken) -> tuple[Answers, np.ndarray]:
    """A pair that is sure of the first half and always right, 7 bytes each."""
    labels = found.data.test.labels
    count, classes = len(labels), len(found.data.classes)
    right = np.eye(classes, dtype=np.float32)[labels] * 9
    early = np.where((np.arange(count) < count // 2)[:, None], right, 0).astype(np.float32)
    return Answers(np.zeros((count, 1, 1, 1), np.uint8), early, right, labels), np.full(count, 7, np.int64)


def by_pitch(x: Tensor) -> Tensor:
    """Where most of the power is: high, low or middle."""
    loudest = x[:, 0].mean(2).argmax(1).float() / x.shape[2]
    return -torch.stack([(loudest - at).abs() for at in (0.85, 0.17, 0.42)], dim=1)


def test_raw_flac_and_opus_are_measured_by_the_unsplit_model(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    assert soundfile.__libsndfile_version__ >= "1.2"
    found = taken(write_sounds(tmp_path / "sounds", 12))
    said: list[str] = []
    compared = compare_tensors(by_pitch, found, *knows(found), say=said.append)
    points = {each.name: each for each in compared.pictures}
    raw, flac = points["raw 16-bit samples"], points["FLAC"]
    opus = [points[f"Opus {kbits} kbit/s"] for kbits in (6, 16, 32)]

    assert not said
    assert raw.accuracy == flac.accuracy > 0.8
    assert 2 * 1600 <= raw.bytes_mean <= 2 * 2400 and flac.bytes_mean < raw.bytes_mean
    assert opus[0].bytes_mean < opus[1].bytes_mean < opus[2].bytes_mean < flac.bytes_mean
    # 6 kbit/s for 0.25 s are 190 bytes; packets are whole.
    assert 60 < opus[0].bytes_mean < 500
    assert opus[2].accuracy > 0.6
    half = next(
        each for each in compared.hybrids if each.name == "early exit at T_c = 0.5, then Opus 6 kbit/s"
    )
    assert 0 < half.bytes_mean < opus[0].bytes_mean
    assert compared.ours[50].accuracy == 1


def test_without_the_library_raw_samples_are_left_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    formats, missing = sound_formats(8000)
    assert [each.name for each in formats] == ["raw 16-bit samples"]
    assert "pip install 'offramp[sound]'" in missing


def test_opus_takes_some_rates_only() -> None:
    pytest.importorskip("soundfile")
    formats, missing = sound_formats(11_025)
    assert [each.name for each in formats] == ["raw 16-bit samples", "FLAC"]
    assert missing == "Opus was not measured: it takes no sounds of 11,025 Hz"


def test_packets_of_an_ogg_file() -> None:
    def page(*laces: int) -> bytes:
        return b"OggS" + bytes(22) + bytes([len(laces), *laces]) + bytes(sum(laces))

    assert ogg_packets(page(19) + page(60) + page(10, 255, 3, 0, 7)) == [19, 60, 10, 258, 0, 7]
    assert ogg_packets(page(255) + page(255, 5)) == [515]


def test_tensors_are_compared_with_their_own_bytes(tmp_path: Path) -> None:
    for name, level in (("down", 10), ("up", 200)):
        (tmp_path / name).mkdir()
        for number in range(10):
            values = np.full((1, 4, 8), level + number, np.uint8)
            (tmp_path / name / f"{number}.npy").write_bytes(npy(values))
    found = taken(tmp_path, Options())

    def by_level(x: Tensor) -> Tensor:
        return torch.stack([-x.mean((1, 2, 3)), x.mean((1, 2, 3))], dim=1)

    compared = compare_tensors(by_level, found, *knows(found), say=print)
    raw, deflated = compared.pictures
    assert (raw.name, raw.bytes_mean, raw.accuracy) == ("raw bytes", 32, 1)
    assert deflated.bytes_mean < 20 and compared.hybrids
