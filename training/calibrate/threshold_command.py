"""``offramp threshold``: T_c for an accuracy floor or a byte budget, chosen on held-out images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.common.arguments import Parser, fraction, number, points
from offramp.common.errors import ConfigError, ExitCode, OfframpError
from offramp.common.part.answer import ANSWERED_BY

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from offramp.common.bundle.load import Bundle
    from offramp.common.bundle.unknown import Unknown
    from offramp.training.calibrate.measure import Answers
    from offramp.training.calibrate.sent_pictures import SentAsPictures
    from offramp.training.calibrate.threshold import ThresholdChoice
    from offramp.training.export import Graphs

_DESCRIPTION = """\
Choose a bundle's confidence threshold T_c on its validation images, and write it into the bundle.

Of the thresholds 0, 0.01 … 1 it takes the one that sends the fewest bytes among those that are accurate
enough (--accuracy, --drop), or the most accurate among those that send few enough (--bytes). The 95 %
intervals, Wilson's for shares and the bootstrap's for bytes, are those of a threshold that was fixed
beforehand; one that is chosen on the same images looks a little too good. --sure asks that the interval's
worse end keeps the promise, which leans the other way. --temperature first divides the early exit's logits by
the number that fits the labels best, so that its confidence says how often it is right (ECE: how far it is
from that); the early exit's answers do not change. Whether the server alone answers an image that was sent or
both exits together is decided again, by the same images.

--pictures names the bundle whose whole model answers pictures at the server. Then T_c is chosen together with
the threshold and the quality for `edge-device --picture-threshold --picture-quality`: images whose answer is
no more confident than that are sent once more, as pictures, and --drop counts from the best of all that. The
bundle keeps T_c alone; the other two are flags of the device, since a picture leaves it then.

The recipe.toml beside the bundle says where its images are; for files elsewhere, name them. The card in the
manifest is measured again on the test images, without pictures; nothing is chosen by them. A bundle that was
written has another digest: device and server both need it again.
"""

_EXAMPLES = """\
examples:
  offramp threshold models/digits-mobilenetv2-exit12 --drop 1      # one point below the best
  offramp threshold my-bundle --accuracy 0.9 --sure --temperature
  offramp threshold my-bundle --bytes 500 --dry-run --json | jq .threshold
  offramp threshold my-split --drop 2 --data photos                  # made by `offramp split`
  offramp threshold my-bundle --drop 0.5 --pictures my-whole-bundle --picture-quality 20 75

