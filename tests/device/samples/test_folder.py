"""The folder: bounded, of one device, and whole after whatever happened to it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from offramp.common.errors import ConfigError
from offramp.device.samples import folder as folders
from offramp.device.samples.folder import BLOCK, LOCK, Folder
from offramp.device.samples.record import NUMBERS


def opened(path: Path, blocks: int = 100) -> Folder:
    made = Folder(path, blocks * BLOCK)
    made.open()
    made.scan()
    return made


def add(folder: Folder, reason: str = "random", size: int = 10) -> bool:
    return folder.add(reason, "png", b"x" * size, lambda name: name.encode())


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir() if each.name != LOCK)


def test_a_sample_is_a_file_and_its_record_of_this_user_alone(tmp_path: Path) -> None:
    folder = opened(tmp_path / "kept")
    assert add(folder) and add(folder, "audit", BLOCK + 1)
    assert names(folder.path) == [
        *("000000000001-random.json", "000000000001-random.png"),
        *("000000000002-audit.json", "000000000002-audit.png"),
    ]
    assert (folder.path / "000000000002-audit.json").read_text() == "000000000002-audit.png"
    assert (folder.entries, folder.bytes) == (2, 5 * BLOCK)
    modes = {stat.S_IMODE(each.stat().st_mode) for each in folder.path.iterdir()}
    assert modes == {0o600} and stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    # The next run counts the same, and goes on with the numbers.
    folder.close()
    again = opened(folder.path)
    assert (again.entries, again.bytes) == (2, 5 * BLOCK)
    assert add(again) and "000000000003-random.png" in names(folder.path)


def test_the_oldest_of_the_reason_that_holds_most_goes_first(tmp_path: Path) -> None:
    folder = opened(tmp_path, blocks=12)
    for reason in ("random", "unknown", "unknown", "audit", "unknown", "unknown"):
        assert add(folder, reason)
    assert add(folder, "unknown") and add(folder, "unsure")
    stems = [name.removesuffix(".png") for name in names(tmp_path) if name.endswith(".png")]
    assert stems == [
        *("000000000001-random", "000000000004-audit", "000000000005-unknown", "000000000006-unknown"),
        *("000000000007-unknown", "000000000008-unsure"),
    ]
    assert folder.bytes == 12 * BLOCK
    assert not add(folder, size=12 * BLOCK) and folder.entries == 6


def test_so_many_samples_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "ENTRIES_MOST", 3)
    folder = opened(tmp_path)
    assert all(add(folder) for _ in range(5)) and folder.entries == 3


def test_what_a_power_cut_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    add(folder)
    folder.close()
    halves = {
        ".000000000002-audit.jpg.new": b"half",
        "000000000003-audit.jpg": b"without a record",
        "000000000004-audit.json": b"without a file",
        "000000000005-audit.jpg": b"",
        "000000000005-audit.json": b"of an empty file",
        "000000000006-audit.jpg": b"of an empty record",
        "000000000006-audit.json": b"",
    }
    others = {
        "notes.txt": b"mine",
        "000000000007-because.jpg": b"no reason of ours",
        "7-audit.jpg": b"no number of ours",
        f"{NUMBERS}-audit.jpg": b"too large a number",
        ".hidden.new": b"not ours",
    }
    for name, data in (halves | others).items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "000000000009-random.jpg").symlink_to("notes.txt")
    (tmp_path / "000000000010-random.jpg").mkdir()
    again = opened(tmp_path)
    assert again.entries == 1 and add(again)
    kept = set(names(tmp_path))
    assert not kept & halves.keys() and kept >= others.keys()
    # Its number is behind all that is there, also behind what is not a plain file.
    assert kept >= {"000000000009-random.jpg", "000000000010-random.jpg", "000000000011-random.png"}


def test_two_devices_with_one_folder_are_one_error(tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(ConfigError, match=r"^is in use by another process, expected a folder for this"):
        Folder(tmp_path, 1 << 20).open()
    first.close()
    opened(tmp_path).close()


def test_what_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"^is not a folder"):
        Folder(tmp_path / "file", 1 << 20).open()
    (tmp_path / "kept").mkdir()
    os.mkfifo(tmp_path / "kept" / LOCK)
    with pytest.raises(ConfigError, match="is not a plain file"):
        Folder(tmp_path / "kept", 1 << 20).open()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        Folder(tmp_path / "linked", 1 << 20).open()
    assert not (tmp_path / "elsewhere").exists()


def test_a_write_that_fails_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = opened(tmp_path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        add(folder)
    monkeypatch.undo()
    assert names(tmp_path) == [] and folder.bytes == 0
    assert add(folder) and len(names(tmp_path)) == 2
