"""A whole model in the place of a tail."""

from __future__ import annotations

import numpy as np

from offramp.common.part.engine import Engine
from offramp.server.whole import WholeModel
from tests import toy


def test_its_answer_is_the_tails_for_what_the_head_gives(toy_engine: Engine) -> None:
    images = toy.images(5)
    symbols, _ = toy_engine.head(images)
    found = WholeModel(toy_engine).tail(images)
    assert found.shape == (5, 3)
    np.testing.assert_array_equal(found, toy_engine.tail(symbols))
