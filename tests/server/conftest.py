"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from offramp.common.bundle.load import Bundle
from tests.processes import Processes, processes


@pytest.fixture
def run(toy_bundle: Bundle) -> Iterator[Processes]:
    """Starts programs on the toy bundle; they end with the test."""
    with processes(toy_bundle.path) as started:
        yield started


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """An empty directory for bundles."""
    path = tmp_path / "models"
    path.mkdir()
    return path
