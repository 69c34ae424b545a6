"""Pictures piped to a real device, a real server, and a Prometheus with the shipped rules."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import CODEBOOK, HEAD, TAIL
from offramp.common.bundle.write import write_bundle
from offramp.common.part.session import session
from offramp.training.calibrate.card import figures
from offramp.training.calibrate.measure import Answers
from tests.deploy.prometheus import Prometheus
from tests.processes import Processes, until

DISAGREES, DRIFT = "OfframpEarlyExitDisagrees", "OfframpImagesDrift"
SHORTFALL = "instance:offramp_device_audits_shortfall:deviations1d"
DISTANCE = "instance:offramp_device_drift:distance1d"


def answers(bundle: Bundle, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Answers:
    """What both exits say to images, uint8 [N, 3, H, W]."""
    head, tail = session(bundle.head, threads=1), session(bundle.tail, threads=1)
    symbols, early = head.run(["symbols", "logits"], {"image": images})
    (final,) = tail.run(["logits"], {"symbols": symbols})
    return Answers(symbols, early, final, labels, bundle.manifest.temperature)


def with_card(bundle: Bundle, found: Answers, out: Path) -> Bundle:
    """The bundle as if these were its test images."""
    payloads = np.array([len(bundle.codec.encode(one)[1]) for one in found.symbols], np.int64)
    manifest = bundle.manifest
    card = figures(found, manifest.figures.in_float, payloads, manifest.threshold)
    files = {HEAD: bundle.head, TAIL: bundle.tail}
    if bundle.tables is not None:
        files[CODEBOOK] = bundle.tables.to_bytes()
    return write_bundle(out, manifest.model_copy(update={"figures": card}), files)


def darker(picture: Image.Image, share: float) -> Image.Image:
    """At this share of its brightness."""
    return picture.convert("RGB").point(lambda value: value * share)


class Stream:
    """All of them; every early exit is audited."""

    def __init__(
        self, run: Processes, folder: Path, rate: float, interval: str = "1s", threshold: float | None = None
    ) -> None:
        self.server = run.server("--workers", 1, "--max-batch", 8, "--max-wait-ms", 0)
        self.device = run.start_device(
            *("--server", self.server.address, "--rate", rate, "--timeout", 60, "--audit", 1),
            *("--metrics-port", 0, "--hold", "--json", "-"),
            *(() if threshold is None else ("--threshold", threshold)),
            stdin=subprocess.PIPE,
        )
        self.instance = self.device.wait_for(r"metrics on (\S+)")[1]
        self.prometheus = Prometheus(run, folder, {"server": [], "device": [self.instance]}, interval)
        self._wait(lambda: self._answered() == 0, "a scrape before the first picture")

    def _answered(self) -> float:
        return self.value("sum by (instance) (offramp_device_images_total)", -1)

    def value(self, query: str, missing: float = float("nan")) -> float:
        """Of the device."""
        return self.prometheus.query(query).get(self.instance, missing)

    def firing(self) -> dict[str, set[str]]:
        """Names of the alerts that the device has, with what they are of."""
        found: dict[str, set[str]] = {}
        for each in self.prometheus.get(
            "query", query=f'ALERTS{{alertstate="firing", instance="{self.instance}"}}'
        )["result"]:
            labels = each["metric"]
            found.setdefault(labels["alertname"], set()).add(labels.get("of", ""))
        return found

    def show(self, paths: Sequence[Path], each: Callable[[], object] = lambda: None) -> list[dict[str, Any]]:
        """The device's answers to these, once the rules know of all their audits.

        each: called again and again meanwhile.
        """
        before = len(self.device.answers)
        stdin = self.device.process.stdin
        assert stdin is not None
        stdin.write("".join(f"{path}\n" for path in paths))
        stdin.flush()

        def done() -> bool:
            each()
            return len(self.device.answers) == before + len(paths)

        # A few at a time, so that a long stream is not given up.
        for count in range(20, len(paths), 20):
            until(lambda: each() or len(self.device.answers) >= before + count, "some answers")  # noqa: B023
        until(done, "the answers")
        found = self.device.answers
        exits = sum(answer["source"] == "early_exit" for answer in found)
        audits = "sum by (instance) (offramp_device_audits_total)"
        self._wait(
            lambda: self._answered() == len(found) and self.value(audits) == exits,
            "a scrape after the last picture",
        )
        now = float(self.prometheus.get("query", query="time()")["result"][1])
        # Recorded from that scrape, and alerts from what was recorded.
        stamps = f"min by (instance) (timestamp({SHORTFALL}) or timestamp({DISTANCE}))"
        self._wait(lambda: self.value(stamps, 0) > now + 3, "the rules to be evaluated")
        return found[before:]

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        """As ``until``, without keeping Prometheus busy."""

        def holds() -> object:
            time.sleep(0.2)
            return condition()

        until(holds, what)

    def end(self) -> dict[str, Any]:
        """The device's summary."""
        assert self.device.process.stdin is not None
        self.device.process.stdin.close()
        until(lambda: self.device.stdout and "summary" in self.device.stdout[-1], "the summary")
        self.device.send(signal.SIGTERM)
        assert self.device.wait() == 0
        return self.device.summary
