"""``offramp samples``: lists, chooses evenly, and exports what ``offramp split`` reads."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from offramp.cli.samples import RECORDS, folder_of, main
from offramp.common.errors import ConfigError, DataError
from offramp.common.inputs.labels import UNSORTED
from offramp.device.samples.folder import Folder
from offramp.device.samples.record import Decision, Record
from offramp.training.data.photos import read_photos
from tests import toy


def keep(folder: Folder, pictures: Path, at: int, label: str, *reasons: Any, unknown: bool = False) -> None:
    path = pictures / f"{at:02}.png"
    data = path.read_bytes()

    def record(file: str) -> bytes:
        return Record(
            file=file,
            size=len(data),
            name=str(path),
            index=at,
            time="2031-05-06T07:08:09Z",
            reasons=list(reasons),
            label=label,
            class_index=1,
            confidence=0.75,
            source="early_exit",
            unknown=unknown,
            early=Decision(label=label, class_index=1, confidence=0.75),
            audit=Decision(label="metal", class_index=2, confidence=0.5) if "audit" in reasons else None,
            bundle="toy",
            digest="ab" * 32,
        ).text()

    assert folder.add(reasons[0], "png", data, record)


@pytest.fixture
def kept(tmp_path: Path, toy_images: Path) -> Path:
    """12 glass, 4 of them audits; 4 metal, one of them twice; one unknown."""
    folder = Folder(tmp_path / "kept", 1 << 20)
    folder.open()
    folder.scan()
    for at in range(12):
        keep(folder, toy_images, at, "glass", *(("random", "audit") if at < 4 else ("random",)))
    for at in (12, 13, 13, 15):
        keep(folder, toy_images, at, "metal", "unsure")
    keep(folder, toy_images, 14, "metal", "unknown", unknown=True)
    folder.close()
    return folder.path


def listed(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_table_has_a_line_for_each(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(kept)]) == 0
    head, first, *_, last = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["time", "reasons", "label", "conf."]
    assert first.split()[:7] == [
        *("2031-05-06T07:08:09Z", "random,audit", "glass", "0.7500", "early_exit", "metal"),
        "000000000001-random.png",
    ]
    assert last.startswith(f"{kept}: 17 of 17 samples") and "12 random, 4 audit, 1 unknown, 4 unsure" in last


def test_reasons_and_numbers_are_chosen(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys, kept, "--reason", "audit,unknown")
    assert [each["index"] for each in found["samples"]] == [0, 1, 2, 3, 14] and found["unusable"] == []
    found = listed(capsys, kept, "--each", 2)
    counts = Counter((each["label"], reason) for each in found["samples"] for reason in each["reasons"])
    assert counts[("metal", "unsure")] == 2 and counts[("metal", "unknown")] == 1
    # An audit is one of the random ones too.
    assert counts[("glass", "audit")] == 2 <= counts[("glass", "random")] <= 4
    assert found == listed(capsys, kept, "--each", 2) != listed(capsys, kept, "--each", 2, "--seed", 1)


def test_what_is_exported_is_what_split_reads(
    kept: Path, toy_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "to-label"
    found = listed(capsys, kept, "--export", out)
    assert found["exported"] == {"glass": 12, "metal": 3, UNSORTED: 1}
    originals = {path.read_bytes() for path in sorted(toy_images.glob("*.png"))[:16]}
    assert {path.read_bytes() for path in out.glob("*/*.png")} == originals
    lines = [json.loads(line) for line in (out / RECORDS).read_text().splitlines()]
    assert len(lines) == 16 and all((out / line["exported"]).is_file() for line in lines)
    photos = read_photos(out, size=toy.SIDE, seed=0)
    assert photos.data.classes == ("glass", "metal")
    assert f"{UNSORTED} is not a class: left out" in photos.notes
    parts = (photos.data.train, photos.data.validation, photos.data.test)
    assert sum(len(part.labels) for part in parts) == 15
    with pytest.raises(ConfigError, match=r"^--export .*to-label: exists, expected a new folder"):
        main([str(kept), "--export", str(out)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "to-label"]


@pytest.mark.parametrize(
    ("label", "folder"),
    [
        ("glass", "glass"),
        ("Straße 7", "Straße 7"),
        *((bad, UNSORTED) for bad in ("", ".", "..", "../up", "/etc", "a/b", "a\\b", ".hidden", " x", "x.")),
        *((bad, UNSORTED) for bad in ("train", "Test", "val", "a\0b", "a\nb", "x" * 256, "é" * 200, "c:")),
        *((bad, UNSORTED) for bad in (UNSORTED, RECORDS, "__MACOSX")),
    ],
)
def test_a_label_never_leaves_the_folder(label: str, folder: str) -> None:
    assert folder_of(label) == folder


def test_a_hostile_folder_gives_its_good_samples_alone(
    kept: Path, toy_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes((toy_images / "20.png").read_bytes())
    first = json.loads((kept / "000000000001-random.json").read_text())

    def plant(number: int, **changed: Any) -> str:
        stem = f"{number:012}-audit"
        given = first | {"file": f"{stem}.png", "size": secret.stat().st_size} | changed
        (kept / f"{stem}.json").write_text(json.dumps(given))
        return stem

    (kept / f"{plant(51)}.png").symlink_to(secret)
    plant(52, file="../secret.png")
    plant(53, file=str(secret))
    plant(54)
    (kept / f"{plant(55, size=9)}.png").write_bytes(b"longer than it says")
    (kept / f"{plant(56, label='../../up')}.png").write_bytes((toy_images / "21.png").read_bytes())
    (kept / f"{plant(57, label=chr(0xD800))}.png").write_bytes(b"not text")
    (kept / "000000000058-audit.json").write_text("[" * 5000)
    (kept / "000000000059-audit.json").symlink_to(kept / "000000000001-random.json")
    (kept / "000000000060-audit.json").mkdir()
    (kept / "../x.json").write_text("{}")
    out = tmp_path / "out"
    found = listed(capsys, kept, "--export", out)
    # By its record one more is listed, whose file is a link, one without a file, and one of another size.
    assert found["exported"] == {"glass": 12, "metal": 3, UNSORTED: 2} and len(found["unusable"]) == 9
    assert all("\n" not in line for line in found["unusable"])
    assert secret.read_bytes() not in {path.read_bytes() for path in out.rglob("*.png")}
    assert not any(path.is_symlink() for path in out.rglob("*"))


def test_what_is_not_there_is_one_error(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: No such file or directory, expected a folder that edge-dev"):
        main([str(tmp_path / "none")])
    with pytest.raises(ConfigError, match=r"^--reason 'why': expected random, audit, unknown, unsure$"):
        main([str(kept), "--reason", "why"])
    with pytest.raises(ConfigError, match=r"--each: '0', expected a whole number"):
        main([str(kept), "--each", "0"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: has no sample to export$"):
        main([str(tmp_path / "empty"), "--export", str(tmp_path / "out")])
    with pytest.raises(ConfigError, match=r"--export .*: No such file or directory, expected a place"):
        main([str(kept), "--export", str(tmp_path / "no" / "out")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "kept"]
