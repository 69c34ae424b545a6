"""``offramp bench codec``: every coder and its peers side by side, on one core, in one run.

Bytes in, bytes out, call overhead included; many activations in turn rather than one that stays in the
cache; tables counted on activations other than those measured. ``timing.py`` says how time is taken.
"""

from __future__ import annotations

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from offramp.bench.activations import Synthetic, Variant, bundle_activations
from offramp.bench.codec_report import markdown, plot, verdicts
from offramp.bench.codec_results import Case, Row
from offramp.bench.coders import (
    BITARRAY,
    MEMCPY,
    PACKAGES,
    ZSTD_FAST,
    Coding,
    our_coding,
    our_codings,
    payloads,
    peer_codings,
)
from offramp.bench.overhead import frame_bits
from offramp.bench.timing import Timed, environment, interleave, one_core
from offramp.common.arguments import Parser
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import Raw
from offramp.common.codec.activation import Shape, Symbols
from offramp.common.codec.huffman import entropy_bits
from offramp.common.errors import ConfigError
from offramp.training.calibrate.codebook import symbol_counts

EPILOG = """\
examples:
  offramp bench codec                             # synthetic ones and the bundles in models/: 3 minutes
  offramp bench codec --shapes 8x8x8 --bits 0.6   # one size and entropy, both kinds of channels
  offramp bench codec --shapes --bundle DIR --images DIR --json
"""
SHAPES = ("24x32x32", "32x16x16", "8x8x8")
BITS = (0.3, 0.6, 1.0, 1.5, 2.5, 5.0)
VARIANTS: tuple[Variant, ...] = ("alike", "different")
MEASURED_SYMBOLS, CALIBRATION_SYMBOLS = 1_500_000, 1_000_000
MOST_FRAMES = 1024
OVERHEAD_FRAMES = 64
"""Frames of which the bytes beyond the tables' own price are found."""


@dataclass(frozen=True)
class Task:
    """One kind of activation to measure on, made when its turn comes."""

    source: str
    shape: Shape
    variant: Variant | None
    bits: float | None
    """Of a synthetic source; None for a bundle."""
    make: Callable[[], tuple[Symbols, Symbols]]
    """Calibration and measured activations, uint8 [N, C, H, W]."""
    bundle: Bundle | None = None


