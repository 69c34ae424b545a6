"""Images unlike all that the bundle knows: marked, counted, and answered as any other."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.bundle.write import write_bundle
from offramp.common.part.engine import Engine
from offramp.common.part.unknown import UnknownScore
from offramp.device import Device
from offramp.training.calibrate.measure import Answers
from offramp.training.calibrate.unknown import fit_unknown
from tests import toy
from tests.processes import closed_port, processes, scrape, until


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy with a score that calls about a fifth of its images unknown."""
    path = tmp_path_factory.mktemp("scored") / "bundle"
    bundle = toy.write(path)
    symbols, probabilities = Engine(bundle).head(toy.images(400, seed=5))
    logits, labels = np.log(probabilities), np.zeros(400, np.int64)
    seen = Answers(symbols, logits, logits, labels)
    unknown = fit_unknown(seen, seen, 0.2)
    files = {name: (path / name).read_bytes() for name in bundle.manifest.files}
    return write_bundle(path, bundle.manifest.model_copy(update={"unknown": unknown}), dict(files))


def test_they_are_marked_and_counted_and_every_image_is_answered_once(scored: Bundle, toy_npz: Path) -> None:
    assert scored.manifest.unknown is not None
    score = UnknownScore(scored.manifest.unknown)
    expected = score.are_unknown(*Engine(scored).head(toy.images(300, seed=3)))
    with processes(scored.path) as run:
        server = run.server()
        device = run.start_device(
            *("--server", server.address, "--threshold", 0.7, "--timeout", 60),
            *("--json", "--metrics-port", 0, "--hold", toy_npz),
        )
        url = device.wait_for(r"metrics on (\S+)")[1] + "/metrics"
        until(lambda: device.stdout and "summary" in device.stdout[-1], "the summary")
        page = scrape("http://" + url)
        device.send(signal.SIGTERM)
        assert device.wait() == 0
    answers = sorted(device.answers, key=lambda answer: int(answer["index"]))
    assert [answer["index"] for answer in answers] == list(range(300))
    assert [answer.get("unknown", False) for answer in answers] == expected.tolist()
    assert 0 < expected.sum() < 300
    assert {answer["source"] for answer in answers if "unknown" in answer} == {"early_exit", "server"}
    assert device.summary["unknown"] == page["offramp_device_unknown_total"] == expected.sum()


def test_a_label_stays_and_without_a_server_too(scored: Bundle, toy_bundle: Bundle) -> None:
    with closed_port() as port:
        results = []
        for bundle in (scored, toy_bundle):
            with Device(bundle, server=f"127.0.0.1:{port}", threshold=0.7) as device:
                results.append(list(device.map(toy.images(60, seed=3))))
    marked, plain = results
    assert len(marked) == len(plain) == 60
    assert [each.label for each in marked] == [each.label for each in plain]
    assert any(each.unknown for each in marked)
    assert not any(each.unknown for each in plain)
    assert any(each.unknown and each.source == "fallback" for each in marked)
