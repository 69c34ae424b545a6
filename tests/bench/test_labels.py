"""A folder with labels.csv: what is read, and what is wrong with it."""

from pathlib import Path

import pytest
from PIL import Image

from offramp.bench.labels import open_picture, read_labels
from offramp.common.errors import ConfigError, DataError


def test_labels_are_read(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\nb.png,1\na.png,0\n")
    assert read_labels(tmp_path, ["0", "1"]) == {"b.png": "1", "a.png": "0"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name,label\na.png,0\n", "expected a CSV with the columns file,label"),
        (b"file,label\n\xff,0\n", "expected a CSV with the columns file,label"),
        (b"file,label\na.png,7\n", "expected labels among 0, 1"),
        (b"file,label\n", "expected labels among 0, 1"),
    ],
)
def test_labels_that_cannot_be_used_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_labels(tmp_path, ["0", "1"])


def test_labels_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"labels\.csv: No such file"):
        read_labels(tmp_path, ["0"])


def test_a_picture_keeps_its_colours(tmp_path: Path) -> None:
    Image.new("L", (3, 2), 7).save(tmp_path / "grey.png")
    assert open_picture(tmp_path / "grey.png").mode == "L"
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"no\.png"):
        open_picture(tmp_path / "no.png")
