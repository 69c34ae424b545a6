"""``python -m research.unknown``: which score tells known inputs from foreign ones, for the fewest bytes?

Every score is fitted on training images of the bundle's own data; its validation images choose the threshold
for 5 % false alarms. Scores compete on foreign inputs out of the others' training parts, and the best one is
reported on test parts. Head outputs are kept in the work folder: they are most of the time.
"""

from __future__ import annotations

import io
import wave
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import rankdata

from offramp.common.arguments import Parser
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.errors import ConfigError
from offramp.common.inputs.arrays import to_pixels
from offramp.common.inputs.spec import Preprocessing
from offramp.common.part.engine import softmax
from offramp.common.part.session import session
from offramp.common.part.unknown import UnknownScore, features
from offramp.training.calibrate.intervals import wilson
from offramp.training.calibrate.measure import Answers
from offramp.training.calibrate.unknown import FALSE_ALARMS, fit_unknown
from offramp.training.data import sources
from offramp.training.data.datasets import Labelled, Source, split
from offramp.training.data.photos import VALIDATION
from offramp.training.recipe import Recipe
from offramp.training.split_recipe import MARK
from research.program import run_program

PROGRAM = "python -m research.unknown"
EPILOG = """\
examples:
  runs/unknown.sh DATA
  python -m research.unknown --data DATA --work build/unknown models/cifar10-mobilenetv2-rate=cifar10

DATA holds the folders cifar10-jpeg, imagenette224, trashnet and spoken-digits.
"""
OWN, FITTED, MADE = 1000, 1000, 300
"""Images of a part at most; known ones that a score is fitted on; noise, blank and spoken ones."""
PICTURES: dict[str, tuple[str, list[str], str]] = {
    "cifar10": ("img", ["cifar10-jpeg/train.parquet"], "cifar10-jpeg/test.parquet"),
    "imagenette": (
        "image",
        [f"imagenette224/train-0000{number}-of-00002.parquet" for number in (0, 1)],
        "imagenette224/val.parquet",
    ),
    "trashnet": ("image", ["trashnet/train.parquet"], "trashnet/test.parquet"),
}
"""Column of the pictures, training files, test file."""

Pixels = NDArray[np.uint8]
Scores = Callable[["Seen"], NDArray[np.float64]]


@dataclass(frozen=True)
class Seen:
    """What a head makes of N inputs: symbols, uint8 [N, C, H, W], logits, and bytes of the coded symbols."""

    symbols: NDArray[np.uint8]
    logits: NDArray[np.float32]
    payloads: NDArray[np.int64]

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """Of the classes, float32 [N, K], at temperature 1."""
        return softmax(self.logits)

    @cached_property
    def features(self) -> NDArray[np.float64]:
        """Mean and deviation of each channel, float64 [N, 2C]."""
        return features(self.symbols)


@dataclass(frozen=True)
class Candidate:
    """A fitted score, higher for stranger inputs, and what a bundle would hold for it."""

    name: str
    scores: Scores
    stored: int


# --- inputs ---


