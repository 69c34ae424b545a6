"""Photos in class folders, Parquet or CSV, divided where they are not; anything else is one clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from offramp.common.errors import ConfigError, DataError
from offramp.training.data.photos import Columns, read_photos

CLASSES = ("blue", "red")
COUNT = 20


def picture(path: Path, label: int, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (9, 5, 200 - number) if label == 0 else (200 - number, 5, 9)
    Image.new("RGB", (10, 10), colour).save(path)
    return path


def folders(root: Path, count: int = COUNT) -> Path:
    for label, name in enumerate(CLASSES):
        for number in range(count):
            picture(root / name / f"{number}.png", label, number)
    return root


def test_class_folders_are_divided_by_the_seed(tmp_path: Path) -> None:
    counted: list[int] = []

    def begin(total: int) -> object:
        counted.append(total)
        return lambda: counted.append(-1)

    found = read_photos(folders(tmp_path / "pets"), size=8, seed=1, counted=begin)  # type: ignore[arg-type]
    assert counted == [40, *[-1] * 40]
    data = found.data
    assert (data.name, data.classes) == ("pets", CLASSES)
    assert (len(data.train), len(data.validation), len(data.test)) == (26, 6, 8)
    assert found.notes == ("divided by seed 1: 20% to test, 15% to validate",)
    red = data.train.images[:, 0, 0, 0] > 100
    assert (red == data.train.labels).all()
    again = read_photos(tmp_path / "pets", size=8, seed=1).data
    other = read_photos(tmp_path / "pets", size=8, seed=2).data
    assert (again.test.images == data.test.images).all() and (other.test.images != data.test.images).any()


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_folders_that_are_divided_stay_so(tmp_path: Path, held_out: str) -> None:
    folders(tmp_path / "train")
    folders(tmp_path / held_out, 3)
    found = read_photos(tmp_path, size=8, seed=1)
    assert (len(found.data.train), len(found.data.validation), len(found.data.test)) == (34, 6, 6)
    assert found.notes == ("15% of train, by seed 1, validate",)


def rows(count: int, tmp_path: Path) -> pa.Table:
    values = []
    for number in range(count):
        path = picture(tmp_path / "one.png", number % 2, number)
        values.append({"image": {"bytes": path.read_bytes(), "path": f"{number}"}, "label": number % 2})
    return pa.Table.from_pylist(values)


def test_parquet_of_a_folder_or_alone(tmp_path: Path) -> None:
    table = rows(40, tmp_path)
    (tmp_path / "parquet").mkdir()
    pq.write_table(table, tmp_path / "parquet" / "train.parquet")
    pq.write_table(table.slice(0, 6), tmp_path / "parquet" / "test.parquet")
    both = read_photos(tmp_path / "parquet", size=8, seed=1, columns=Columns(classes=CLASSES)).data
    assert (len(both.train), len(both.test), both.classes) == (34, 6, CLASSES)
    alone = read_photos(tmp_path / "parquet" / "train.parquet", size=8, seed=1).data
    assert (len(alone.train), len(alone.test), alone.classes) == (26, 8, ("0", "1"))


def test_a_csv_of_files_and_labels(tmp_path: Path) -> None:
    lines = ["label,file"]
    for number in range(40):
        picture(tmp_path / "photos" / f"{number}.png", number % 2, number)
        lines.append(f"{CLASSES[number % 2]},{number}.png")
    (tmp_path / "photos" / "labels.csv").write_text("\n".join(lines))
    for path in (tmp_path / "photos", tmp_path / "photos" / "labels.csv"):
        data = read_photos(path, size=8, seed=1).data
        assert (len(data.train), len(data.test), data.classes) == (26, 8, CLASSES)
        assert (np.asarray(data.test.images[:, 0, 0, 0] > 100) == data.test.labels).all()


def test_what_is_not_photos_is_one_clear_error(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises((ConfigError, DataError)) as caught:
            read_photos(path, size=8, seed=1)
        text = str(caught.value)
        assert "\n" not in text and len(text) < 2000
        return text.replace(str(tmp_path), "…")

    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("hello")
    (tmp_path / "bad.csv").write_text("name,class\na.png,red\n")
    (tmp_path / "gone.csv").write_text("file,label\n" + "a.png,red\nb.png,blue\n" * 9)
    (tmp_path / "half.csv").write_text("file,label\na.png,\n")
    folders(tmp_path / "alone" / "train")
    folders(tmp_path / "broken")
    (tmp_path / "broken" / "red" / "3.png").write_bytes(b"no picture")
    assert refused(tmp_path / "nowhere").startswith("…/nowhere: no such folder or file; expected photos")
    assert refused(tmp_path / "empty") == "…/empty: has no class folders, Parquet files or labels.csv"
    assert refused(tmp_path / "file.txt").endswith("not a Parquet or CSV file (starts with 68 65 6c 6c)")
    assert refused(tmp_path / "bad.csv").endswith("has name, class; expected the columns file and label")
    assert "18 pictures cannot be used" in refused(tmp_path / "gone.csv")
    assert refused(tmp_path / "half.csv").endswith("line 2: expected a file and a label")
    assert refused(tmp_path / "alone").endswith("has the folder train alone; expected train and test, or one "
                                                "folder a class")  # fmt: skip
    assert "3.png): is not a picture (starts with 6e 6f 20 70)" in refused(tmp_path / "broken")


def test_bad_photos_can_be_left_out(tmp_path: Path) -> None:
    folders(tmp_path / "pets")
    (tmp_path / "pets" / "red" / "3.png").write_bytes(b"no picture")
    lines: list[str] = []
    data = read_photos(tmp_path / "pets", size=8, seed=1, skipped=lines.append).data
    assert len(data.train) + len(data.validation) + len(data.test) == 39 and len(lines) == 1
