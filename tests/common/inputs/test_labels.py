"""A table of files and labels: what is read, and what is wrong with it."""

import os
from pathlib import Path

import pytest

from offramp.common.errors import ConfigError, DataError
from offramp.common.inputs import labels
from offramp.common.inputs.labels import read_labels


def test_rows_keep_their_order_and_a_mark_in_front_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(b"\xef\xbb\xbffile,who,label\r\nb.png,x,1\r\na.png,y,0\r\n")
    assert read_labels(path) == [("b.png", "1"), ("a.png", "0")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name,label\na.png,0\n", "its first line has name, label; expected the columns file and label"),
        (b"", "its first line has nothing; expected"),
        (b"file,label\n\xff,0\n", "not a CSV file in UTF-8"),
        (b"file,label\na.png\n", "line 2: expected a file and a label"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_labels(path)


def test_a_table_is_one_plain_file_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"labels\.csv: No such file"):
        read_labels(tmp_path / "labels.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ConfigError, match="is a named pipe"):
        read_labels(tmp_path / "pipe.csv")
    (tmp_path / "long.csv").write_text("file,label\n" + "a,b\n" * 20)
    monkeypatch.setattr(labels, "TABLE_BYTES", 40)
    with pytest.raises(ConfigError, match=r"long\.csv"):
        read_labels(tmp_path / "long.csv")
