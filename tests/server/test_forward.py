"""A gateway between devices and a server: real processes, and what they say is what one process says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from offramp.common.bundle.load import Bundle
from offramp.common.part.chain import run_chain
from offramp.common.part.engine import Engine
from offramp.device import Device, LinkOptions
from tests import toy, toy_chain
from tests.processes import Processes, Server, processes

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


def answers(metrics: dict[str, float]) -> list[float]:
    """By a gateway's exit, by those behind it, and by its exit because they did not."""
    return [metrics[f"offramp_server_answers_total{{by={by}}}"] for by in ("exit", "upstream", "fallback")]


def pixels(folder: Path) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(path)).transpose(2, 0, 1) for path in sorted(folder.iterdir())])


def test_three_processes_say_what_one_says_and_count_the_same(
    run: Processes, chain: Bundle, engine: Engine, toy_images: Path
) -> None:
    server = run.server("--part", "last")
    gateway = run.server("--upstream", server.address, program="edge-server")
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
