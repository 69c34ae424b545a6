"""Fixtures of the fault tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from offramp.common.bundle.load import Bundle
from tests.processes import Processes, processes


@pytest.fixture
def run(toy_bundle: Bundle) -> Iterator[Processes]:
    """Starts programs on the toy bundle; they end with the test."""
    with processes(toy_bundle.path) as started:
        yield started