def drawn(count: int, most: int, seed: int = 0) -> NDArray[np.int64]:
    """Up to ``most`` of so many rows, in their order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def pictures(files: Sequence[Path], column: str, rows: NDArray[np.int64], like: Preprocessing) -> Pixels:
    """These rows of Parquet files, decoded as the device does."""
    found: list[Pixels] = []
    start = 0
    for file in files:
        cells = pq.read_table(file, columns=[column])[column]
        own = rows[(rows >= start) & (rows < start + len(cells))] - start
        found += [to_pixels(cells[int(row)].as_py()["bytes"], like) for row in own]
        start += len(cells)
    return np.stack(found)


def spectrograms(file: Path, like: Preprocessing) -> Pixels:
    """Spoken digits as pictures: log magnitudes, low frequencies at the bottom."""
    column = pq.read_table(file, columns=["audio"])["audio"]
    found = []
    for row in drawn(len(column), MADE, seed=1):
        with wave.open(io.BytesIO(column[int(row)].as_py()["bytes"])) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.float32)
        padded = np.pad(samples, (0, max(0, 2048 - len(samples))))
        frames = np.lib.stride_tricks.sliding_window_view(padded, 256)[::64] * np.hanning(256)
        level = np.log(np.abs(np.fft.rfft(frames, axis=1)).T + 1)[::-1]
        level = (level - level.min()) / (np.ptp(level) + 1e-9)
        found.append(to_pixels(np.rint(255 * level).astype(np.uint8), like))
    return np.stack(found)


def known_parts(bundle: Bundle, own: str, data: Path) -> dict[str, Pixels]:
    """Training, validation and test images of the data that the bundle was made of, divided as then."""
    manifest = bundle.manifest
    recipe, seed = manifest.provenance.recipe, manifest.provenance.seed
    if own == "digits":
        found = sources.load(Recipe.parse(recipe).data, seed=seed)
        return {
            "train": found.train.images,
            "validation": found.validation.images,
            "test": found.test.images,
        }
    column, train, test = PICTURES[own]
    files = [data / name for name in train]
    labels = np.concatenate([pq.read_table(file, columns=["label"])["label"].to_numpy() for file in files])
    # The division depends on labels alone: rows' numbers stand in for images, which need no decoding.
    numbers = Labelled(np.arange(len(labels), dtype=np.int64).view(np.uint8).reshape(-1, 8), labels)
    parsed: Any = None if recipe.startswith(MARK) else Recipe.parse(recipe).data
    share = VALIDATION if parsed is None else parsed.validation
    parts = split(Source(own, tuple(manifest.classes), numbers, numbers), validation=share, seed=seed)

    def some(part: Labelled, most: int) -> Pixels:
        rows = np.ascontiguousarray(part.images).view(np.int64).ravel()
        return pictures(files, column, rows[drawn(len(rows), most)], manifest.preprocessing)

    last = data / test
    rows = drawn(pq.read_metadata(last).num_rows, OWN)
    return {
        "train": some(parts.train, FITTED),
        "validation": some(parts.validation, OWN),
        "test": pictures([last], column, rows, manifest.preprocessing),
    }


def foreign_parts(own: str, data: Path, like: Preprocessing) -> dict[str, Pixels]:
    """Inputs of other kinds, ``choose/…`` out of training parts and ``report/…`` out of test parts."""
    found: dict[str, Pixels] = {}
    rng = np.random.default_rng(0)
    shape = (3, like.height, like.width)
    for use, most in (("choose", MADE), ("report", OWN)):
        for name, (column, train, test) in PICTURES.items():
            if name == own:
                continue
            files = [data / file for file in (train if use == "choose" else [test])]
            count = sum(pq.read_metadata(file).num_rows for file in files)
            found[f"{use}/{name}"] = pictures(files, column, drawn(count, most), like)
        part = "train" if use == "choose" else "test"
        found[f"{use}/speech"] = spectrograms(data / f"spoken-digits/{part}.parquet", like)
        found[f"{use}/noise"] = rng.integers(0, 256, (MADE, *shape), dtype=np.uint8)
        colours = rng.integers(0, 256, (MADE, 3, 1, 1), dtype=np.uint8)
        found[f"{use}/blank"] = np.broadcast_to(colours, (MADE, *shape)).copy()
    return found


def through_head(bundle: Bundle, images: Pixels) -> Seen:
    """What the bundle's head makes of images."""
    head = session(bundle.head, threads=1)
    parts = [
        head.run(["symbols", "logits"], {"image": images[at : at + 64]}) for at in range(0, len(images), 64)
    ]
    symbols, logits = (np.concatenate([part[place] for part in parts]) for place in range(2))
    return Seen(symbols, logits, np.array([len(bundle.codec.encode(one)[1]) for one in symbols]))


