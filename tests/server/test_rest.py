"""Parts of a chain that one server runs itself, asked for by devices and by gateways."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.errors import BundleError
from offramp.common.part.chain import run_chain
from offramp.common.part.engine import Engine
from offramp.device import Device, LinkOptions
from offramp.server.batch import Job
from offramp.server.loader import Loader
from offramp.server.metrics import ServerMetrics
from offramp.server.rest import Finish, Rest
from tests import toy, toy_chain
from tests.processes import Processes, processes
from tests.server.test_forward import Owner
from tests.server.variants import described_segments

IMAGES = toy.images(40, seed=2)


@pytest.fixture(scope="module", params=["server", "both"])
def four(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_chain.write(tmp_path_factory.mktemp("chain") / "toy", 4, sent_answer=request.param)


def test_each_job_has_the_chain_s_answer_and_the_part_that_gave_it(four: Bundle) -> None:
    engine = Engine(four)
    symbols, _ = engine.part(1, IMAGES)
    assert symbols is not None
    metrics = ServerMetrics()
    finish = Finish(Rest(engine, 2), metrics)
    finish.check_room()
    answers = finish.infer(symbols, metrics.inference_seconds)
    expected = run_chain(engine, symbols, first=2)
    owner, gone = Owner(), Owner()
    gone.gone = True
    jobs = [Job(owner, n, each, 0, math.inf) for n, each in enumerate(symbols)]
    finish.deliver(jobs, answers)
    assert [said[1] for said in owner.said] == expected.best.tolist()
    # 0: the part that was asked for.
    assert [said[3] for said in owner.said] == np.where(expected.part == 2, 0, expected.part).tolist()
    for job in jobs:
        job.owner = gone
    finish.deliver(jobs, answers)
    counts = [
        metrics.registry.get_sample_value("offramp_server_part_answers_total", {"part": str(part)})
        for part in (2, 3, 4)
    ]
    assert counts == [(expected.part == part).sum() for part in (2, 3, 4)] and all(counts)


def test_the_first_exit_s_threshold_may_be_set_and_measuring_runs_all_parts(four: Bundle) -> None:
    engine = Engine(four)
    symbols, _ = engine.part(1, IMAGES)
    assert symbols is not None
    assert (Rest(engine, 2, threshold=0.0).run(symbols).part == 2).all()
    assert set(Rest(engine, 2, threshold=1.0).run(symbols).part) == {3, 4}
    tail = Rest(engine, 3).tail
    following, _ = engine.part(2, symbols)
    assert following is not None
    last, _ = engine.part(3, following)
    assert last is not None
    np.testing.assert_allclose(tail(following), engine.tail(last))


def loader(**options: object) -> Loader:
    fixed = {"workers": 1, "max_batch": 4, "max_wait": 0.0, "message_bytes": None}
    return Loader(1, **fixed, **options)  # type: ignore[arg-type]


def test_a_bundle_is_loaded_from_its_part_to_the_last_one(four: Bundle) -> None:
    loaded = loader()(four)
    assert [(each.part, type(each.tail)) for each in (loaded, *loaded.later)] == [
        (2, Rest),
        (3, Rest),
        (4, Engine),
    ]
    last = loader(part="last")(four)
    assert (last.part, last.later) == (4, [])
    with pytest.raises(BundleError, match=r"--exit-threshold: part 4 is the last one, which has no exit$"):
        loader(part="last", exit_threshold=0.5)(four)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Processes]:
    with processes(toy_chain.write(tmp_path / "toy").path) as started:
        yield started


def test_a_device_and_a_gateway_ask_one_server_for_their_parts(run: Processes) -> None:
    server = run.server()
    gateway = run.server("--upstream", server.address)
    assert [described_segments(each) for each in (server, gateway)] == [{"part 2", "tail"}, {"part 2"}]
    bundle = load_bundle(run.bundle)
    engine = Engine(bundle)
    for first in (0.6, 1.0):
        expected = run_chain(engine, IMAGES, [first, 0.8])
        for each in (server, gateway):
            options = LinkOptions(timeout=60)
            with Device(bundle, server=each.address, threshold=first, link=options) as device:
                results = list(device.map(IMAGES))
            assert [r.class_index for r in results] == expected.best.tolist()
            assert [r.part for r in results] == expected.part.tolist()
            assert [r.confidence for r in results] == pytest.approx(expected.probability, abs=2e-6)
            assert {r.server for r in results if r.part > 1} == {each.address}
