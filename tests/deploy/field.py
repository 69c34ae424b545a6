"""What audits and drift say of images that change: docs/results/field.md's figures, in three minutes.

    python -m tests.deploy.field FOLDER    with TrashNet's train.parquet and test.parquet

The shipped TrashNet bundle gets a card that is measured on its validation photos, so that it has seen none of
the test photos. First each change by itself, computed; then a real device, server and Prometheus that see the
test photos as they are and then as many dark ones.
"""

from __future__ import annotations

import argparse
import io
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageFilter

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import AgreementFigures
from offramp.common.drift import deviations, distance, is_drift
from offramp.common.inputs.pictures import decode
from offramp.training.calibrate.card import early_exit_figures
from offramp.training.calibrate.measure import Answers
from offramp.training.data.photos import Columns, read_photos
from tests.deploy.prometheus import DEPLOY
from tests.deploy.stream import SHORTFALL, Stream, answers, darker, with_card
from tests.processes import processes

SHIPPED = DEPLOY.parent / "models" / "trashnet-efficientnet-lite0"
RATE = 10
DARK = 0.2
"""Brightness of the stream's second half."""
Change = Callable[[Image.Image], Image.Image]


def jpeg(picture: Image.Image) -> bytes:
    """Of quality 90, as the photos are."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=90)
    return out.getvalue()


def shortfall(found: Answers, threshold: float, expected: AgreementFigures) -> tuple[float, float]:
    """Agreement of the early exits, and by how many deviations it lies below what is expected."""
    exits = found.exits(threshold)
    share = float(found.agree[exits].mean())
    below = 2 * (math.asin(math.sqrt(expected.ratio)) - math.asin(math.sqrt(share)))
    return share, below / math.sqrt(1 / int(exits.sum()) + 1 / expected.exits)


def row(name: str, bundle: Bundle, found: Answers) -> str:
    """One change; what alarms is bold."""
    threshold, card = bundle.manifest.threshold, bundle.manifest.figures
    own = early_exit_figures(found)
    assert card.drift is not None
    expected = next(one for one in card.agreement or [] if one.threshold == threshold)
    rate = next(one.exit_rate for one in card.thresholds if one.threshold == threshold)
    share, below = shortfall(found, threshold, expected)
    exits = int(found.exits(threshold).sum())
    early = round(rate * card.images)
    pairs = (
        ([exits, len(found) - exits], [early, card.images - early]),
        (own.confidence, card.drift.confidence),
        (own.classes, card.drift.classes),
    )
    cells = [f"{distance(*each):.3f} ({deviations(*each):.1f})" for each in pairs]
    drifts = [is_drift(*each) for each in pairs]
    cells = [f"**{text}**" if loud else text for text, loud in zip(cells, drifts, strict=True)]
    audits = f"{share:.1%} ({below:.1f})"
    return (
        " | ".join(
            [
                f"| {name}",
                f"{found.accuracy(threshold):.1%}",
                f"{exits / len(found):.1%}",
                f"**{audits}**" if below > 4 else audits,
                *cells,
            ]
        )
        + " |"
    )


def changes(
    bundle: Bundle, photos: list[Image.Image], labels: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> None:
    """Print the table of changes."""

    def seen(change: Change) -> Answers:
        of = bundle.manifest.preprocessing
        images = np.stack([decode("photo", jpeg(change(each)), of) for each in photos])
        return answers(bundle, images, labels)

    print(
        "| stream | right | exit rate | early exits that the server agrees with | exit rate's drift "
        "| confidence's | classes' |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    usual = seen(lambda photo: photo)
    print(row("as they are", bundle, usual))
    for share in (0.8, 0.6, 0.4, 0.2, 0.1):
        print(row(f"{share:.0%} of the brightness", bundle, seen(lambda photo: darker(photo, share))))  # noqa: B023
    for radius in (1, 2, 4):
        blur = ImageFilter.GaussianBlur(radius)
        print(row(f"blurred, radius {radius}", bundle, seen(lambda photo: photo.filter(blur))))  # noqa: B023
    for number, name in enumerate(bundle.manifest.classes):
        print(row(f"without {name}", bundle, usual.take(np.flatnonzero(labels != number))), flush=True)


def dark_stream(bundle: Bundle, photos: list[Image.Image], folder: Path) -> None:
    """Run the programs, and print what the rules say after each half, and when alerts came."""
    halves: dict[str, list[Path]] = {"as they are": [], f"at {DARK:.0%} of the brightness": []}
    for half, paths in enumerate(halves.values()):
        for number, photo in enumerate(photos):
            paths.append(folder / f"{half}-{number:03}.jpg")
            paths[-1].write_bytes(jpeg(darker(photo, DARK) if half else photo))
    with processes(bundle.path) as run:
        stream = Stream(run, folder, RATE, interval="2s")
        first: dict[tuple[str, str], int] = {}

        def look() -> None:
            for name, kinds in stream.firing().items():
                for of in kinds:
                    first.setdefault((name, of), len(stream.device.answers))
            time.sleep(0.3)

        before: dict[str, int] = {}
        for name, paths in halves.items():
            found = stream.show(paths, look)
            look()
            audits = {
                result: int(
                    stream.value(f'last_over_time(offramp_device_audits_total{{result="{result}"}}[1h])')
                )
                for result in ("agrees", "differs", "lost")
            }
            new = {result: count - before.get(result, 0) for result, count in audits.items()}
            before = audits
            exits = sum(one["source"] == "early_exit" for one in found)
            kinds = ("exit", "confidence", "class")
            drift = {
                of: tuple(
                    round(stream.value(f'instance:offramp_device_drift:{what}1d{{of="{of}"}}'), 3)
                    for what in ("distance", "deviations")
                )
                for of in kinds
            }
            print(
                f"{len(paths)} photos {name}: {exits} exit early; audits {new}; since the start "
                f"{stream.value(SHORTFALL):.2f} deviations short, drift {drift}; firing {stream.firing()}"
            )
        print(
            "first seen to fire, after so many photos:",
            {" ".join(key): count for key, count in first.items()},
        )
        summary = stream.end()
        print(
            {
                name: summary[name]
                for name in ("images", "early_exit", "server", "fallback", "audits", "wire_bytes")
            }
        )


def main() -> None:
    """Both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="with TrashNet's train.parquet and test.parquet")
    folder: Path = parser.parse_args().folder
    shipped = load_bundle(SHIPPED)
    manifest = shipped.manifest
    columns = Columns(classes=manifest.classes)
    side, seed = manifest.preprocessing.height, manifest.provenance.seed
    validation = read_photos(folder, size=side, seed=seed, columns=columns).data.validation
    rows = pq.read_table(folder / "test.parquet").to_pydict()
    photos = [Image.open(io.BytesIO(each["bytes"])).convert("RGB") for each in rows["image"]]
    labels = np.array(rows["label"], np.int64)
    with tempfile.TemporaryDirectory() as name:
        card = answers(shipped, validation.images, validation.labels)
        bundle = with_card(shipped, card, Path(name) / "bundle")
        print(
            f"card: {len(card)} validation photos; stream: {len(photos)} test photos; "
            f"T_c {manifest.threshold:g}"
        )
        changes(bundle, photos, labels)
        dark_stream(bundle, photos, Path(name))


if __name__ == "__main__":
    main()
