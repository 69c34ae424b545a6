"""Sounds and tensors of a folder: what is chosen by itself, what a flag says, what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from offramp.common.errors import ConfigError, DataError
from offramp.common.inputs.spec import WavFile
from offramp.common.inputs.tensors import to_tensor
from offramp.training.data.tensors import Options, kind_of, read_tensors
from tests.toy_tensor import npy, wav
from tests.training.split.tiny import write_photos, write_sounds


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("data") / "sounds", 12)


def write_arrays(folder: Path, dtype: type, count: int = 10) -> Path:
    rng = np.random.default_rng(0)
    for name in ("down", "up"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            values = rng.uniform(-2, 6, (2, 8, 8)) if dtype is not np.uint8 else rng.integers(0, 9, (2, 8, 8))
            (folder / name / f"{number}.npy").write_bytes(npy(values.astype(dtype)))
    return folder


def test_the_folder_says_what_it_holds(sounds: Path, tmp_path: Path) -> None:
    assert kind_of(sounds) == "wav"
    assert kind_of(write_photos(tmp_path / "photos", 1)) == "picture"
    assert kind_of(write_arrays(tmp_path / "arrays", np.uint8, 1)) == "tensor"
    (tmp_path / "arrays" / "up" / "a.wav").write_bytes(wav())
    with pytest.raises(ConfigError, match=r"holds files of several kinds .*expected --input to name one"):
        kind_of(tmp_path / "arrays")
    (tmp_path / "list.csv").write_text("file,label\nx/a.wav,up\n")
    assert kind_of(tmp_path / "list.csv") == "wav"


def test_rate_and_seconds_come_from_the_files_and_are_said_aloud(sounds: Path) -> None:
    found = read_tensors(sounds, "wav", Options(), seed=0)
    file = found.spec.file
    assert isinstance(file, WavFile)

    assert (file.rate, file.seconds) == (8000, 0.3)
    assert found.spec.shape == (1, 40, 1 + (2400 - 256) // 100)
    text = "; ".join(found.photos.notes)
    assert (
        "rate 8,000 Hz" in text
        and "0.3 s" in text
        and "(--seconds)" in text
        and "log-mel of 40 bands" in text
    )
    data = found.photos.data
    assert data.classes == ("high", "low", "middle")
    assert data.train.images.dtype == np.uint8 and data.train.images.shape[1:] == found.spec.shape


def test_training_and_device_make_the_same_tensor_of_a_file(sounds: Path) -> None:
    found = read_tensors(sounds, "wav", Options(rate=8000, seconds=0.25, mels=12, window=200, hop=50), seed=0)
    for made in found.photos.data.test.images:
        assert np.array_equal(to_tensor(found.originals.of(made), found.spec), made)


def test_a_csv_and_parquet_are_read_as_folders_are(sounds: Path, tmp_path: Path) -> None:
    options = Options(rate=8000, seconds=0.3)
    wanted = read_tensors(sounds, "wav", options, seed=0).photos.data
    files = sorted(sounds.rglob("*.wav"))
    lines = [f"{path},{path.parent.name}" for path in files]
    (tmp_path / "all.csv").write_text("\n".join(["file,label", *lines]))
    by_list = read_tensors(tmp_path / "all.csv", "wav", options, seed=0).photos.data
    assert by_list.sha256 == wanted.sha256

    names = sorted({path.parent.name for path in files})
    table = pa.table({
        "audio": [{"bytes": path.read_bytes(), "path": path.name} for path in files],
        "label": [names.index(path.parent.name) for path in files],
    })  # fmt: skip
    pa.parquet.write_table(table, tmp_path / "all.parquet")
    assert kind_of(tmp_path / "all.parquet") == "wav"
    found = read_tensors(tmp_path / "all.parquet", "wav", options, seed=0)
    assert found.photos.data.sha256 == wanted.sha256
    assert found.originals.of(found.photos.data.test.images[0])[:4] == b"RIFF"


def test_arrays_of_bytes_stay_and_floats_have_the_range_of_all(tmp_path: Path) -> None:
    whole = read_tensors(write_arrays(tmp_path / "bytes", np.uint8), "tensor", Options(), seed=0)
    assert (whole.spec.range, whole.spec.shape) == ((0.0, 255.0), (2, 8, 8))
    assert whole.photos.data.train.images.max() <= 8

    floats = write_arrays(tmp_path / "floats", np.float32)
    found = read_tensors(floats, "tensor", Options(), seed=0)
    low, high = found.spec.range
    assert -2 <= low < -1.9 and 5.9 < high <= 6
    assert found.photos.data.train.images.max() == 255
    assert "(--range)" in "; ".join(found.photos.notes)
    given = read_tensors(floats, "tensor", Options(range=(0.0, 1.0)), seed=0)
    assert given.spec.range == (0.0, 1.0)


def test_what_is_wrong_is_one_error_that_names_the_files(sounds: Path, tmp_path: Path) -> None:
    folder = write_sounds(tmp_path / "bad", 6)
    (folder / "low" / "x.wav").write_bytes(b"hello")
    (folder / "high" / "y.wav").write_bytes(wav()[:-9])
    with pytest.raises(
        DataError, match=r"2 sounds cannot be used \(--skip-bad leaves them out\): .*y\.wav.*x\.wav"
    ):
        read_tensors(folder, "wav", Options(), seed=0)
    left_out: list[str] = []
    assert read_tensors(folder, "wav", Options(), seed=0, skipped=left_out.append)
    assert len(left_out) == 2

    with pytest.raises(ConfigError, match=r"--mels 400: .* hold no frequency of a window of 64 samples"):
        read_tensors(sounds, "wav", Options(mels=400, window=64), seed=0)
    with pytest.raises(ConfigError, match=r"the sounds' transform: .*expected 0 … 4000 Hz"):
        read_tensors(sounds, "wav", Options(fmax=5000), seed=0)
    mixed = write_arrays(tmp_path / "mixed", np.uint8, 6)
    (mixed / "up" / "0.npy").write_bytes(npy(np.zeros((2, 8, 9), np.uint8)))
    with pytest.raises(DataError, match=r"is uint8 \[2, 8, 9\], expected uint8"):
        read_tensors(mixed, "tensor", Options(), seed=0)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="class 'a' has no sounds"):
        read_tensors(tmp_path / "empty", "wav", Options(), seed=0)
