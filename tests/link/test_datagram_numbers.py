"""Sequence numbers: none twice, also after a crash."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from offramp.common.errors import ConfigError, OutputError
from offramp.link.datagram_numbers import BLOCK, Numbers


def test_without_a_file_they_go_round() -> None:
    numbers = Numbers()
    first = numbers.take()
    taken = [numbers.take() for _ in range(65_536)]
    assert taken[-1] == first and set(taken) == set(range(65_536))


def test_with_a_file_each_once(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    numbers = Numbers(path)
    assert [numbers.take() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ConfigError, match="another process has it"):
        Numbers(path)
    numbers.close()
    numbers.close()
    assert path.read_text() == "0000000003\n" and path.stat().st_mode & 0o777 == 0o600
    again = Numbers(path)
    assert again.take() == 3
    again.close()
    with pytest.raises(ConfigError, match="is closed"):
        again.take()


def test_after_a_crash_it_goes_on_above(tmp_path: Path) -> None:
    path, copy = tmp_path / "numbers", tmp_path / "copy"
    numbers = Numbers(path)
    used = [numbers.take() for _ in range(BLOCK + 5)]
    copy.write_bytes(path.read_bytes())
    numbers.close()
    after = Numbers(copy)
    assert after.take() > used[-1]
    after.close()


def test_the_end(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_text(f"{(1 << 32) - 1}\n")
    numbers = Numbers(path)
    assert numbers.take() == (1 << 32) - 1
    with pytest.raises(ConfigError, match="all numbers are used, expected another key"):
        numbers.take()
    numbers.close()


@pytest.mark.parametrize("text", ["x", "-1", "4294967297", "1 2", "\u0665"])
def test_files_that_are_not_ours(tmp_path: Path, text: str) -> None:
    path = tmp_path / "numbers"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"--sequence-file .*expected one number of 0 … 4294967296"):
        Numbers(path)
    assert path.read_text() == text
    with pytest.raises(ConfigError, match="cannot be opened"):
        Numbers(tmp_path)


def test_a_disk_that_fails(tmp_path: Path) -> None:
    numbers = Numbers(tmp_path / "numbers")
    assert numbers._descriptor is not None
    read_only = os.open(tmp_path / "numbers", os.O_RDONLY)
    os.dup2(read_only, numbers._descriptor)
    os.close(read_only)
    with pytest.raises(OutputError, match="cannot be written"):
        numbers.take()
