"""Fixtures of the device's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from offramp.common.bundle import Bundle
from tests import toy
from tests.processes import Processes, processes


@pytest.fixture
def run(toy_bundle: Bundle) -> Iterator[Processes]:
    """Starts programs on the toy bundle; they end with the test."""
    with processes(toy_bundle.path) as started:
        yield started


@pytest.fixture(scope="session")
def toy_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ``.npz`` with 300 images; only read it."""
    path = tmp_path_factory.mktemp("npz") / "images.npz"
    np.savez_compressed(path, images=toy.images(300, seed=3).transpose(0, 2, 3, 1))
    return path
