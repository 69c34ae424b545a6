"""Two exits' answers taken together: what the arithmetic says, and what a wrong server can do with it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.common.part.answer import both_exits


def together(early: list[float], best: int, probability: float) -> list[float]:
    found = both_exits(np.array([early], np.float32), np.array([best]), np.array([probability], np.float32))
    return [float(share) for share in found[0]]


def test_each_class_has_the_geometric_mean_of_what_both_give_it() -> None:
    """The server's other 0.4 are shared out as 0.5 to 0.3."""
    server = np.array([0.4 * 0.5 / 0.8, 0.6, 0.4 * 0.3 / 0.8])
    joint = np.sqrt(np.array([0.5, 0.2, 0.3]) * server)
    assert together([0.5, 0.2, 0.3], 1, 0.6) == pytest.approx(list(joint / joint.sum()), rel=1e-6)


def test_the_surer_exit_prevails() -> None:
    assert np.argmax(together([0.8, 0.1, 0.1], 1, 0.5)) == 0
    assert np.argmax(together([0.5, 0.3, 0.2], 1, 0.9)) == 1


def test_exits_that_agree_are_not_overruled() -> None:
    """Nor by classes that the server is said to have left more than what it named."""
    assert np.argmax(together([0.35, 0.34, 0.31], 0, 0.34)) == 0


def test_rows_do_not_see_each_other() -> None:
    rng = np.random.default_rng(0)
    early = rng.dirichlet(np.ones(7), 50).astype(np.float32)
    best, probability = rng.integers(0, 7, 50), rng.random(50).astype(np.float32)
    together = both_exits(early, best, probability)
    for row in range(50):
        alone = both_exits(early[row : row + 1], best[row : row + 1], probability[row : row + 1])[0]
        assert int(alone.argmax()) == int(together[row].argmax())


@given(st.integers(2, 12), st.data())
def test_any_reply_gives_probabilities(classes: int, data: st.DataObject) -> None:
    share = st.floats(0, 1, width=32)
    weights = data.draw(st.lists(share, min_size=classes, max_size=classes))
    early = np.array(weights, np.float32) / max(np.float32(1e-30), np.float32(sum(weights)))
    best, probability = data.draw(st.integers(0, classes - 1)), data.draw(share)
    found = together(early.tolist(), best, probability)
    assert sum(found) == pytest.approx(1)
    assert all(0 <= one <= 1 for one in found)
    if probability == 1 and early[best] > 0.01:
        assert int(np.argmax(found)) == best
