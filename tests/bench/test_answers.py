"""Answers for many images are those of one at a time."""

import numpy as np

from offramp.bench import answers
from offramp.common.bundle.load import Bundle
from offramp.common.part.engine import Engine
from tests import toy


def test_parts_of_many_images_are_answered_as_one_would_be(toy_bundle: Bundle) -> None:
    engine = Engine(toy_bundle)
    images = toy.images(answers._BATCH + 3, seed=2)

    symbols, early = answers.head_answers(engine, images)
    whole = answers.whole_answers(engine, images)

    assert len(symbols) == len(early) == len(whole.best) == len(images)
    for index in (0, answers._BATCH - 1, answers._BATCH, len(images) - 1):
        own, own_early = engine.head(images[index][None])
        assert np.array_equal(own[0], symbols[index])
        assert np.allclose(own_early[0], early[index])
        assert engine.tail(own)[0].argmax() == whole.best[index]