def collect(bundle: Bundle, own: str, data: Path, work: Path) -> dict[str, Seen]:
    """All parts through the head; kept in the work folder."""
    kept = work / f"{bundle.manifest.name}-{bundle.digest.hex()[:12]}.npz"
    if not kept.exists():
        images = known_parts(bundle, own, data) | foreign_parts(own, data, bundle.manifest.preprocessing)
        arrays = {
            f"{name}/{field}": getattr(seen, field)
            for name, seen in ((name, through_head(bundle, part)) for name, part in images.items())
            for field in ("symbols", "logits", "payloads")
        }
        work.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(kept, **arrays)
    with np.load(kept) as stored:
        names = sorted({key.rsplit("/", 1)[0] for key in stored.files})
        return {
            name: Seen(*(stored[f"{name}/{field}"] for field in ("symbols", "logits", "payloads")))
            for name in names
        }


# --- scores ---


def candidates(train: Seen, validation: Seen) -> list[Candidate]:
    """All scores, fitted."""
    known = train.features
    mean, deviation = known.mean(axis=0), np.maximum(known.std(axis=0), 0.05)
    # A tenth of the way to independent features, so that few images will do.
    covariance = 0.9 * np.cov(known.T) + np.diag(0.1 * deviation**2)
    precision = np.linalg.inv(covariance)
    usual = float(np.median(np.log(train.payloads)))
    size = len(mean)
    chosen = fit_unknown(answers(train), answers(validation))
    shipped = UnknownScore(chosen)
    numbers = (len(chosen.centres) + 1) * size

    def full(seen: Seen) -> NDArray[np.float64]:
        away = seen.features - mean
        return np.asarray(np.einsum("ni,ij,nj->n", away, precision, away) / size)

    def classwise(seen: Seen) -> NDArray[np.float64]:
        return shipped.scores(seen.symbols, one_hot(seen.logits))

    return [
        Candidate("1 − largest probability", lambda seen: 1.0 - seen.probabilities.max(axis=1), 0),
        Candidate("− largest logit", lambda seen: -seen.logits.max(axis=1).astype(np.float64), 0),
        Candidate("energy", energy, 0),
        Candidate("entropy", entropy, 0),
        Candidate("bytes of the code", lambda seen: np.abs(np.log(seen.payloads) - usual), 4),
        Candidate(
            "distance, one centre",
            lambda seen: np.asarray((((seen.features - mean) / deviation) ** 2).mean(axis=1)),
            4 * 2 * size,
        ),
        Candidate("distance, covariance", full, 4 * (size + size * (size + 1) // 2)),
        Candidate("distance, a centre a class", classwise, 4 * numbers),
        Candidate(SHIPPED, lambda seen: shipped.scores(seen.symbols, seen.probabilities), 4 * numbers),
    ]


SHIPPED = "the same + 2 · (1 − largest probability)"


def one_hot(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """All probability to the likeliest class: no doubt."""
    return np.asarray(np.eye(logits.shape[1], dtype=np.float32)[logits.argmax(axis=1)])


def energy(seen: Seen) -> NDArray[np.float64]:
    """− log Σ exp(logit)."""
    top = seen.logits.max(axis=1).astype(np.float64)
    return np.asarray(-top - np.log(np.exp(seen.logits - top[:, None]).sum(axis=1)))


def entropy(seen: Seen) -> NDArray[np.float64]:
    """Of the probabilities, nats."""
    p = seen.probabilities.astype(np.float64)
    return np.asarray(-(p * np.log(p + 1e-12)).sum(axis=1))


def answers(seen: Seen) -> Answers:
    """As calibration takes them."""
    return Answers(seen.symbols, seen.logits, seen.logits, np.zeros(len(seen.logits), np.int64))


def auroc(known: NDArray[np.float64], foreign: NDArray[np.float64]) -> float:
    """How often a foreign input scores higher than a known one."""
    ranks = rankdata(np.concatenate([known, foreign]))[len(known) :]
    return float((ranks.mean() - (len(foreign) + 1) / 2) / len(known))


# --- tables ---


@dataclass(frozen=True)
class Row:
    """One score on one bundle."""

    candidate: Candidate
    choose: dict[str, tuple[float, float]]
    """AUROC and share found at the threshold, by kind of foreign input, against validation images."""
    report: dict[str, tuple[float, float]]
    """The same against test images."""
    false_alarms: int
    tested: int


def measure(parts: dict[str, Seen]) -> list[Row]:
    """All scores on one bundle's inputs."""
    rows = []
    for each in candidates(parts["train"], parts["validation"]):
        validation, test = each.scores(parts["validation"]), each.scores(parts["test"])
        limit = float(np.quantile(validation, 1 - FALSE_ALARMS))
        found: dict[str, dict[str, tuple[float, float]]] = {"choose": {}, "report": {}}
        for name, seen in parts.items():
            use, _, kind = name.partition("/")
            if kind:
                scores = each.scores(seen)
                known = validation if use == "choose" else test
                found[use][kind] = auroc(known, scores), float((scores > limit).mean())
        rows.append(Row(each, found["choose"], found["report"], int((test > limit).sum()), len(test)))
    return rows


def competition(found: dict[str, list[Row]]) -> list[str]:
    """Means over kinds of foreign inputs, by bundle."""
    names = list(found)
    lines = [
        f"| score | {' | '.join(names)} | mean | B |",
        f"|---|{'---:|' * (len(names) + 2)}",
    ]
    for rows in zip(*found.values(), strict=True):
        means = [np.mean(list(row.choose.values()), axis=0) for row in rows]
        cells = [f"{100 * area:.1f} / {100 * share:.0f}" for area, share in [*means, np.mean(means, axis=0)]]
        stored = sorted({row.candidate.stored for row in rows})
        size = f"{stored[0]:,}" if len(stored) == 1 else f"{stored[0]:,} … {stored[-1]:,}"
        lines.append(f"| {rows[0].candidate.name} | {' | '.join(cells)} | {size} |")
    return lines


def report(found: dict[str, list[Row]]) -> list[str]:
    """The shipped score on test parts."""
    kinds = [*PICTURES, "speech", "noise", "blank"]
    lines = [f"| bundle | {' | '.join(kinds)} | false alarms |", f"|---|{'---:|' * (len(kinds) + 1)}"]
    for name, rows in found.items():
        row = next(each for each in rows if each.candidate.name == SHIPPED)
        cells = [
            "–"
            if kind not in row.report
            else f"{100 * row.report[kind][0]:.1f} / {100 * row.report[kind][1]:.0f}"
            for kind in kinds
        ]
        low, high = wilson(row.false_alarms, row.tested)
        share = f"{100 * row.false_alarms / row.tested:.1f} % ({100 * low:.1f} … {100 * high:.1f})"
        share += f" of {row.tested:,}"
        lines.append(f"| {name} | {' | '.join(cells)} | {share} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns its exit status."""
    return run_program(PROGRAM, _main, argv)


def _main(argv: Sequence[str] | None) -> int:
    parser = Parser(
        PROGRAM,
        description="Scores for foreign inputs: AUROC and share found at 5 % false alarms, per cent.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE=DATA", help=f"digits, {', '.join(PICTURES)}")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--work", type=Path, default=Path("build/unknown"), metavar="DIR")
    arguments = parser.parse_args(argv)
    found: dict[str, list[Row]] = {}
    for each in arguments.bundles:
        path, _, own = each.partition("=")
        if own not in ("digits", *PICTURES):
            raise ConfigError(f"{each}: expected BUNDLE=DATA, such as models/mine=cifar10")
        found[Path(path).name] = measure(collect(load_bundle(path), own, arguments.data, arguments.work))
    print("\n".join([*competition(found), "", *report(found)]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