exit status: 0 done, 2 wrong flags, 4 unusable bundle, 5 no threshold will do, or unusable data
"""


_QUALITIES = (5, 10, 20, 50, 75)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    try:
        arguments = _parser().parse_args(argv)
        choice = _run(arguments)
    except OfframpError as error:
        print(f"offramp threshold: {error}", file=sys.stderr)
        return error.exit_code
    if arguments.json:
        print(json.dumps(asdict(choice), indent=1))
    else:
        print("\n".join(_lines(choice)))
    return ExitCode.OK


def _parser() -> Parser:
    parser = Parser(
        prog="offramp threshold",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="the bundle's directory")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--accuracy", type=fraction, metavar="A", help="at least this accuracy, 0 … 1")
    goal.add_argument(
        "--drop",
        type=points,
        metavar="POINTS",
        help="at most so many points below the best accuracy of any T_c; 1: one point of 100",
    )
    goal.add_argument(
        "--bytes",
        type=number(float, 0, sys.float_info.max, "a number of bytes"),
        metavar="B",
        help="at most B payload bytes per image, on average",
    )
    parser.add_argument("--sure", action="store_true", help="with 95 %% confidence, not on average")
    parser.add_argument("--temperature", action="store_true", help="calibrate the early exit first")
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="with pictures, answered by this bundle's whole model"
    )
    parser.add_argument(
        "--picture-quality",
        type=number(int, 0, 100, "a whole number, 0 … 100"),
        nargs="+",
        metavar="Q",
        help="of libwebp, 0 … 100, the best of them (default: "
        + ", ".join(str(quality) for quality in _QUALITIES)
        + ")",
    )
    parser.add_argument("--dry-run", action="store_true", help="leave the bundle as it is")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="the photos that `offramp split` had, if they moved"
    )
    parser.add_argument("--train-data", nargs="+", metavar="PATH", help="files or a folder, as for `train`")
    parser.add_argument("--test-data", nargs="+", metavar="PATH", help="files or a folder, as for `train`")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _run(arguments: argparse.Namespace) -> ThresholdChoice:
    from dataclasses import replace

    from tqdm import tqdm

    from offramp.common.bundle.load import load_bundle
    from offramp.common.wire.picture import require_webp
    from offramp.training.calibrate.chain import require_two
    from offramp.training.calibrate.confidence import ece, fit_temperature
    from offramp.training.calibrate.measure import run_graphs, with_better_answer
    from offramp.training.calibrate.sent_pictures import as_pictures, require_same_images
    from offramp.training.calibrate.threshold import choose_threshold
    from offramp.training.calibrate.unknown import with_threshold
    from offramp.training.data.held_out import load_data

    if arguments.picture_quality and not arguments.pictures:
        raise ConfigError("--picture-quality: expected --pictures too")
    bundle = load_bundle(arguments.bundle)
    require_two(bundle, "offramp threshold")
    whole = load_bundle(arguments.pictures) if arguments.pictures else None
    if whole is not None:
        require_webp("--pictures")
        require_same_images(bundle, whole)
    data = load_data(bundle, arguments.train_data, arguments.test_data, photos=arguments.data)
    graphs = _graphs(bundle)
    before = replace(run_graphs(graphs, data.validation), temperature=bundle.manifest.temperature)
    seen = before
    if arguments.temperature:
        # The manifest's own limits.
        temperature = min(1000.0, max(0.001, fit_temperature(seen.early, seen.labels)))
        seen = replace(seen, temperature=temperature)
    seen = with_better_answer(seen)
    pictures: Iterable[SentAsPictures] = ()
    if whole is not None:
        qualities = arguments.picture_quality or _QUALITIES
        pictures = tqdm(
            as_pictures(whole, seen, data.validation.images, qualities),
            total=len(qualities),
            unit="quality",
            leave=False,
            disable=None,
        )
    choice = choose_threshold(
        seen,
        _payloads(bundle, seen),
        pictures=pictures,
        accuracy=arguments.accuracy,
        drop=None if arguments.drop is None else arguments.drop / 100,
        budget=arguments.bytes,
        sure=arguments.sure,
        seed=bundle.manifest.provenance.seed,
    )
    choice = replace(choice, ece_before=ece(before.confidence, before.early_right))
    if not arguments.dry_run:
        test = replace(
            run_graphs(graphs, data.test), temperature=choice.temperature, sent_answer=choice.sent_answer
        )
        unknown = bundle.manifest.unknown
        if unknown is not None:
            # Another temperature is another confidence, which its score has a part of.
            unknown = with_threshold(unknown, seen)
        written = write(bundle, choice, test, _payloads(bundle, test), unknown)
        print(_both_sides(bundle, written), file=sys.stderr)
    return choice


def write(
    bundle: Bundle,
    choice: ThresholdChoice,
    answers: Answers,
    payloads: NDArray[np.int64],
    unknown: Unknown | None = None,
) -> Bundle:
    """The bundle with this threshold and temperature, its card measured again.

    Args:
        bundle: its graphs and tables stay as they are.
        choice: what goes into the manifest.
        answers: of its graphs on test images, at the new temperature and answered as was chosen.
        payloads: bytes that each of these images' activations takes, int64 [N].
        unknown: its score for unknown images at this temperature.
    """
    from offramp.common.bundle.manifest import CODEBOOK, HEAD, TAIL
    from offramp.common.bundle.write import write_bundle
    from offramp.training.calibrate.card import figures

    manifest = bundle.manifest
    changed = manifest.changed(
        threshold=choice.threshold,
        temperature=choice.temperature,
        sent_answer=choice.sent_answer,
        figures=figures(answers, manifest.figures.in_float, payloads, choice.threshold),
        unknown=unknown,
    )
    files = {HEAD: bundle.head, TAIL: bundle.tail}
    if bundle.tables is not None:
        files[CODEBOOK] = bundle.tables.to_bytes()
    return write_bundle(bundle.path, changed, files)


def _both_sides(before: Bundle, after: Bundle) -> str:
    """What has to happen now."""
    from offramp.common.bundle.signature import SIGNATURE

    if after.digest == before.digest:
        return f"{after.path}: its digest stays {after.digest.hex()[:16]}"
    signed = "; sign it again" if (after.path / SIGNATURE).exists() else ""
    return (
        f"{after.path}: its digest was {before.digest.hex()[:16]}, now {after.digest.hex()[:16]}{signed}; "
        "device and server both need the bundle again, or the server refuses the device"
    )


def _graphs(bundle: Bundle) -> Graphs:
    from offramp.training.export import Graphs

    return Graphs(bundle.head, bundle.tail)


def _payloads(bundle: Bundle, answers: Answers) -> NDArray[np.int64]:
    import numpy as np

    return np.array([len(bundle.codec.encode(image)[1]) for image in answers.symbols], np.int64)


def _lines(choice: ThresholdChoice) -> list[str]:
    low, high = choice.accuracy_interval
    exit_low, exit_high = choice.exit_rate_interval
    least, most = choice.bytes_interval
    lines = [
        f"T_c = {choice.threshold:g}, chosen on {choice.images:,} validation images (95 % intervals):",
        f"  accuracy         {choice.accuracy:.2%}  ({low:.2%} … {high:.2%})",
        f"    all sent       {choice.accuracy_sent:.2%}, answered by {ANSWERED_BY[choice.sent_answer]}",
        f"  exit rate        {choice.exit_rate:.2%}  ({exit_low:.2%} … {exit_high:.2%})",
        f"  bytes an image   {choice.bytes_mean:,.1f}  ({least:,.1f} … {most:,.1f}), 0 where it exits early",
        f"  temperature      {choice.temperature:.4g}, ECE of the early exit {choice.ece:.4f}",
    ]
    if choice.picture is not None:
        again = choice.picture
        lines.insert(
            -1,
            f"  once more        {again.rate:.2%} of all images: "
            f"--picture-threshold {again.threshold:g} --picture-quality {again.quality}",
        )
    if choice.ece != choice.ece_before:
        lines[-1] += f" (before: {choice.ece_before:.4f})"
    return lines
