"""What an accuracy costs."""

from pathlib import Path

import numpy as np

from research.pareto import costs, points

BUNDLE = Path(__file__).parents[3] / "models" / "digits-mobilenetv2-exit12"


def test_what_an_accuracy_costs_is_the_cheapest_point_that_reaches_it() -> None:
    right = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]], np.float32)
    sent = np.array([[1] * 4, [7] * 4, [5] * 4, [9] * 4], np.float32)
    found = costs.costs(points.Points(["a", "b", "c", "d"], sent, right), [0.5, 0.75, 1.0, 1.01])
    assert found.value.tolist() == [1, 5, 9, np.inf]
    assert found.best == ["a", "c", "d", None]
    # A resampling can only ever cost what some point costs.
    assert set(found.resampled[:, 1].tolist()) <= {1.0, 5.0, 9.0}
    assert len(set(found.resampled[:, 1].tolist())) > 1
