"""Fixtures of the sources' tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.device.sources.reading import Reader


@pytest.fixture
def watching() -> Iterator[Any]:
    """Each call starts a reader of these paths; all stop with the test."""
    readers: list[Reader] = []

    def make(*paths: Path | str, watch: bool = False) -> Reader:
        readers.append(Reader(*paths, watch=watch))
        return readers[-1]

    yield make
    for reader in readers:
        reader.stop()
