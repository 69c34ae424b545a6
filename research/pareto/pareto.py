"""Accuracy against mean bytes an image, for everything a device could send, at equal accuracy.

    pictures          every image to the whole model, as raw pixels, PNG, JPEG, WebP or AVIF
    hybrid            the early exit keeps what it is sure of; the others go as WebP to the whole model
    activations       the paper's scheme: one Huffman table over the INT8 activation of a regularised split
    rate-trained      ours: a trained narrow code in the shipped codec; and with every image sent
    … then pictures   ours, and those of which the server's answer is unsure too once more, as WebP, to the
                      whole model (``edge-device --picture-threshold``)

Bytes are those of the protobuf message with one frame (payload, checksum, tags), the same envelope for every
contender; an image that exits early sends none. The whole model is the one that is given for it; where a
second one is given that was trained on pictures so compressed, each picture contender has the better of both.
The hybrids' early exit is that of the rate-trained bundle whose exit is right most often. A split answers
what was sent as its manifest says, by the server or by both exits; the hybrids have the better of the two.
With every image sent, the server alone answers. A picture that comes after an activation travels without its
file's header (``common/wire/picture.py``), and its answer joins the ones before, or replaces them, likewise.

A contender's points differ in bundle, quality and T_c. What it costs at an accuracy is the fewest bytes among
its points that reach it. Intervals are the bootstrap's over test images, the same ones for all contenders.
"""

from __future__ import annotations

import hashlib
import math
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL
from numpy.typing import NDArray

from offramp.bench.baselines import (
    FORMATS,
    Format,
    head_answers,
    sent,
    tail_answers,
    whole_answers,
)
from offramp.bench.plots import Plot, Series
from offramp.bench.report_tables import Column, Report, Value
from offramp.bench.timing import one_core
from offramp.common import cpus
from offramp.common.bundle.load import Bundle
from offramp.common.codec.activation import CodecId
from offramp.common.errors import DataError
from offramp.common.part.answer import ANSWERED_BY, Replied, Replies
from offramp.common.part.engine import Engine
from offramp.common.wire.frame import Frame, FrameWriter
from offramp.common.wire.picture import encode_picture
from offramp.training.calibrate.codebook import huffman_tables, payload_bytes
from offramp.training.calibrate.frontier import frontier
from offramp.training.record import RECORD, Record, read_record

if TYPE_CHECKING:
    # It imports torch, which nothing here needs.
    from offramp.training.data.datasets import Dataset

PICTURES, HYBRID, PAPER, OURS = "pictures", "early exit + WebP", "activations (paper)", "rate-trained (ours)"
OURS_SENT = "ours, no early exit"
OURS_PICTURES = "ours, then pictures"
DROPS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06)
"""Points below the whole model at which contenders are compared."""

_RATIOS = {
    (OURS, HYBRID): f"ratio to {HYBRID}",
    (OURS, PICTURES): f"ratio to {PICTURES}",
    (OURS_SENT, PICTURES): f"ratio to {PICTURES}, no early exit",
    (OURS_PICTURES, HYBRID): f"ratio to {HYBRID}, then pictures",
}
"""Column of what is divided by what."""
_RUNS = 200
_SHARES = np.concatenate([np.linspace(0.0, 0.05, 51), np.linspace(0.055, 1.0, 190)])
"""Of images that are sent: in fine steps where few are."""
_AGAIN = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""Shares of what was sent that are sent once more, as pictures."""
_RESAMPLED = 500
_CALIBRATION = 1024

Rights = NDArray[np.bool_]
Sizes = NDArray[np.int64]


@dataclass(frozen=True)
class Points:
    """One contender: for each of P points and N images, bytes sent and whether the answer is right."""

    names: list[str]
    sent: NDArray[np.float32]
    right: NDArray[np.float32]

    @classmethod
    def joined(cls, parts: Sequence[Points]) -> Points:
        """All points of all parts."""
        return cls(
            [name for part in parts for name in part.names],
            np.concatenate([part.sent for part in parts]),
            np.concatenate([part.right for part in parts]),
        )


@dataclass(frozen=True)
class Split(Replied):
    """A bundle's answers for N images, and the payload each one takes."""

    payload: Sizes
    labels: NDArray[np.int64]

    @property
    def early_right(self) -> Rights:
        """Where the early exit is."""
        return np.asarray(self.early.argmax(axis=1) == self.labels)

    @property
    def right(self) -> Rights:
        """Where the answer to what was sent is."""
        return np.asarray(self.answers == self.labels)

    @property
    def final_right(self) -> Rights:
        """Where the server alone is."""
        return np.asarray(self.replies.best == self.labels)

    def right_after(self, pictures: Replies) -> Rights:
        """Where the answer is, were a picture sent as well."""
        return np.asarray(self.answers_after(pictures) == self.labels)


