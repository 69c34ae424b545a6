"""Ways to have images classified."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from offramp.common.bundle.load import Bundle
from research.links.ways import thresholds_of


def test_thresholds_are_the_bundle_s_its_best_and_all(toy_bundle: Bundle) -> None:
    assert thresholds_of(toy_bundle) == [0.8, 1.0]