def main(argv: Sequence[str]) -> int:
    """Run the command; raises OfframpError."""
    parser = Parser(
        "offramp bench codec",
        description="Measure bytes and single-core speed of all coders and their peers.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shapes", nargs="*", default=SHAPES, metavar="CxHxW", help="of synthetic ones")
    parser.add_argument("--bits", nargs="*", type=float, default=BITS, help="entropies of synthetic ones")
    parser.add_argument(
        "--frames",
        type=int,
        default=MOST_FRAMES,
        help=f"activations of a case, at most (default: {MOST_FRAMES})",
    )
    parser.add_argument("--bundle", nargs="*", type=Path, metavar="DIR", help="default: all in models/")
    parser.add_argument("--images", type=Path, default=Path("examples/digits"), help="for the bundles' heads")
    parser.add_argument("--seconds", type=float, default=2.0, help="timing of each case (default: 2)")
    parser.add_argument("--rounds", type=int, default=11, help="it is spread over (default: 11)")
    parser.add_argument("--json", action="store_true", help="all figures as one JSON object")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="also write codec.md, .json, .png and .svg here"
    )
    arguments = parser.parse_args(argv)
    if not 0 < arguments.seconds <= 3600 or not 1 <= arguments.rounds <= 1000:
        raise ConfigError("--seconds and --rounds: expected more than 0, up to 3600 and 1000")
    if not 2 <= arguments.frames <= MOST_FRAMES:
        raise ConfigError(f"--frames {arguments.frames}: expected 2 … {MOST_FRAMES}")
    bundles = arguments.bundle if arguments.bundle is not None else shipped_bundles()
    tasks = [
        *synthetic_tasks(
            [parse_shape(shape) for shape in arguments.shapes], arguments.bits, arguments.frames
        ),
        *(bundle_task(load_bundle(path), arguments.images) for path in bundles),
    ]
    if not tasks:
        raise ConfigError("nothing to measure, expected --shapes with --bits, or --bundle")
    with one_core() as core:
        facts = environment(PACKAGES, core)
        progress = tqdm(tasks, desc="codec", unit="case", disable=None)
        cases = [measure(task, arguments.seconds, arguments.rounds) for task in progress]
    checks = verdicts(cases)
    results: dict[str, Any] = {
        "environment": facts,
        "cases": [asdict(case) for case in cases],
        "verdicts": [asdict(check) for check in checks],
    }
    text = markdown(facts, cases, checks)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "codec.md").write_text(text, encoding="utf-8")
        (arguments.out / "codec.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        plot(cases, [arguments.out / "codec.png", arguments.out / "codec.svg"])
    print(json.dumps(results, indent=1) if arguments.json else text)
    return 0


def shipped_bundles() -> list[Path]:
    """The bundles of a checkout."""
    return sorted(path.parent for path in Path("models").glob("*/manifest.json"))


def parse_shape(text: str) -> Shape:
    """(C, H, W) of ``CxHxW``. Raises ConfigError."""
    sides = text.split("x")
    if len(sides) != 3 or not all(
        side.isascii() and side.isdigit() and 0 < int(side) <= 4096 for side in sides
    ):
        raise ConfigError(f"--shapes {text}: expected CxHxW, such as 32x16x16")
    channels, height, width = map(int, sides)
    if channels * height * width > CALIBRATION_SYMBOLS // 4:
        raise ConfigError(f"--shapes {text}: expected at most {CALIBRATION_SYMBOLS // 4:,} symbols")
    return channels, height, width


def synthetic_tasks(shapes: Sequence[Shape], bits: Sequence[float], frames: int) -> Iterator[Task]:
    """Each shape, entropy and kind of channels, of so many frames at most.

    Raises ConfigError for an entropy out of reach.
    """
    for entropy in bits:
        if not 0.05 <= entropy <= 7:
            raise ConfigError(f"--bits {entropy:g}: expected 0.05 … 7")
    for shape in shapes:
        for variant in VARIANTS:
            for entropy in bits:
                source = Synthetic(shape, entropy, variant)
                yield Task("synthetic", shape, variant, entropy, _drawn(source, frames))


def _drawn(source: Synthetic, frames: int) -> Callable[[], tuple[Symbols, Symbols]]:
    symbols = source.shape[0] * source.shape[1] * source.shape[2]
    calibration, measured = (
        min(frames, max(2, total // symbols)) for total in (CALIBRATION_SYMBOLS, MEASURED_SYMBOLS)
    )
    return lambda: (source.frames(calibration, 0), source.frames(measured, 1))


def bundle_task(bundle: Bundle, images: Path) -> Task:
    """A bundle's head on pictures: every other one calibrates the coders that the bundle does not name."""

    def make() -> tuple[Symbols, Symbols]:
        symbols = bundle_activations(bundle, images)
        return symbols[0::2], symbols[1::2]

    return Task(bundle.manifest.name, bundle.manifest.activation.coded_shape, None, None, make, bundle)


def measure(task: Task, seconds: float, rounds: int) -> Case:
    """Bytes and speed of every coder on one kind of activation."""
    calibration, measured = task.make()
    codings = [*_ours(task, calibration), *peer_codings(task.shape, calibration)]
    frames = [frame.tobytes() for frame in measured]
    size = len(frames[0])
    coded = {coding.name: payloads(coding, frames[: coding.frames]) for coding in codings}
    encoders, decoders = {}, {}
    for coding in codings:
        own = coded[coding.name]
        # A frame that coding would make longer is sent raw; nobody decodes it.
        shorter = [payload for payload in own if len(payload) < size or coding.tables is None]
        if shorter:
            encoders[coding.name] = Timed(coding.encode, frames[: coding.frames])
            decoders[coding.name] = Timed(coding.decode, shorter)
    interleave([*encoders.values(), *decoders.values()], seconds, rounds)
    rows = []
    for coding in (coding for coding in codings if coding.name in encoders):
        encode, decode = encoders[coding.name], decoders[coding.name]
        own = coded[coding.name]
        sizes = [min(len(payload), size) for payload in own]
        extra = None
        if coding.tables is not None and coding.name != BITARRAY:
            some = slice(0, OVERHEAD_FRAMES)
            extra = (sizes[some] - frame_bits(coding.tables, measured[some]) / 8).tolist()
        rows.append(
            Row(
                name=coding.name,
                shipped=coding.shipped,
                lanes=coding.lanes,
                table_bytes=coding.table_bytes,
                bytes_mean=None if coding.frames else sum(sizes) / len(sizes),
                encode_mb_s=encode.median * size / 1e6,
                decode_mb_s=decode.median * size / 1e6,
                encode_best_mb_s=encode.best * size / 1e6,
                decode_best_mb_s=decode.best * size / 1e6,
                encode_ratio={other: encode.speed_of(encoders[other]) for other in _YARDSTICKS},
                decode_ratio={other: decode.speed_of(decoders[other]) for other in _YARDSTICKS},
                overhead_mean=None if extra is None else sum(extra) / len(extra),
                overhead_max=None if extra is None else max(extra),
            )
        )
    counts = symbol_counts(measured)
    return Case(
        source=task.source,
        shape=task.shape,
        variant=task.variant,
        bits=task.bits,
        frames=len(frames),
        entropy_tensor=entropy_bits(counts.sum(axis=0)) / measured.size,
        entropy_channel=entropy_bits(counts) / measured.size,
        rows=rows,
    )


_YARDSTICKS = (ZSTD_FAST, BITARRAY, MEMCPY)


def _ours(task: Task, calibration: Symbols) -> Iterator[Coding]:
    if task.bundle is None:
        yield from our_codings(task.shape, calibration)
        return
    entry, tables = task.bundle.manifest.codec, task.bundle.tables
    if tables is not None and not isinstance(entry, Raw):
        yield our_coding(f"the bundle's {entry.kind}", task.shape, tables, entry.lanes, shipped=True)
    yield from (
        replace(each, shipped=False)  # the bundle has chosen
        for each in our_codings(task.shape, calibration)
    )
