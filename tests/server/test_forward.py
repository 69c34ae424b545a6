"""A gateway between devices and a server: real processes, and what they say is what one process says."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from offramp.common.bundle.load import Bundle
from offramp.common.codec.activation import CodecId
from offramp.common.errors import OverloadError
from offramp.common.part.chain import run_chain
from offramp.common.part.engine import Engine
from offramp.device import Device, LinkOptions
from offramp.link.link import Answer, Cause, Link, Outcome, Refusal
from offramp.server.batch import Answers, Job
from offramp.server.forward import Forward, ForwardMetrics, Middle
from offramp.server.metrics import ServerMetrics
from tests import toy, toy_chain
from tests.processes import Processes, Server, processes
from tests.server.test_live import state_of

IMAGES = toy.images(40, seed=2)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_chain.write(tmp_path_factory.mktemp("chain") / "toy")


@pytest.fixture(scope="module")
def engine(chain: Bundle) -> Engine:
    return Engine(chain)


@pytest.fixture
def run(chain: Bundle) -> Iterator[Processes]:
    with processes(chain.path) as started:
        yield started


def says(
    bundle: Bundle, gateway: Server, threshold: float, window: int = 16
) -> tuple[list[int], list[int], list[float]]:
    """A device's answers: classes, parts, confidences."""
    options = LinkOptions(timeout=60, window=window)
    with Device(bundle, server=gateway.address, threshold=threshold, link=options) as device:
        results = list(device.map(IMAGES))
    assert not any(each.cut_short or each.source == "fallback" for each in results)
    return (
        [each.class_index for each in results],
        [each.part for each in results],
        [each.confidence for each in results],
    )


def expects(engine: Engine, *thresholds: float) -> tuple[list[int], list[int], Any]:
    answered = run_chain(engine, IMAGES, thresholds)
    return answered.best.tolist(), answered.part.tolist(), pytest.approx(answered.probability, abs=2e-6)


def answers(metrics: dict[str, float] | ServerMetrics) -> list[float]:
    """By a gateway's exit, by those behind it, and by its exit because they did not."""
    by = ("exit", "upstream", "fallback")
    if isinstance(metrics, dict):
        return [metrics[f"offramp_server_answers_total{{by={each}}}"] for each in by]
    value = metrics.registry.get_sample_value
    return [value("offramp_server_answers_total", {"by": each}) or 0.0 for each in by]


class FakeLink:
    """Keeps what is handed in, until a test says what becomes of it."""

    timeout = 2.0

    def __init__(self) -> None:
        self.frames: list[tuple[float, Callable[[Outcome], None]]] = []
        self.traces: list[bytes] = []

    def offload(
        self, _: CodecId, __: bytes, done: Callable[[Outcome], None], *, deadline: float, trace: bytes
    ) -> None:
        self.frames.append((deadline - time.monotonic(), done))
        self.traces.append(trace)


class Owner:
    """Owns jobs, and keeps what it is answered."""

    def __init__(self) -> None:
        self.gone = False
        self.said: list[tuple[int, int, float, int, bool]] = []

    def answered(
        self, job: Job, class_index: int, probability: float, part: int = 0, fallback: bool = False
    ) -> None:
        self.said.append((job.sequence, class_index, round(probability, 3), part, fallback))

    def refused(self, job: Job, error: Exception) -> None:
        raise AssertionError(error)


def in_loop(scenario: Callable[[Forward, FakeLink, Owner], Awaitable[None]], engine: Engine) -> ServerMetrics:
    metrics, link = ServerMetrics(), FakeLink()
    counts = ForwardMetrics(metrics.registry)

    async def body() -> None:
        await scenario(Forward(Middle(engine, 2, 0.8), cast(Link, link), 3, counts), link, Owner())

    asyncio.run(body())
    return metrics


def batch(owner: Owner, *seconds: float, sure: bool = False) -> tuple[list[Job], Answers]:
    """Jobs numbered from 1 whose devices wait so long, and what the part says of them: class 1 at 0.5."""
    now = time.perf_counter()
    jobs = [
        Job(owner, n, np.zeros(1, np.uint8), now, now + left, b"%d" % n) for n, left in enumerate(seconds, 1)
    ]
    count = len(jobs)
    coded: list[tuple[CodecId, bytes] | None] = [None if sure else (CodecId.RAW, b"x")] * count
    return jobs, Answers([1] * count, [0.5] * count, coded, np.full((count, 3), 1 / 3, np.float32))


