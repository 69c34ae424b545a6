"""What is in a folder of photos, and what is wrong with it."""

from pathlib import Path

import pytest
from PIL import Image

from offramp.common.errors import DataError
from offramp.training.data.survey import survey


def photo(path: Path, size: tuple[int, int] = (10, 20), level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, 0, 0)).save(path)
    return path


def test_classes_sizes_and_what_is_wrong(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for number in range(4):
        photo(root / "cat" / f"{number}.png", (10 + number, 40), number)
        photo(root / "dog" / "old" / f"{number}.png", level=10 + number)
    photo(root / "cat" / "again.png", (10, 40), 0)
    photo(root / "loose.png")
    (root / "dog" / "broken.jpg").write_bytes(b"nothing")
    counted: list[int] = []

    def count(total: int) -> object:
        counted.append(total)
        return lambda: counted.append(-1)

    found = survey(root, counted=count)  # type: ignore[arg-type]
    assert found.counts == {"cat": (5,), "dog": (4,)} and found.parts == ("train",) and found.photos == 9
    assert found.sides == (10, 10, 13)
    assert len(found.problems) == 1 and "broken.jpg" in found.problems[0]
    assert (found.twins, found.leaked) == (1, 0)
    assert found.notes == (
        "1 images in photos are in no class folder: left out",
        "images in folders below dog count as that class",
    )
    assert counted == [10, *[-1] * 10]


def test_a_wrapper_is_said(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        photo(tmp_path / "photos" / "inner" / name / "1.png")
    (tmp_path / "photos" / "__MACOSX").mkdir()
    assert survey(tmp_path / "photos").notes == ("read from its only folder, inner",)


def test_photos_in_both_parts_are_counted(tmp_path: Path) -> None:
    for part in ("train", "test"):
        photo(tmp_path / part / "cat" / "1.png", level=1)
        photo(tmp_path / part / "dog" / "1.png", level=len(part))
    found = survey(tmp_path)
    assert (found.parts, found.counts["cat"], found.leaked) == (("train", "test"), (1, 1), 1)


def test_nothing_that_can_be_used_is_an_error(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"has no photo that can be used: .*1\.png"):
        survey(tmp_path)