@dataclass(frozen=True)
class Sent:
    """N images in one format: bytes of each, int64 [N], and what each whole model makes of them."""

    sizes: Sizes
    answers: list[Replies]


@cache
def message_bytes(payload: int) -> int:
    """Bytes of a protobuf message that holds one frame with a payload of so many bytes."""
    return len(FrameWriter().pack([Frame(1, CodecId.BUNDLE, bytes(payload))]))


def _messages(payloads: Sizes) -> NDArray[np.float32]:
    return np.array([message_bytes(int(size)) for size in payloads], np.float32)


def run_split(bundle: Bundle, data: Dataset, *, one_table: bool) -> Split:
    """A bundle on the test images.

    one_table: payloads in one Huffman table, counted on validation images (the paper's); else as it ships.
    """
    engine = Engine(bundle, cpus.available())
    symbols, probabilities = head_answers(engine, data.test.images)
    answers = tail_answers(engine, symbols)
    if one_table:
        counted, _ = head_answers(engine, data.validation.images[:_CALIBRATION])
        payload = payload_bytes(huffman_tables(counted, [0] * counted.shape[1]), 1, symbols)
    else:
        payload = np.array([len(bundle.codec.encode(image)[1]) for image in symbols], np.int64)
    return Split(probabilities, answers, bundle.manifest.sent_answer, payload, data.test.labels)


def run_pictures(
    wholes: Sequence[Bundle],
    images: NDArray[np.uint8],
    formats: Sequence[Format] = FORMATS,
    tick: Callable[[], object] = lambda: None,
    *,
    kept: Path | None = None,
) -> dict[str, Sent]:
    """By format: bytes of each picture, and what each whole model makes of what it decodes to.

    Args:
        wholes: the models.
        images: of the test part, uint8 [N, 3, H, W].
        formats: what they are sent as.
        tick: called after each format.
        kept: folder with what former calls found for the same model, images, format and Pillow: it is taken
            from there, and what is new is left there.

    Raises:
        DataError: a file in ``kept`` that is not what its name says.
    """
    engines: dict[int, Engine] = {}
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    found = {}
    for form in formats:
        answers: list[Replies] = []
        coded: tuple[Sizes, NDArray[np.uint8]] | None = None
        for number, whole in enumerate(wholes):
            decides = ("answers", PIL.__version__, digest, whole.digest.hex(), form)
            path = kept and kept / f"{hashlib.sha256(repr(decides).encode()).hexdigest()[:16]}.npz"
            if path and path.exists():
                sizes, told = _read_answers(path, len(images), len(whole.manifest.classes))
                answers.append(told)
                continue
            coded = coded or sent(form, images)
            if number not in engines:
                engines[number] = Engine(whole, cpus.available())
            sizes = coded[0]
            answers.append(whole_answers(engines[number], coded[1]))
            if path:
                _keep_answers(path, sizes, answers[-1])
        found[form.name] = Sent(sizes, answers)
        tick()
    return found


