"""A folder with labels.csv: what is read, and what is wrong with it."""

import os
from pathlib import Path

import pytest
from PIL import Image

from offramp.bench.labels import labels_of, open_picture
from offramp.common.errors import ConfigError, DataError


def test_labels_are_read(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\nb.png,1\na.png,0\n")
    assert labels_of(tmp_path, ["0", "1"]) == {"b.png": "1", "a.png": "0"}


@pytest.mark.parametrize("content", [b"file,label\na.png,7\n", b"file,label\n"])
def test_labels_that_are_not_classes_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match="expected labels among 0, 1"):
        labels_of(tmp_path, ["0", "1"])


def test_labels_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"labels\.csv"):
        labels_of(tmp_path / "nowhere", ["0"])
    with pytest.raises(ConfigError, match=r"expected labels\.csv .* or a folder for each class, among 0"):
        labels_of(tmp_path, ["0"])


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match="is a named pipe, expected a picture"):
        open_picture(tmp_path / "a.png")


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 2), 7).save(folder / name)
    return folder


def test_class_folders_are_labels(tmp_path: Path) -> None:
    pictures(tmp_path, "test/cat/1.png", "test/dog/1.png", "test/dog/old/2.png", "train/cat/2.png")
    found = labels_of(tmp_path / "test", ["cat", "cow", "dog"])
    assert found == {"cat/1.png": "cat", "dog/1.png": "dog", "dog/old/2.png": "dog"}
    with pytest.raises(ConfigError, match=r"has train and test parts, expected .*/test$"):
        labels_of(tmp_path, ["cat", "dog"])
    with pytest.raises(DataError, match="has the folder dog, expected classes of the bundle: cat"):
        labels_of(tmp_path / "test", ["cat"])
    pictures(tmp_path, "test/3.png")
    with pytest.raises(DataError, match=r"test/3\.png: is in no class folder"):
        labels_of(tmp_path / "test", ["cat", "dog"])


def test_class_folders_without_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="has no pictures"):
        labels_of(tmp_path, ["cat"])


def test_a_picture_keeps_its_colours(tmp_path: Path) -> None:
    Image.new("L", (3, 2), 7).save(tmp_path / "grey.png")
    assert open_picture(tmp_path / "grey.png").mode == "L"
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"no\.png"):
        open_picture(tmp_path / "no.png")