def test_upstream_gets_a_share_of_what_a_frame_has_left_and_the_exit_answers_for_it(engine: Engine) -> None:
    async def scenario(forward: Forward, link: FakeLink, owner: Owner) -> None:
        forward.deliver(*batch(owner, 1.0, 60.0, math.inf))
        assert [left for left, _ in link.frames] == pytest.approx([0.8, 2.0, 2.0], abs=0.1)
        assert link.traces == [b"1", b"2", b"3"]
        with pytest.raises(OverloadError, match=r"^3 frames wait for the upstream server already") as full:
            forward.check_room()
        assert full.value.retry_after_ms >= 20
        outcomes: tuple[Outcome, ...] = (
            Refusal("no", Cause.TIMEOUT),
            Answer(2, 0.75, None, 1, 1, part=3),
            Answer(0, 0.6, None, 1, 1, part=3, fallback=True),
        )
        for (_, done), outcome in zip(link.frames, outcomes, strict=True):
            done(outcome)
        await asyncio.sleep(0)
        assert owner.said == [(1, 1, 0.5, 0, True), (2, 2, 0.75, 3, False), (3, 0, 0.6, 3, True)]
        forward.check_room()

    assert answers(in_loop(scenario, engine)) == [0, 2, 1]


def test_what_the_exit_is_sure_of_or_nobody_waits_for_does_not_go_on(engine: Engine) -> None:
    async def scenario(forward: Forward, link: FakeLink, owner: Owner) -> None:
        forward.deliver(*batch(owner, 1.0, sure=True))
        owner.gone = True
        forward.deliver(*batch(owner, 1.0))
        assert not link.frames and owner.said == [(1, 1, 0.5, 0, False)] * 2

    assert answers(in_loop(scenario, engine)) == [1, 0, 0]


def pixels(folder: Path) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(path)).transpose(2, 0, 1) for path in sorted(folder.iterdir())])


def test_three_processes_say_what_one_says_and_count_the_same(
    run: Processes, chain: Bundle, engine: Engine, toy_images: Path
) -> None:
    server = run.server("--part", "last")
    gateway = run.server("--upstream", server.address, "--page", program="edge-server")
    assert state_of(gateway.metrics_url)["upstream"] == [server.address]
    status, device = run.device(toy_images, "--server", gateway.address, "--json")
    expected = run_chain(engine, pixels(toy_images))
    assert status == 0
    records = sorted(device.answers, key=lambda record: int(record["index"]))
    assert [(r["class_index"], r["part"]) for r in records] == list(
        zip(expected.best.tolist(), expected.part.tolist(), strict=True)
    )
    by_part = [int((expected.part == part).sum()) for part in (1, 2, 3)]
    assert all(by_part)
    assert device.summary["parts"] == {str(n): count for n, count in enumerate(by_part, 1)}
    assert device.summary["cut_short"] == 0 and device.summary["server"] == sum(by_part[1:])
    assert answers(gateway.metrics()) == [*by_part[1:], 0]
    assert gateway.metrics()["offramp_server_frames_total{result=answered}"] == sum(by_part[1:])
    assert server.metrics()["offramp_server_frames_total{result=answered}"] == by_part[2]
    sent = gateway.metrics()["offramp_server_upstream_payload_bytes_total"]
    assert sent == server.metrics()["offramp_server_payload_bytes_total"]

    for first, window in ((0.6, 1), (0.9, 16), (1.0, 16)):
        assert says(chain, gateway, first, window) == expects(engine, first, 0.8)
    unsure = run.server("--upstream", server.address, "--exit-threshold", 0.95)
    assert says(chain, unsure, 0.6) == expects(engine, 0.6, 0.95)


def test_four_parts_are_four_processes_by_flags_alone_and_all_exits_answer_together(tmp_path: Path) -> None:
    bundle = toy_chain.write(tmp_path, 4, sent_answer="both")
    with processes(bundle.path) as run:
        last = run.server("--part", 4)
        third = run.server("--part", "stage3", "--upstream", last.address)
        second = run.server("--upstream", f"127.0.0.1:1,{third.address}")
        assert says(bundle, second, 0.6) == expects(Engine(bundle), 0.6, 0.8, 0.8)
        assert all(answers(second.metrics())[:2]) and all(answers(third.metrics())[:2])