def _read_answers(path: Path, count: int, classes: int) -> tuple[Sizes, Replies]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            sizes, best, probability = file["sizes"], file["best"], file["probability"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected kept answers, found {type(error).__name__}: remove it") from error
    types = (sizes.dtype, best.dtype, probability.dtype)
    shapes = {sizes.shape, best.shape, probability.shape}
    fits = types == (np.int64, np.int64, np.float32) and shapes == {(count,)}
    if not (fits and ((best >= 0) & (best < classes)).all()):
        raise DataError(f"{path}: expected kept answers for {count} images: remove it")
    return sizes, Replies(best, probability)


def _keep_answers(path: Path, sizes: Sizes, told: Replies) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, sizes=sizes, best=told.best, probability=told.probability)
    partial.replace(path)


def picture_payloads(
    images: NDArray[np.uint8],
    formats: Sequence[Format] = FORMATS,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, Sizes]:
    """Of each lossy WebP format: what each image, uint8 [N, 3, H, W], takes as a device sends it, int64."""
    found = {}
    for form in formats:
        settings = dict(form.settings)
        if form.pillow == "WEBP" and not settings.get("lossless"):
            sizes = [len(encode_picture(image, settings["quality"])) for image in images]
            found[form.name] = np.array(sizes, np.int64)
        tick()
    return found


def split_points(name: str, device: Split, server: Rights, payload: Sizes) -> Points:
    """An early exit in front of a server, at thresholds that send 0 … 100 % of the images.

    Args:
        name: the contender's part in this.
        device: whose early exit decides, and answers what it is sure of.
        server: where the answer is right, were the image sent.
        payload: what that would take.
    """
    confidence = device.early.max(axis=1)
    order = np.sort(confidence)
    at = _thresholds(order, _SHARES)
    thresholds = np.concatenate([[0.0], at, [1.0]]).astype(np.float32)
    offloaded = confidence[None] <= thresholds[:, None]
    message = _messages(payload)
    return Points(
        [f"{name}, T_c = {decimal(threshold, order)}" for threshold in thresholds],
        np.where(offloaded, message, np.float32(0)),
        np.where(offloaded, server, device.early_right).astype(np.float32),
    )


def _thresholds(confidences: NDArray[np.float32], shares: NDArray[np.float64]) -> NDArray[np.float32]:
    """The confidences, out of these, ascending, below which such shares of the images are sent."""
    return np.unique(confidences[np.minimum((shares * len(confidences)).astype(int), len(confidences) - 1)])


def decimal(threshold: float, confidences: NDArray[np.float32]) -> str:
    """The shortest number that parts these confidences, ascending, as this threshold does."""
    after = int(np.searchsorted(confidences, threshold, "right"))
    following = float(confidences[after]) if after < len(confidences) else np.inf
    for digits in range(1, 18):
        value = math.ceil(float(threshold) * 10**digits) / 10**digits
        if float(threshold) <= value < following:
            return f"{value:.{digits}f}"
    return repr(float(threshold))


def picture_points(found: Mapping[str, Sent], labels: NDArray[np.int64]) -> Points:
    """Every image sent as a picture to the whole model."""
    names, sent, right = [], [], []
    for name, one in found.items():
        message = _messages(one.sizes)
        for number, told in enumerate(one.answers):
            names.append(name + (", model trained on WebP" if number else ""))
            sent.append(message)
            right.append((told.best == labels).astype(np.float32))
    return Points(names, np.stack(sent), np.stack(right))


def hybrid_points(device: Split, found: Mapping[str, Sent]) -> Points:
    """Unsure images sent as WebP of every quality; the server answers, or both exits do."""
    return Points.joined(
        [
            split_points(name, device, told.answers(device.early, rule) == device.labels, one.sizes)
            for name, one in found.items()
            if name.startswith("WebP")
            for told in one.answers
            for rule in ANSWERED_BY
        ]
    )


