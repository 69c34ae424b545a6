"""Photos that turn dark in mid-run: a real device with its audits, the shipped rules on a real Prometheus.

The early exit stays confident and the server says something else: nobody hears of that without audits. The
photos are the examples, mirrored: others than those that the bundle is measured on, of the same kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.drift import distance
from offramp.device import preprocess
from tests.deploy.prometheus import DEPLOY, require
from tests.deploy.stream import DISAGREES, DISTANCE, DRIFT, SHORTFALL, Stream, answers, darker, with_card
from tests.deploy.test_prometheus import dashboard_queries
from tests.processes import Processes, processes

ROOT = DEPLOY.parent
PHOTOS = sorted((ROOT / "examples" / "trashnet").glob("*.jpg"))
BRIGHTNESS = 0.1
THRESHOLD = 0.5
"""Lower than the bundle's own, so that so few photos have audits enough."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped one, measured on the examples as a bundle that is made today is on its test photos."""
    shipped = load_bundle(ROOT / "models" / "trashnet-efficientnet-lite0")
    images = np.stack([preprocess(path.read_bytes(), shipped) for path in PHOTOS])
    found = answers(shipped, images, np.zeros(len(PHOTOS), np.int64))
    return with_card(shipped, found, tmp_path_factory.mktemp("bundle") / "trashnet")


@pytest.fixture
def run(bundle: Bundle) -> Iterator[Processes]:
    require("prometheus", "promtool")
    with processes(bundle.path) as started:
        yield started


def test_photos_that_turn_dark_are_noticed(run: Processes, bundle: Bundle, tmp_path: Path) -> None:
    light: list[Path] = []
    dark: list[Path] = []
    for path in PHOTOS:
        photo = ImageOps.mirror(Image.open(path))
        for name, paths, made in (("light", light, photo), ("dark", dark, darker(photo, BRIGHTNESS))):
            paths.append(tmp_path / f"{name}-{path.name}")
            made.save(paths[-1], quality=90)
    stream = Stream(run, tmp_path, rate=40, threshold=THRESHOLD)

    usual = stream.show(light)
    quiet = stream.value(SHORTFALL)
    assert quiet < 4 and not stream.firing().keys() & {DISAGREES, DRIFT}
    reference = bundle.manifest.figures.drift
    assert reference is not None
    shown = np.stack([preprocess(path.read_bytes(), bundle) for path in light])
    early = answers(bundle, shown, np.zeros(len(light), np.int64)).early.argmax(axis=1)
    classes = np.bincount(early, minlength=len(reference.classes)).tolist()
    found = stream.value(f'{DISTANCE}{{of="class"}}')
    assert len(usual) == len(light) and found == pytest.approx(distance(classes, reference.classes), abs=0.01)

    stream.show(dark)
    loud = stream.value(SHORTFALL)
    distances = {of: stream.value(f'{DISTANCE}{{of="{of}"}}') for of in ("confidence", "class", "exit")}
    print(f"after light photos {quiet:.1f} deviations, after as many dark ones {loud:.1f}; {distances}")
    firing = stream.firing()
    assert loud > 4 and firing.keys() == {DISAGREES, DRIFT} and "confidence" in firing[DRIFT]

    for title, expression in dashboard_queries():
        if title.startswith(("Audits", "Drift")):
            values = stream.prometheus.query(expression).values()
            assert values and all(math.isfinite(value) for value in values), expression
    summary = stream.end()
    assert summary["images"] == 2 * len(PHOTOS) and summary["fallback"] == 0
    assert summary["audits"]["lost"] == 0
