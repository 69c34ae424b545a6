"""``offramp unknown``: a score for images unlike all that a bundle knows, written into the bundle."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.common.arguments import Parser, number
from offramp.common.errors import ConfigError, DataError, ExitCode, OfframpError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from offramp.common.bundle.load import Bundle
    from offramp.common.bundle.unknown import Unknown
    from offramp.training.calibrate.measure import Answers

_DESCRIPTION = """\
Let a bundle say which images are unlike all that it knows. Their results get `unknown: true`; they keep their
label, exit early or are sent as before, and cost no byte more.

The score is the distance of an image's code from what is usual for the class that the early exit answers,
plus its doubt. What is usual is measured on training images; validation images choose the limit, so that a
share of them (--false-alarms) is beyond it. Test images say how many known images it calls unknown.

The bundle's recipe says where its images are; for files elsewhere, name them. Or name a folder with pictures
of what the bundle is for, with or without class folders: half of them are measured, a quarter chooses, a
quarter is counted. A bundle made by `offramp split` needs such a folder.

The bundle's digest changes: devices and servers need the new one, and a signature must be made again.
"""

_EXAMPLES = """\
examples:
  offramp unknown models/digits-mobilenetv2-exit12
  offramp unknown my-split photos/train --false-alarms 0.01
  offramp unknown my-bundle --remove

exit status: 0 done, 2 wrong flags, 4 unusable bundle, 5 unusable or too few images
"""
_BATCH = 64


@dataclass(frozen=True)
class Outcome:
    """What was written, and what it does to known images that neither fitted nor chose."""

    digest_before: str
    digest: str
    """The same if nothing was written."""
    threshold: float | None
    """None: the score was removed."""
    centres: int = 0
    numbers: int = 0
    """That the manifest holds for it."""
    chosen_on: int = 0
    tested: int = 0
    false_alarms: float = 0
    """Share of the tested images that are unknown by it."""
    interval: tuple[float, float] = (0, 1)
    """Wilson's, of 95 %."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    try:
        arguments = _parser().parse_args(argv)
        outcome = _run(arguments)
    except OfframpError as error:
        print(f"offramp unknown: {error}", file=sys.stderr)
        return error.exit_code
    if arguments.json:
        print(json.dumps(asdict(outcome), indent=1))
    else:
        print("\n".join(_lines(outcome, arguments)))
    return ExitCode.OK


def _parser() -> Parser:
    from offramp.training.calibrate.unknown import FALSE_ALARMS

    parser = Parser(
        prog="offramp unknown",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="the bundle's directory")
    parser.add_argument(
        "pictures", type=Path, nargs="?", metavar="FOLDER", help="with pictures of what it is for"
    )
    parser.add_argument(
        "--false-alarms",
        type=number(float, 0.0001, 0.5, "a share, 0.0001 … 0.5"),
        default=FALSE_ALARMS,
        metavar="SHARE",
        help=f"of known images that may be called unknown (default: {FALSE_ALARMS})",
    )
    parser.add_argument("--remove", action="store_true", help="take the score out of the bundle")
    parser.add_argument("--dry-run", action="store_true", help="leave the bundle as it is")
    parser.add_argument("--train-data", nargs="+", metavar="PATH", help="files or a folder, as for `train`")
    parser.add_argument("--test-data", nargs="+", metavar="PATH", help="files or a folder, as for `train`")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _run(arguments: argparse.Namespace) -> Outcome:
    from offramp.common.bundle.load import load_bundle
    from offramp.training.calibrate.chain import require_two
    from offramp.training.calibrate.intervals import wilson
    from offramp.training.calibrate.unknown import false_alarms_of, fit_unknown

    if arguments.pictures is not None and (arguments.train_data or arguments.test_data):
        raise ConfigError("FOLDER, --train-data and --test-data: expected one or the other")
    bundle = load_bundle(arguments.bundle)
    require_two(bundle, "offramp unknown")
    before = bundle.digest.hex()
    if arguments.remove:
        written = bundle if arguments.dry_run else write(bundle, None)
        return Outcome(before, written.digest.hex(), None)
    if arguments.pictures is not None:
        known, choosing, test = _of_folder(bundle, arguments.pictures)
    else:
        known, choosing, test = _of_recipe(bundle, arguments.train_data, arguments.test_data)
    unknown = fit_unknown(known, choosing, arguments.false_alarms)
    count = false_alarms_of(unknown, test)
    written = bundle if arguments.dry_run else write(bundle, unknown)
    return Outcome(
        before,
        written.digest.hex(),
        unknown.threshold,
        len(unknown.centres),
        (len(unknown.centres) + 1) * len(unknown.deviations),
        len(choosing),
        len(test),
        count / max(1, len(test)),
        wilson(count, len(test)),
    )


