"""All parts of a chain in one process: what a device, gateways and a server say together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from offramp.common.bundle.load import Bundle
from offramp.common.errors import BundleError
from offramp.common.part.answer import both_exits
from offramp.common.part.chain import run_chain
from offramp.common.part.engine import Engine
from tests import toy, toy_chain

IMAGES = toy.images(60, seed=2)


@pytest.fixture(scope="module", params=[3, 4])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_chain.write(tmp_path_factory.mktemp("chain"), request.param)


def test_each_part_answers_what_its_exit_is_sure_of_and_the_last_one_the_rest(chain: Bundle) -> None:
    engine, parts = Engine(chain), len(chain.manifest.parts)
    answered = run_chain(engine, IMAGES, [0.8] * (parts - 1))

    assert set(answered.part) == set(range(1, parts + 1))
    inputs, left = IMAGES, np.arange(len(IMAGES))
    for number in range(1, parts + 1):
        symbols, probabilities = engine.part(number, inputs)
        assert probabilities is not None and (symbols is None) == (number == parts)
        sure = probabilities.max(axis=1) > 0.8 if number < parts else np.ones(len(left), bool)
        assert (answered.part[left[sure]] == number).all()
        assert (answered.best[left[sure]] == probabilities[sure].argmax(axis=1)).all()
        np.testing.assert_allclose(answered.probability[left[sure]], probabilities[sure].max(axis=1), 1e-6)
        left = left[~sure]
        if symbols is not None:
            inputs = symbols[~sure]


def test_no_exit_is_sure_enough_for_1_and_each_for_0(chain: Bundle) -> None:
    engine, parts = Engine(chain), len(chain.manifest.parts)

    assert set(run_chain(engine, IMAGES, [1.0] * (parts - 1)).part) == {parts}
    assert set(run_chain(engine, IMAGES, [1.0] * (parts - 2) + [0.0]).part) == {parts - 1}
    assert set(run_chain(engine, IMAGES, [0.0] * (parts - 1)).part) == {1}


def test_the_bundles_thresholds_decide_by_default(chain: Bundle) -> None:
    engine = Engine(chain)
    given = run_chain(engine, IMAGES, [0.8] * (len(chain.manifest.parts) - 1))

    assert (run_chain(engine, IMAGES).part == given.part).all()


def together_with(own: NDArray[np.float32], behind: NDArray[np.float64]) -> NDArray[np.float64]:
    """What an exit and the answer of those behind it say, float64 [K]."""
    best, probability = np.array([behind.argmax()]), np.array([behind.max()], np.float32)
    return np.asarray(both_exits(own[None], best, probability)[0])


def test_all_exits_that_were_heard_of_answer_together_from_the_back_to_the_front(tmp_path: Path) -> None:
    bundle = toy_chain.write(tmp_path, 3, sent_answer="both")
    engine = Engine(bundle)
    answered = run_chain(engine, IMAGES, [1.0, 0.8])

    symbols, first = engine.part(1, IMAGES)
    assert symbols is not None and first is not None
    following, second = engine.part(2, symbols)
    assert following is not None and second is not None
    _, last = engine.part(3, following)
    assert last is not None
    for index, part in enumerate(answered.part):
        said = second[index].astype(np.float64)
        if part == 3:
            said = together_with(second[index], last[index].astype(np.float64))
        together = together_with(first[index], said)
        assert answered.best[index] == together.argmax()
        assert answered.probability[index] == pytest.approx(together.max(), abs=1e-5)
    assert {2, 3} == set(answered.part)


def test_as_many_thresholds_are_needed_as_there_are_exits(chain: Bundle) -> None:
    with pytest.raises(ValueError, match=r"^1 thresholds, expected one for each of the [23] exits$"):
        run_chain(Engine(chain), IMAGES, [0.5])


def test_each_crossing_has_a_codec_of_its_own(chain: Bundle) -> None:
    symbols, _ = Engine(chain).part(1, IMAGES[:1])
    for number in range(2, len(chain.manifest.parts) + 1):
        assert symbols is not None
        codec = chain.codec_of(number - 2)
        assert (codec.decode(*codec.encode(symbols[0])) == symbols[0]).all()
        symbols, _ = Engine(chain).part(number, symbols)


def test_a_part_that_is_not_there_is_named(toy_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"part 3: has parts 1 … 2$"):
        Engine(toy_bundle).part(3, IMAGES)