def points_then_pictures(
    splits: Mapping[str, Split], found: Mapping[str, Sent], payloads: Mapping[str, Sizes]
) -> Points:
    """An early exit, then both exits, then a picture: two thresholds, every quality and every whole model.

    Of so many only those are kept that no other beats in bytes and accuracy, which leaves a resampling fewer
    to choose from: its costs are no lower than those of all would be.

    Args:
        splits: by name.
        found: what the whole models make of the pictures.
        payloads: what each picture takes as a device sends it.
    """
    every = [
        again
        for name, split in splits.items()
        for form, payload in payloads.items()
        for number, told in enumerate(found[form].answers)
        for again in _again(
            f"{name}, {form}" + (", model trained on WebP" if number else ""), split, told, payload
        )
    ]
    kept = _unbeaten(every)
    sent, right = zip(*(again.images() for again in kept), strict=True)
    return Points([again.name for again in kept], np.stack(sent), np.stack(right))


@dataclass(frozen=True)
class _Again:
    """One point with pictures: its means, and how to have it for each image."""

    name: str
    bytes_mean: float
    right_mean: float
    images: Callable[[], tuple[NDArray[np.float32], NDArray[np.float32]]]


def _unbeaten(points: list[_Again]) -> list[_Again]:
    """Those that no other beats, by bytes."""
    means = np.array([(point.bytes_mean, point.right_mean) for point in points]).reshape(-1, 2)
    return [points[number] for number in frontier(means[:, 0], means[:, 1])]


