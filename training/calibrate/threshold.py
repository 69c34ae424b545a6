"""``offramp threshold``: T_c for an accuracy floor or a byte budget, chosen on held-out images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.common.errors import ConfigError, DataError, ExitCode, OfframpError
from offramp.common.part.answer import ANSWERED_BY, SentAnswer
from offramp.common.settings import Parser, number, share

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from offramp.common.bundle.load import Bundle
    from offramp.training.calibrate.measure import Answers
    from offramp.training.calibrate.pictures import Pictures
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
both exits together is decided anew, by the same images.

--pictures names the bundle whose whole model answers pictures at the server. Then T_c is chosen together with
the threshold and the quality for `edge-device --picture-threshold --picture-quality`: images whose answer is
no more confident than that are sent once more, as pictures, and --drop counts from the best of all that. The
bundle keeps T_c alone; a device has to be told the other two, since a picture leaves it then.

The bundle's recipe says where its images are; for files elsewhere, name them. The card in the manifest is
measured anew on the test images, without pictures; nothing is chosen by them.
"""

_EXAMPLES = """\
examples:
  offramp threshold models/digits-mobilenetv2-exit12 --drop 0.01
  offramp threshold my-bundle --accuracy 0.9 --sure --temperature
  offramp threshold my-bundle --bytes 500 --dry-run --json | jq .threshold
  offramp threshold my-bundle --drop 0.005 --pictures my-whole-bundle --picture-quality 20 75

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
    goal.add_argument("--accuracy", type=share, metavar="A", help="at least this accuracy, 0 … 1")
    goal.add_argument(
        "--drop", type=share, metavar="D", help="at most this much below the best accuracy of any T_c"
    )
    goal.add_argument(
        "--bytes",
        type=number(float, 0, sys.float_info.max, "a number of bytes"),
        metavar="B",
        help="at most B payload bytes an image, mean",
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
    parser.add_argument("--train-data", nargs="+", metavar="PATH", help="files or a folder, as for `train`")
    parser.add_argument("--test-data", nargs="+", metavar="PATH", help="files or a folder, as for `train`")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


@dataclass(frozen=True)
class PictureChoice:
    """What a device has to be told besides, and what share of all images is then sent once more."""

    threshold: float
    quality: int
    rate: float


@dataclass(frozen=True)
class Choice:
    """A threshold and what it means on the images that it was chosen on; intervals cover 95 %."""

    threshold: float
    images: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    exit_rate: float
    exit_rate_interval: tuple[float, float]
    bytes_mean: float
    bytes_interval: tuple[float, float]
    accuracy_sent: float
    """With no image answered early."""
    sent_answer: SentAnswer
    """Who answers what was sent."""
    temperature: float
    ece: float
    """Of the early exit at this temperature."""
    ece_before: float
    """At the bundle's temperature."""
    picture: PictureChoice | None = None
    """Where pictures may be sent and some are worth it."""


@dataclass(frozen=True)
class _Point:
    """One way to run: T_c and, with pictures, which and how unsure; means over the images."""

    threshold: float
    bytes_mean: float
    right: int
    pictures: Pictures | None = None
    again: float = 0.0


