"""Pictures that turn dark in mid-run: the audits of a real device, the shipped rules on a real Prometheus.

The early exit stays confident and the server says something else: nobody hears of that without audits.
"""

from __future__ import annotations

import math
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import CODEBOOK, HEAD, TAIL, AgreementFigures
from offramp.common.bundle.write import write_bundle
from offramp.common.part.engine import Engine
from offramp.device import preprocess
from tests.deploy.prometheus import DEPLOY, Prometheus, require
from tests.deploy.test_prometheus import dashboard_queries
from tests.processes import Processes, processes, until

ROOT = DEPLOY.parent
DIGITS = ROOT / "models" / "digits-mobilenetv2-exit12"
IMAGES = sorted((ROOT / "examples" / "digits").glob("*.png"))
THRESHOLD = 0.59
COUNT = 120
"""Pictures before it gets dark, and after."""
ALERT = 'ALERTS{alertname="OfframpEarlyExitDisagrees", alertstate="firing", instance!=""}'
AUDITS = "sum by (instance) (offramp_device_audits_total)"
DEVIATIONS = "instance:offramp_device_audits_shortfall:deviations1d"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped digits, and what they agree on, as a bundle that is made today has it."""
    shipped = load_bundle(DIGITS)
    engine = Engine(shipped)
    symbols, early = engine.head(np.stack([preprocess(path.read_bytes(), shipped) for path in IMAGES]))
    exits = early.max(axis=1) > THRESHOLD
    agree = exits & (early.argmax(axis=1) == engine.tail(symbols).argmax(axis=1))
    measured = AgreementFigures(threshold=THRESHOLD, exits=int(exits.sum()), agree=int(agree.sum()))
    figures = shipped.manifest.figures.model_copy(update={"agreement": [measured]})
    files = {HEAD: shipped.head, TAIL: shipped.tail}
    if shipped.tables is not None:
        files[CODEBOOK] = shipped.tables.to_bytes()
    manifest = shipped.manifest.model_copy(update={"figures": figures})
    return write_bundle(tmp_path_factory.mktemp("bundle") / "digits", manifest, files)


@pytest.fixture
def run(bundle: Bundle) -> Iterator[Processes]:
    require("prometheus", "promtool")
    with processes(bundle.path) as started:
        yield started


def darkened(folder: Path) -> list[Path]:
    """The pictures at two fifths of their brightness."""
    for path in IMAGES[:COUNT]:
        Image.open(path).convert("RGB").point(lambda value: value * 0.4).save(folder / path.name)
    return sorted(folder.glob("*.png"))


def test_pictures_that_turn_dark_are_noticed(run: Processes, bundle: Bundle, tmp_path: Path) -> None:
    server = run.server("--workers", 1, "--max-batch", 8, "--max-wait-ms", 0)
    device = run.start_device(
        *("--server", server.address, "--threshold", THRESHOLD, "--rate", 20, "--timeout", 60),
        *("--audit", 1, "--metrics-port", 0, "--hold", "--json", "-"),
        stdin=subprocess.PIPE,
    )
    instance = device.wait_for(r"metrics on (\S+)")[1]
    prometheus = Prometheus(run, tmp_path, {"server": [], "device": [instance]})
    assert device.process.stdin is not None

    def seen(count: float) -> bool:
        return prometheus.query(AUDITS).get(instance, -1) >= count

    def show(paths: list[Path]) -> float:
        """Feed these, and wait until the rules know of their audits: how many there are."""
        before = len(device.answers)
        assert device.process.stdin is not None
        device.process.stdin.write("".join(f"{path}\n" for path in paths))
        device.process.stdin.flush()
        until(lambda: len(device.answers) == before + len(paths), "the answers")
        exits = sum(answer["source"] == "early_exit" for answer in device.answers)
        until(lambda: seen(exits), "a scrape after the last audit")
        stamp = prometheus.get("query", query="time()")["result"][1]
        until(
            lambda: prometheus.query(f"timestamp({DEVIATIONS}) > {float(stamp) + 2}"),
            "the rules to be evaluated",
        )
        return prometheus.query(AUDITS)[instance]

    until(lambda: seen(0), "a scrape before the first image")
    light = show(IMAGES[:COUNT])
    quiet = prometheus.query(DEVIATIONS)[instance]
    assert light > COUNT * 0.8 and quiet < 4 and prometheus.query(ALERT) == {}

    dark = show(darkened(tmp_path)) - light
    until(lambda: prometheus.query(ALERT), "the alert")
    loud = prometheus.query(DEVIATIONS)[instance]
    print(f"{light:.0f} audits: {quiet:.1f} standard deviations, {dark:.0f} more in the dark: {loud:.1f}")
    assert loud > 4 and dark < light * 1.2
    (measured,) = bundle.manifest.figures.agreement or []
    expected = prometheus.query("instance:offramp_device_agreement_expected:avg1d")
    assert expected[instance] == pytest.approx(measured.ratio)

    for title, expression in dashboard_queries():
        if title.startswith("Audits"):
            values = prometheus.query(expression).values()
            assert values and all(math.isfinite(value) for value in values), expression
    device.process.stdin.close()
    until(lambda: device.stdout and "summary" in device.stdout[-1], "the summary")
    device.send(signal.SIGTERM)
    assert device.wait() == 0
    assert device.summary["images"] == 2 * COUNT and device.summary["fallback"] == 0