def _again(name: str, split: Split, pictures: Replies, payload: Sizes) -> list[_Again]:
    """The unbeaten points of one split, quality and whole model."""
    confidence, told_confidence = split.early.max(axis=1), split.confidence
    message, picture = _messages(split.payload), _messages(payload)
    rights = split.early_right, split.right, split.right_after(pictures)
    order = np.sort(confidence)
    points: list[_Again] = []
    for threshold in _thresholds(order, _SHARES[1:]):
        first = decimal(float(threshold), order)
        sent = confidence <= threshold
        unsure = np.sort(told_confidence[sent])
        for second in np.unique([unsure[int(np.ceil(share * len(unsure))) - 1] for share in _AGAIN]):

            def images(
                sent: Rights = sent, again: Rights = sent & (told_confidence <= second)
            ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
                bytes_ = np.where(sent, message, np.float32(0)) + np.where(again, picture, np.float32(0))
                right = np.where(again, rights[2], np.where(sent, rights[1], rights[0]))
                return bytes_, right.astype(np.float32)

            bytes_, right = images()
            text = f"{name}, T_c = {first}, then {decimal(float(second), unsure)}"
            points.append(_Again(text, float(bytes_.mean()), float(right.mean()), images))
        points = _unbeaten(points)
    return points


def sent_points(splits: Mapping[str, Split]) -> Points:
    """Every image sent, and answered by the server alone: one point for each bundle."""
    messages = [_messages(split.payload) for split in splits.values()]
    rights = [split.final_right for split in splits.values()]
    return Points(list(splits), np.stack(messages), np.array(rights, np.float32))


@dataclass(frozen=True)
class Costs:
    """Mean bytes an image at each accuracy that is asked for: of the data, and of each resampling."""

    value: NDArray[np.float64]
    resampled: NDArray[np.float64]
    """[resamplings, accuracies]; infinite where no point reaches the accuracy."""
    best: list[str | None]
    """Which point it was."""


def costs(points: Points, accuracies: Sequence[float], *, seed: int = 0) -> Costs:
    """The fewest mean bytes at each accuracy, with the bootstrap over images."""
    count = points.sent.shape[1]
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(count, np.full(count, 1 / count), _RESAMPLED).astype(np.float32) / count
    weights = np.concatenate([np.full((1, count), 1 / count, np.float32), weights])
    mean_sent, mean_right = weights @ points.sent.T, weights @ points.right.T
    found = np.empty((len(weights), len(accuracies)))
    best: list[str | None] = []
    for number, wanted in enumerate(accuracies):
        # Means in float32 are off by less than one image in a thousand sets.
        reached = np.where(mean_right >= wanted - 1e-6, mean_sent, np.inf)
        found[:, number] = reached.min(axis=1)
        first = int(reached[0].argmin())
        best.append(points.names[first] if np.isfinite(reached[0, first]) else None)
    return Costs(found[0], found[1:], best)


def compare(
    ours: Mapping[str, Split],
    papers: Mapping[str, Split],
    pictures: Mapping[str, Sent],
    payloads: Mapping[str, Sizes],
    *,
    about: str,
) -> Report:
    """All contenders beside one another.

    Args:
        ours: rate-trained bundles by name; the hybrids take the early exit that is right most often.
        papers: bundles of the paper's scheme, by name; may be none.
        pictures: see ``run_pictures``; "raw pixels" tells what the better whole model reaches.
        payloads: see ``picture_payloads``; may be none.
        about: where the figures come from.
    """
    best_exit = max(ours.values(), key=lambda split: float(split.early_right.mean()))
    labels = best_exit.labels
    contenders = {PICTURES: picture_points(pictures, labels), HYBRID: hybrid_points(best_exit, pictures)}
    for name, splits in ((PAPER, papers), (OURS, ours)):
        if splits:
            contenders[name] = Points.joined(
                [split_points(own, split, split.right, split.payload) for own, split in splits.items()]
            )
    contenders[OURS_SENT] = sent_points(ours)
    if payloads:
        then = points_then_pictures(ours, pictures, payloads)
        contenders[OURS_PICTURES] = Points.joined([contenders[OURS], then])
    whole = max(float((told.best == labels).mean()) for told in pictures["raw pixels"].answers)
    return report(contenders, whole, about=about)


def devices(bundles: Sequence[Bundle], whole: Bundle, *, about: str) -> Report:
    """What each bundle asks of a device, and what INT8 costs it.

    Args:
        bundles: of each with its record beside it, the head's share of multiply-accumulates is known too.
        whole: the unsplit model, likewise; these are 100 %.
        about: where the figures come from.
    """
    records = {one.path: _record(one) for one in (*bundles, whole)}
    unsplit = records[whole.path]
    rows: list[dict[str, Value]] = []
    for bundle in bundles:
        record, figures = records[bundle.path], bundle.manifest.figures
        share = None
        if record is not None and unsplit is not None:
            share = record.cost.device_macs / (unsplit.cost.device_macs + unsplit.cost.server_macs)
        shape = bundle.manifest.activation.shape
        rows.append(
            {
                "bundle": bundle.manifest.name,
                "symbols": "x".join(str(side) for side in shape),
                "payload": figures.payload_bytes_mean,
                "early": 100 * figures.accuracy_early,
                "early_float": 100 * figures.accuracy_early_float,
                "final": 100 * figures.accuracy_final,
                "final_float": 100 * figures.accuracy_final_float,
                "macs": None if share is None else 100 * share,
                "head_kb": len(bundle.head) / 1024,
                "tail_kb": len(bundle.tail) / 1024,
                "head_ms": head_milliseconds(bundle),
            }
        )
    columns = [
        Column("bundle", "bundle"),
        Column("symbols", "symbols"),
        Column("payload", "payload, B an offloaded image"),
        Column("early", "early exit %", 2),
        Column("early_float", "in float %", 2),
        Column("final", "final exit %", 2),
        Column("final_float", "in float %", 2),
        Column("macs", "head, % of the unsplit model's MACs"),
        Column("head_kb", "head.onnx KB"),
        Column("tail_kb", "tail.onnx KB"),
        Column("head_ms", "head ms", 3),
    ]
    notes = [
        "Accuracies over all test images, each bundle's own record. Milliseconds are processor time of one "
        f"image on one thread, the median of {_RUNS} runs.",
        about,
    ]
    return Report("pareto-devices", "What the bundles ask of a device", columns, rows, None, notes)


def _record(bundle: Bundle) -> Record | None:
    path = bundle.path / RECORD
    return read_record(path) if path.exists() else None


def head_milliseconds(bundle: Bundle) -> float:
    """Median processor time of the head for one image, on one thread."""
    engine = Engine(bundle, 1)
    pre = bundle.manifest.preprocessing
    image = np.random.default_rng(0).integers(0, 256, (1, 3, pre.height, pre.width), np.uint8)
    times = []
    with one_core():
        for _ in range(_RUNS):
            start = time.process_time_ns()
            engine.head(image)
            times.append(time.process_time_ns() - start)
    return float(np.median(times)) / 1e6


def report(contenders: Mapping[str, Points], whole: float, *, about: str) -> Report:
    """The table and the plot.

    Args:
        contenders: by name; the ratios are of ``OURS`` to ``HYBRID`` and to ``PICTURES``, of
            ``OURS_SENT`` to ``PICTURES``, and of ``OURS_PICTURES`` to ``HYBRID``.
        whole: accuracy of the whole model on the images as they are.
        about: where the figures come from.
    """
    wanted = [whole - drop for drop in DROPS]
    priced = {name: costs(points, wanted) for name, points in contenders.items()}
    rows: list[dict[str, Value]] = []
    for number, (drop, accuracy) in enumerate(zip(DROPS, wanted, strict=True)):
        row: dict[str, Value] = {"drop": 100 * drop, "accuracy": 100 * accuracy}
        for name, cost in priced.items():
            row[name] = _interval(cost.value[number], cost.resampled[:, number], 1)
        for (own, rival), label in _RATIOS.items():
            if rival in priced and own in priced:
                ours, other = priced[own], priced[rival]
                with np.errstate(invalid="ignore", divide="ignore"):
                    row[label] = _interval(
                        ours.value[number] / other.value[number],
                        ours.resampled[:, number] / other.resampled[:, number],
                        3,
                    )
        row["point"] = priced[OURS].best[number] if OURS in priced else None
        if OURS_PICTURES in priced:
            row["point_pictures"] = priced[OURS_PICTURES].best[number]
        rows.append(row)
    columns = [Column("drop", "points below", 0), Column("accuracy", "accuracy %", 2)]
    columns += [Column(name, f"{name}, B") for name in priced]
    columns += [Column(key, key) for key in rows[0] if key.startswith("ratio")]
    columns.append(Column("point", "our point"))
    if OURS_PICTURES in priced:
        columns.append(Column("point_pictures", "… then pictures"))
    notes = [
        "Mean bytes of protobuf messages over all images; in brackets the 95 % interval of the bootstrap. "
        "A dash: no point of the contender reaches the accuracy. Every contender has its best point at each "
        "accuracy, chosen on these images.",
        about,
    ]
    title = "Accuracy against mean bytes an image, test split"
    lines = [_line(name, points) for name, points in contenders.items()]
    plot = Plot(title, "mean bytes an image (messages)", "top-1 accuracy %", lines, log_x=True)
    return Report("pareto", title, columns, rows, plot, notes)


def _line(name: str, points: Points) -> Series:
    """The points that no other of the contender beats, by bytes; a picture format is one point."""
    sent, right = points.sent.mean(axis=1), 100 * points.right.mean(axis=1)
    kept = frontier(sent, right)
    kept = kept[sent[kept] > 0]
    return Series(name, sent[kept].tolist(), right[kept].tolist(), paper=name == PAPER)


def _interval(value: float, resampled: NDArray[np.float64], digits: int) -> str | None:
    if not np.isfinite(value):
        return None
    low, high = np.percentile(np.where(np.isnan(resampled), np.inf, resampled), [2.5, 97.5], method="nearest")
    ends = [f"{end:,.{digits}f}" if np.isfinite(end) else "∞" for end in (low, high)]
    return f"{value:,.{digits}f} [{ends[0]}, {ends[1]}]"
