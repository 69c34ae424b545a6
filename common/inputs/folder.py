"""The files of a folder and its sub-folders, whatever their entries are.

An entry that cannot be looked at is an item of its own, so that it is counted and named and the others are
still found. Links to folders are not followed: a circle of them would have no end.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from offramp.common.errors import printable
from offramp.common.inputs.headers import EXTENSIONS

KINDS = 32
"""Most kinds of files that are counted apart; the rest count as ``other``. A stranger chooses the names."""
KIND_CHARACTERS = 12


@dataclass
class Found:
    """What one look at a folder found."""

    files: list[Path] = field(default_factory=list)
    """By path; also files that cannot be opened: their readers say why."""
    faults: dict[Path, OSError] = field(default_factory=dict)
    """Folders that could not be listed, or not to their end."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """Files of other kinds, by suffix; ``""`` for those without one."""


def find(folder: Path, suffixes: Collection[str] = EXTENSIONS) -> Found:
    """Look at a folder and all below it for files of these kinds.

    Raises nothing for what the file system answers.
    """
    found = Found()
    folders = [folder]
    while folders:
        current = folders.pop()
        try:
            with os.scandir(current) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        if not entry.is_symlink():
                            folders.append(current / entry.name)
                    elif suffix_of(entry.name) in suffixes:
                        found.files.append(current / entry.name)
                    else:
                        count_kind(found.passed_over, entry.name)
        except OSError as error:
            found.faults[current] = error
    found.files.sort()
    return found


def suffix_of(name: str) -> str:
    """A file name's suffix, in small letters."""
    return Path(name).suffix.lower()


def count_kind(kinds: Counter[str], name: str) -> None:
    """Count a file by its suffix, in a bounded number of kinds."""
    kind = printable(suffix_of(name), KIND_CHARACTERS)
    kinds[kind if kind in kinds or len(kinds) < KINDS else "other"] += 1


def kinds_of(passed_over: Counter[str]) -> str:
    """``3 .txt, 1 without a suffix``: the most frequent first."""
    return ", ".join(f"{count:,} {kind or 'without a suffix'}" for kind, count in passed_over.most_common())


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Also where a link leads to one. What cannot be followed is taken for a file: to read it says why."""
    try:
        return entry.is_dir()
    except OSError:
        return False