def choose(
    answers: Answers,
    payloads: NDArray[np.int64],
    *,
    pictures: Iterable[Pictures] = (),
    accuracy: float | None = None,
    drop: float | None = None,
    budget: float | None = None,
    sure: bool = False,
    seed: int = 0,
) -> Choice:
    """The threshold for one goal.

    Args:
        answers: of both exits on held-out images; their temperature is what confidences are taken at.
        payloads: bytes that each image's activation takes, int64 [N].
        pictures: what the images are as pictures, of each quality that may be sent.
        accuracy: floor, a share.
        drop: how far below the best accuracy of any threshold, or of any two, the floor is.
        budget: mean bytes an image, at most.
        sure: the worse end of the 95 % interval has to meet the goal.
        seed: of the bootstrap.

    Raises:
        DataError: no threshold meets the goal; says what the best one reaches.
    """
    import numpy as np

    from offramp.training.calibrate.calibration import bootstrap_mean, ece, wilson
    from offramp.training.calibrate.frontier import frontier

    def bytes_sent(point: _Point) -> NDArray[np.float64]:
        sent = np.where(answers.exits(point.threshold), 0, payloads)
        if point.pictures is not None:
            sent = sent + np.where(_again(answers, point), point.pictures.payloads, 0)
        return sent.astype(np.float64)

    def described(point: _Point) -> Choice:
        early, sent = answers.exits(point.threshold), bytes_sent(point)
        calibrated = ece(answers.confidence, answers.early_right)
        picture = None
        if point.pictures is not None:
            rate = float(_again(answers, point).mean())
            picture = PictureChoice(point.again, point.pictures.quality, rate)
        return Choice(
            threshold=point.threshold,
            images=count,
            accuracy=point.right / count,
            accuracy_interval=wilson(point.right, count),
            exit_rate=float(early.mean()),
            exit_rate_interval=wilson(int(early.sum()), count),
            bytes_mean=float(sent.mean()),
            bytes_interval=bootstrap_mean(sent, seed=seed),
            accuracy_sent=float(answers.sent_right.mean()),
            sent_answer=answers.sent_answer,
            temperature=answers.temperature,
            ece=calibrated,
            ece_before=calibrated,
            picture=picture,
        )

    count = len(answers)
    points = _points(answers, payloads, pictures)
    costs = np.array([point.bytes_mean for point in points])
    # By bytes, each more often right than the one before.
    best = [points[at] for at in frontier(costs, np.array([point.right for point in points]))]
    # The slack is for the last bit of a mean.
    slack = 1e-12
    if budget is not None:

        def cost(point: _Point) -> float:
            return bootstrap_mean(bytes_sent(point), seed=seed)[1] if sure else point.bytes_mean

        fits = next((point for point in reversed(best) if cost(point) <= budget + slack), None)
        if fits is None:
            raise DataError(
                f"no threshold sends {budget:g} B an image or fewer: "
                f"at {best[0].threshold:g} it is {cost(best[0]):,.1f}"
            )
        return described(fits)

    def reached(point: _Point) -> float:
        return wilson(point.right, count)[0] if sure else point.right / count

    if drop is not None:
        accuracy = max(0.0, best[-1].right / count - drop)
    assert accuracy is not None
    for point in best:
        if reached(point) >= accuracy - slack:
            return described(point)
    how = "with 95 % confidence" if sure else "on these images"
    raise DataError(
        f"no threshold reaches an accuracy of {accuracy:.4f} {how}: "
        f"the best, {best[-1].threshold:g}, reaches {reached(best[-1]):.4f}"
    )


def _again(answers: Answers, point: _Point) -> NDArray[np.bool_]:
    """Which images are sent once more, bool [N]."""
    return ~answers.exits(point.threshold) & (answers.replied.told_confidence <= point.again)


def _points(answers: Answers, payloads: NDArray[np.int64], pictures: Iterable[Pictures]) -> list[_Point]:
    """Every T_c in hundredths; then with every picture threshold in hundredths, of every quality."""
    import numpy as np

    from offramp.training.calibrate.frontier import THRESHOLDS

    count, plain = len(answers), []
    for at in THRESHOLDS:
        sent = np.where(answers.exits(at), 0, payloads)
        plain.append(_Point(at, float(sent.mean()), int(answers.right(at).sum())))
    points = list(plain)
    # The lowest threshold at which an image is sent once more; beyond the last for none.
    first = np.searchsorted(np.array(THRESHOLDS, np.float32), answers.replied.told_confidence, "left")
    for one in pictures:
        gain = one.right.astype(np.int64) - answers.sent_right
        for point in plain:
            sent = ~answers.exits(point.threshold)
            more, gained = (
                np.bincount(first[sent], of[sent], minlength=len(THRESHOLDS) + 1).cumsum()
                for of in (one.payloads, gain)
            )
            points += [
                _Point(
                    point.threshold,
                    point.bytes_mean + float(more[number]) / count,
                    point.right + round(float(gained[number])),
                    one,
                    again,
                )
                for number, again in enumerate(THRESHOLDS)
                if more[number]
            ]
    return points