def write(bundle: Bundle, unknown: Unknown | None) -> Bundle:
    """The bundle with this score, or without one; all else stays as it is."""
    from offramp.common.bundle.manifest import CODEBOOK, HEAD, TAIL
    from offramp.common.bundle.write import write_bundle

    files = {HEAD: bundle.head, TAIL: bundle.tail}
    if bundle.tables is not None:
        files[CODEBOOK] = bundle.tables.to_bytes()
    return write_bundle(bundle.path, bundle.manifest.model_copy(update={"unknown": unknown}), files)


def _of_recipe(
    bundle: Bundle, train: list[str] | None, test: list[str] | None
) -> tuple[Answers, Answers, Answers]:
    """Training images to measure, validation images to choose by, test images to count."""
    import numpy as np

    from offramp.training.calibrate.unknown import FITTED
    from offramp.training.data.held_out import load_data

    data = load_data(bundle, train, test)
    drawn = np.random.default_rng(bundle.manifest.provenance.seed).permutation(len(data.train))[:FITTED]
    return (
        _answers(bundle, data.train.images[np.sort(drawn)]),
        _answers(bundle, data.validation.images),
        _answers(bundle, data.test.images),
    )


def _of_folder(bundle: Bundle, folder: Path) -> tuple[Answers, Answers, Answers]:
    """The same out of a folder of pictures."""
    import numpy as np

    from offramp.common.files import read_bounded
    from offramp.common.inputs.folder import find
    from offramp.common.inputs.pictures import FILE_BYTES, decode

    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder, expected one with pictures")
    paths = find(folder).files
    if not paths:
        raise DataError(f"{folder}: has no pictures")
    preprocessing = bundle.manifest.preprocessing
    shape = (len(paths), 3, preprocessing.height, preprocessing.width)
    images = np.empty(shape, np.uint8)
    for number_, path in enumerate(paths):
        data = read_bounded(path, FILE_BYTES, error=DataError, expected="a picture's file")
        images[number_] = decode(str(path), data, preprocessing)
    order = np.random.default_rng(bundle.manifest.provenance.seed).permutation(len(images))
    half, quarter = len(images) // 2, len(images) // 4
    measured, choosing, counted = np.split(images[order], [half, half + quarter])
    return _answers(bundle, measured), _answers(bundle, choosing), _answers(bundle, counted)


def _answers(bundle: Bundle, images: NDArray[np.uint8]) -> Answers:
    """What the head says to images, uint8 [N, 3, H, W]; the final exit is not asked."""
    import numpy as np

    from offramp.common.part.session import session
    from offramp.training.calibrate.measure import Answers

    manifest = bundle.manifest
    head = session(bundle.head, threads=1)
    symbols = np.empty((len(images), *manifest.activation.shape), np.uint8)
    early = np.empty((len(images), len(manifest.classes)), np.float32)
    for start in range(0, len(images), _BATCH):
        own = slice(start, start + _BATCH)
        symbols[own], early[own] = head.run(["symbols", "logits"], {"image": images[own]})
    nothing = np.zeros(len(images), np.int64)
    return Answers(symbols, early, np.zeros_like(early), nothing, temperature=manifest.temperature)


def _lines(outcome: Outcome, arguments: argparse.Namespace) -> list[str]:
    changed = outcome.digest != outcome.digest_before
    digest = (
        f"digest {outcome.digest[:16]}, was {outcome.digest_before[:16]}: devices and servers need this "
        "bundle, a signature must be made again"
        if changed
        else f"digest {outcome.digest[:16]}, unchanged"
    )
    if outcome.threshold is None:
        return ["the bundle says of no image that it is unknown", f"  {digest}"]
    low, high = outcome.interval
    return [
        f"unknown: a score over {outcome.threshold:g}, chosen on {outcome.chosen_on:,} images for "
        f"{arguments.false_alarms:.4g} false alarms",
        f"  on {outcome.tested:,} others  {outcome.false_alarms:.2%} false alarms  ({low:.2%} … {high:.2%})",
        f"  in the manifest  {outcome.numbers:,} numbers, centres: {outcome.centres}",
        f"  {digest}",
    ]
