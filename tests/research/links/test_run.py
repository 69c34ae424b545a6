"""The arithmetic of a run over a link."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from research.links.run import sample, weigh


def test_a_sample_is_spread_over_all_that_are_chosen() -> None:
    chosen = np.arange(100) % 2 == 0
    assert sample(chosen, 50) == list(range(0, 100, 2))
    assert sample(chosen, 3) == [0, 48, 98]
    assert sample(np.zeros(4, bool), 3) == []


def test_means_weigh_what_is_sent_by_its_share() -> None:
    assert weigh(0.25, 100.0, 4.0) == 28.0
    assert weigh(0.0, 0.0, 4.0) == 4.0