def _run(arguments: argparse.Namespace) -> Choice:
    from dataclasses import replace

    from tqdm import tqdm

    from offramp.common.bundle.load import load_bundle
    from offramp.common.wire.picture import require_webp
    from offramp.training.calibrate.calibration import ece, fit_temperature
    from offramp.training.calibrate.measure import run_graphs, with_better_answer
    from offramp.training.calibrate.pictures import as_pictures, require_same_images
    from offramp.training.data.held_out import load_data

    if arguments.picture_quality and not arguments.pictures:
        raise ConfigError("--picture-quality: expected --pictures too")
    bundle = load_bundle(arguments.bundle)
    whole = load_bundle(arguments.pictures) if arguments.pictures else None
    if whole is not None:
        require_webp("--pictures")
        require_same_images(bundle, whole)
    data = load_data(bundle, arguments.train_data, arguments.test_data)
    graphs = _graphs(bundle)
    before = replace(run_graphs(graphs, data.validation), temperature=bundle.manifest.temperature)
    seen = before
    if arguments.temperature:
        # The manifest's own limits.
        temperature = min(1000.0, max(0.001, fit_temperature(seen.early, seen.labels)))
        seen = replace(seen, temperature=temperature)
    seen = with_better_answer(seen)
    pictures: Iterable[Pictures] = ()
    if whole is not None:
        qualities = arguments.picture_quality or _QUALITIES
        pictures = tqdm(
            as_pictures(whole, seen, data.validation.images, qualities),
            total=len(qualities),
            unit="quality",
            leave=False,
            disable=None,
        )
    choice = choose(
        seen,
        _payloads(bundle, seen),
        pictures=pictures,
        accuracy=arguments.accuracy,
        drop=arguments.drop,
        budget=arguments.bytes,
        sure=arguments.sure,
        seed=bundle.manifest.provenance.seed,
    )
    choice = replace(choice, ece_before=ece(before.confidence, before.early_right))
    if not arguments.dry_run:
        test = replace(
            run_graphs(graphs, data.test), temperature=choice.temperature, sent_answer=choice.sent_answer
        )
        write(bundle, choice, test, _payloads(bundle, test))
    return choice


def write(bundle: Bundle, choice: Choice, answers: Answers, payloads: NDArray[np.int64]) -> Bundle:
    """The bundle with this threshold and temperature, its card measured anew.

    Args:
        bundle: its graphs and tables stay as they are.
        choice: what goes into the manifest.
        answers: of its graphs on test images, at the new temperature and answered as was chosen.
        payloads: bytes that each of these images' activations takes, int64 [N].
    """
    from offramp.common.bundle.load import CODEBOOK, HEAD, TAIL, write_bundle
    from offramp.training.calibrate.card import figures

    manifest = bundle.manifest
    changed = manifest.model_copy(
        update={
            "threshold": choice.threshold,
            "temperature": choice.temperature,
            "sent_answer": choice.sent_answer,
            "figures": figures(answers, manifest.figures.in_float, payloads, choice.threshold),
        }
    )
    files = {HEAD: bundle.head, TAIL: bundle.tail}
    if bundle.tables is not None:
        files[CODEBOOK] = bundle.tables.to_bytes()
    return write_bundle(bundle.path, changed, files)


def _graphs(bundle: Bundle) -> Graphs:
    from offramp.training.export import Graphs

    return Graphs(bundle.head, bundle.tail)


def _payloads(bundle: Bundle, answers: Answers) -> NDArray[np.int64]:
    import numpy as np

    return np.array([len(bundle.codec.encode(image)[1]) for image in answers.symbols], np.int64)


def _lines(choice: Choice) -> list[str]:
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
