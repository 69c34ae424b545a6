"""Several bundles in service, and those that are retired."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.part.engine import Engine
from offramp.common.wire import frame
from offramp.server.batch import Batcher, Lane, Shape
from offramp.server.catalog import Catalog, Loaded, Served, Whole, message_bytes
from offramp.server.forward import Middle
from offramp.server.metrics import ServerMetrics
from offramp.server.plan import Plan
from offramp.server.upstream import Upstream
from tests import toy, toy_chain
from tests.processes import WAIT, Processes
from tests.server.client import Ended, still_serves, stream_to
from tests.server.variants import described, variant
from tests.toy import BundleFolder


class AnyTail:
    """Any tail; nothing here runs it."""

    def tail(self, symbols: NDArray[np.uint8], /) -> NDArray[np.float32]:
        raise AssertionError("nothing is sent")


PLAN = Plan(1, 1, max_batch=4, max_wait=0.25, curve={1: 50.0, 4: 100.0})


def in_loop(scenario: Callable[[Catalog, Batcher, ServerMetrics], Awaitable[None]]) -> None:
    """Run it with an empty catalog."""

    async def run() -> None:
        metrics = ServerMetrics()
        batcher = Batcher(metrics, workers=1, limit=8)
        try:
            await scenario(Catalog(batcher, metrics), batcher, metrics)
        finally:
            batcher.close()

    asyncio.run(run())


def test_a_bundle_is_served_by_its_digest_as_its_plan_says(toy_bundle: Bundle) -> None:
    async def scenario(catalog: Catalog, _: Batcher, metrics: ServerMetrics) -> None:
        served = catalog.add(Loaded(toy_bundle, AnyTail(), PLAN))
        assert catalog.digests() == [toy_bundle.digest] and catalog.get(toy_bundle.digest) is served
        assert served.lane.shape == Shape(max_batch=4, max_wait=0.25, frame_seconds=0.01)
        assert served.message_bytes == message_bytes(toy_bundle, pictures=False)
        value = metrics.registry.get_sample_value
        assert value("offramp_server_batch_limit", {"name": "toy"}) == 4
        assert value("offramp_server_batch_wait_seconds", {"name": "toy"}) == 0.25
        assert value("offramp_server_tail_rate", {"name": "toy"}) == 100

    in_loop(scenario)


class Hop:
    """A next hop that nothing is sent to."""

    def __init__(self) -> None:
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1


class Hops:
    """An upstream; keeps what it made."""

    def __init__(self) -> None:
        self.made: list[Hop] = []

    def forward(self, bundle: Bundle, middle: Middle) -> Hop:
        self.made.append(Hop())
        return self.made[-1]


def test_a_part_between_has_a_hop_of_its_own_that_ends_with_it(tmp_path: Path, toy_bundle: Bundle) -> None:
    first, second = (toy_chain.write(tmp_path / str(t), thresholds=t) for t in (0.5, 0.9))

    async def scenario(_: Catalog, batcher: Batcher, metrics: ServerMetrics) -> None:
        hops = Hops()
        catalog = Catalog(batcher, metrics, cast(Upstream, hops))
        catalog.add(Loaded(toy_bundle, AnyTail(), PLAN))
        for bundle in (first, second):
            catalog.add(Loaded(bundle, Middle(Engine(bundle), 2), PLAN))
        assert catalog.segments() == {
            toy_bundle.digest: ["tail"], first.digest: ["part 2"], second.digest: ["part 2"]
        }  # fmt: skip
        assert catalog.get(first.digest).codec.shape == toy.SHAPE

        async def end_streams(_: Served) -> None:
            """There are none."""

        catalog.retire(first.digest, end_streams)
        for _turn in range(3):
            await asyncio.sleep(0)
        assert [hop.closed for hop in hops.made] == [1, 0]
        await catalog.close()
        assert [hop.closed for hop in hops.made] == [1, 1]

    in_loop(scenario)


def test_a_retired_bundle_keeps_its_lane_until_its_streams_have_ended(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(catalog: Catalog, batcher: Batcher, metrics: ServerMetrics) -> None:
        gone = asyncio.Event()
        asked: list[Served] = []

        async def end_streams(served: Served) -> None:
            asked.append(served)
            await gone.wait()

        served = catalog.add(Loaded(toy_bundle, AnyTail(), PLAN, Whole(AnyTail(), PLAN)))
        removed: list[Lane] = []
        monkeypatch.setattr(batcher, "remove", removed.append)
        catalog.retire(toy_bundle.digest, end_streams)
        assert catalog.digests() == []
        assert metrics.registry.get_sample_value("offramp_server_bundles_retired_total") == 1
        await asyncio.sleep(0)
        assert asked == [served] and removed == []
        gone.set()
        await asyncio.sleep(0.01)
        assert removed == [served.lane, served.whole]

    in_loop(scenario)


def test_the_end_does_not_wait_for_a_retired_bundles_streams(toy_bundle: Bundle) -> None:
    async def scenario(catalog: Catalog, _: Batcher, __: ServerMetrics) -> None:
        async def end_streams(_: Served) -> None:
            await asyncio.Event().wait()

        catalog.add(Loaded(toy_bundle, AnyTail(), PLAN))
        catalog.retire(toy_bundle.digest, end_streams)
        async with asyncio.timeout(WAIT):
            await catalog.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    in_loop(scenario)


def test_pictures_are_answered_by_the_own_bundle_first(toy_bundle: Bundle, raw_bundle: Bundle) -> None:
    """The same classes and preprocessing: either could."""

    async def scenario(catalog: Catalog, _: Batcher, __: ServerMetrics) -> None:
        coded = catalog.add(Loaded(toy_bundle, AnyTail(), PLAN))
        assert catalog.pictures_of(coded) is None
        plain = catalog.add(Loaded(raw_bundle, AnyTail(), PLAN, Whole(AnyTail(), PLAN)))
        assert catalog.pictures_of(coded) is plain
        catalog.take_pictures(coded, Whole(AnyTail(), PLAN))
        assert catalog.pictures_of(coded) is coded and catalog.pictures_of(plain) is plain

    in_loop(scenario)


def test_a_bundle_with_other_classes_answers_no_pictures_of_this_one(
    toy_bundle: Bundle, tmp_path: Path
) -> None:
    path = variant(toy_bundle, tmp_path / "other", "other").path
    BundleFolder(path).edit("classes", value=["a", "b", "c"])

    async def scenario(catalog: Catalog, _: Batcher, __: ServerMetrics) -> None:
        catalog.add(Loaded(load_bundle(path), AnyTail(), PLAN, Whole(AnyTail(), PLAN)))
        assert catalog.pictures_of(catalog.add(Loaded(toy_bundle, AnyTail(), PLAN))) is None

    in_loop(scenario)


def test_streams_are_routed_by_digest(run: Processes, toy_bundle: Bundle, models: Path) -> None:
    both = [variant(toy_bundle, models / name, name) for name in ("a", "b")]
    other = variant(toy_bundle, models.parent / "c", "c")
    server = run.server(bundle=models)
    assert described(server) == {"a", "b"}
    for bundle in both:
        still_serves(server.address, bundle)
    with stream_to(server.address, toy_bundle) as stream:
        stream.send(frame.hello(toy_bundle.digest))
        with pytest.raises(Ended) as ended:
            stream.receive()
    assert ended.value.status == "FAILED_PRECONDITION"
    assert all(bundle.digest.hex() in ended.value.details for bundle in (*both, toy_bundle))
    assert server.drain() == 0
    again = run.server("--bundle", other.path, bundle=models)
    assert described(again) == {"a", "b", "c"}


def test_devices_that_stay_on_a_retired_bundle_are_ended(
    run: Processes, toy_bundle: Bundle, models: Path
) -> None:
    old = variant(toy_bundle, models / "old", "old")
    variant(toy_bundle, models / "new", "new")
    server = run.server("--reload-interval", 3600, "--grace", 0.3, bundle=models)
    with stream_to(server.address, old) as stream:
        stream.hello()
        shutil.rmtree(models / "old")
        server.send(signal.SIGHUP)
        asked = stream.receive()
        assert asked is not None and asked.HasField("draining")
        with pytest.raises(Ended) as ended:
            stream.receive()
    assert (ended.value.status, ended.value.details) == (
        grpc.StatusCode.UNAVAILABLE.name,
        "the stream was asked to end and did not",
    )
    assert server.drain() == 0
