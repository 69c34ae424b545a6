"""What a split is worth: accuracy by class, the curve over T_c, pictures beside it, and one sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.common.errors import printable
from offramp.common.files import replace_file
from offramp.common.inputs.spec import TensorInput, WavFile
from offramp.common.part.answer import ANSWERED_BY
from offramp.training.calibrate.chain import points
from offramp.training.calibrate.intervals import wilson
from offramp.training.data.datasets import Dataset
from offramp.training.split.board import text_of
from offramp.training.split.build import Built
from offramp.training.split.cuts import Cost
from offramp.training.split.divergence import Divergence
from offramp.training.split.rivals import Comparison, Point, cheapest

MARKDOWN, JSON = "report.md", "report.json"
SHOWN = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class Device:
    """What the device computes: the head, the encoder and the early exit, beside the whole model."""

    head: Cost
    whole: Cost
    code_macs: int
    peak_bytes: int

    @property
    def share(self) -> float:
        """Of the whole model's multiply-accumulates."""
        return (self.head.macs + self.code_macs) / max(1, self.whole.macs)


@dataclass(frozen=True)
class Words:
    """What inputs and rivals are called.

    one, many: an input, inputs; file: what else is sent; rivals: its formats; hybrid: the same for unsure
    inputs alone; note: how they were measured.
    """

    one: str
    many: str
    file: str
    rivals: str
    hybrid: str
    note: str


PHOTOS = Words(
    "photo",
    "photos",
    "picture",
    "WebP or JPEG",
    "early exit + WebP",
    "Pictures are whole files at the network's size, answered by the unsplit model in float,",
)
_SOUNDS = Words(
    "sound",
    "sounds",
    "sound",
    "Opus, FLAC or raw samples",
    "early exit + Opus",
    "Sounds are the samples alone, at the network's rate and without what a file's headers take, answered by "
    "the unsplit model in float, which was not trained on coded ones; one that was does better.",
)
_TENSORS = Words(
    "tensor",
    "tensors",
    "tensor",
    "raw or deflated bytes",
    "early exit + deflated bytes",
    "Tensors are the values that the network takes, one byte each, answered by the unsplit model in float.",
)


def words_of(spec: TensorInput) -> Words:
    """For a split whose inputs are no pictures."""
    return _SOUNDS if isinstance(spec.file, WavFile) else _TENSORS


@dataclass(frozen=True)
class Report:
    """All that is reported, as plain values, and the sentence."""

    values: dict[str, Any]
    verdict: str


def _by_class(data: Dataset, rights: Mapping[str, NDArray[np.bool_]]) -> list[dict[str, Any]]:
    """How often each class is answered right; None where no test photo is of it: nothing is known then."""
    found = []
    for number, name in enumerate(data.classes):
        own = data.test.labels == number
        shares = {key: float(right[own].mean()) if own.any() else None for key, right in rights.items()}
        found.append({"class": name, "photos": int(own.sum())} | shares)
    return found


def make_report(
    built: Built,
    data: Dataset,
    unsplit: NDArray[np.float32],
    comparison: Comparison,
    device: Device,
    *,
    model: str,
    cuts: Sequence[str],
    classifier: str,
    shape: tuple[int, ...],
    words: Words = PHOTOS,
    board: dict[str, Any] | None = None,
) -> Report:
    """Put the figures together.

    Args:
        unsplit: the unsplit model's logits on the test photos, float32 [N, K], in float.
        comparison: pictures beside the pair.
        model, cuts, classifier: in words.
        shape: of the tensor at the first cut.
        board: of `Board.report`, where there is a microcontroller.
    """
    manifest, seen, labels = built.bundle.manifest, built.answers, data.test.labels
    at = manifest.threshold
    whole_right = unsplit.argmax(axis=1) == labels
    rights = {"unsplit": whole_right, "pair": seen.right(at), "early": seen.early_right}
    count = len(labels)
    accuracies = {key: float(right.mean()) for key, right in rights.items()}
    sent = ~seen.exits(at)
    values: dict[str, Any] = {
        "bundle": manifest.name,
        "digest": built.bundle.digest.hex(),
        "model": model,
        "cut": cuts[0],
        "crossing": list(shape),
        "symbols": list(manifest.activation.shape),
        "classifier": classifier,
        "photos": {"train": len(data.train), "validation": len(data.validation), "test": count},
        "device": {
            "macs": device.head.macs + device.code_macs,
            "share_of_macs": device.share,
            "whole_macs": device.whole.macs,
            "head_bytes": len(built.bundle.head),
            "tail_bytes": len(built.bundle.tail),
            "peak_bytes": device.peak_bytes,
        },
        "quantized": {
            "head_decibels": list(built.head.noise),
            "tail_decibels": list(built.tail.noise),
            "head": [asdict(each) for each in built.head.divergence],
            "tail": [asdict(each) for each in built.tail.divergence],
            "in_float": {"head": list(built.head.in_float), "tail": list(built.tail.in_float)},
            "in_float_kinds": {"head": built.head.kinds, "tail": built.tail.kinds},
            "accuracy_early_float": manifest.figures.accuracy_early_float,
            "accuracy_final_float": manifest.figures.accuracy_final_float,
        },
        "codec": built.codec,
        "threshold": at,
        "temperature": manifest.temperature,
        "sent_answer": manifest.sent_answer,
        "accuracy": accuracies
        | {"final": float(seen.final_right.mean()), "sent": float(seen.sent_right.mean())},
        "interval": {key: list(wilson(int(right.sum()), count)) for key, right in rights.items()},
        "bytes_mean": float(np.where(sent, built.payloads, 0).mean()),
        "bytes_of_sent": float(built.payloads[sent].mean()) if sent.any() else 0.0,
        "exit_rate": float(1 - sent.mean()),
        "validation_accuracy": built.chosen_accuracy,
        "classes": _by_class(data, rights),
        "comparison": comparison.as_json(),
    }
    values |= _of_chain(built, cuts) | {"words": asdict(words)}
    if board is not None:
        values["microcontroller"] = board
    text = verdict(comparison, f"T_c = {at:g}", accuracies["unsplit"], words)
    values["verdict"] = text
    return Report(values, text)


def _of_chain(built: Built, cuts: Sequence[str]) -> dict[str, Any]:
    """Of each part its figures as the manifest has them, and what it is; then points for a plan. A pair has
    neither."""
    manifest, found = built.bundle.manifest, []
    if len(cuts) == 1:
        return {}
    figures = manifest.figures.parts
    assert figures is not None
    for number, (part, own, graph) in enumerate(
        zip(manifest.parts, figures, built.bundle.graphs, strict=True)
    ):
        values: dict[str, Any] = own.model_dump() | {
            "macs": part.macs,
            "weights": part.weights,
            "graph_bytes": len(graph),
            "quantized": [asdict(each) for each in built.parts[number].divergence],
            "in_float": built.parts[number].kinds,
        }
        if part.exit is not None:
            values |= {
                "cut": cuts[number],
                "symbols": list(manifest.crossings[number].shape),
                "codec": built.codecs[number],
                "threshold": part.exit.threshold,
                "temperature": part.exit.temperature,
            }
        found.append(values)
    thresholds = [part.exit.threshold for part in manifest.parts if part.exit is not None]
    measured = points(built.chain, built.hops, thresholds)
    return {"parts": found, "points": [asdict(each) for each in measured]}


def verdict(found: Comparison, chosen: str, unsplit: float, words: Words = PHOTOS) -> str:
    """One sentence: what the pair saves beside pictures of the same accuracy, or that they are better."""
    ours = next((each for each in found.ours if each.name == chosen), None)
    assert ours is not None
    rivals = {
        words.rivals: cheapest(found.pictures, ours.accuracy),
        words.hybrid: cheapest(found.hybrids, ours.accuracy),
    }
    better = [each for each in rivals.values() if each is not None and each.bytes_mean < ours.bytes_mean]
    below = 100 * (unsplit - ours.accuracy)
    gap = f"{below:.1f} points below the unsplit model" if below > 0.05 else "no worse than the unsplit model"
    reached = f"{ours.accuracy:.1%} right ({gap}) for {ours.bytes_mean:,.1f} B a {words.one} on average"
    if ours.bytes_mean == 0:
        return f"Nothing has to be sent: the early exit alone is {reached}; a server adds nothing here."
    if better:
        best = min(better, key=lambda each: each.bytes_mean)
        return (
            f"Send the {words.file}: {best.name} is {best.accuracy:.1%} right for {best.bytes_mean:,.1f} B a "
            f"{words.one}, where this split is {reached}."
        )
    parts = [
        f"{name} needs {each.bytes_mean / max(ours.bytes_mean, 0.05):,.0f} times as many for as much "
        f"({each.bytes_mean:,.0f} B, {each.name})"
        if each is not None
        else f"no quality of {name} that was tried is as often right"
        for name, each in rivals.items()
    ]
    return f"The split is {reached}; {'; '.join(parts)}."


def markdown(report: Report) -> str:
    """The report to read."""
    v = report.values
    words = Words(**v["words"])
    accuracy, interval, device = v["accuracy"], v["interval"], v["device"]
    photos = v["photos"]
    low, high = interval["pair"]
    lines = [
        f"# {printable(v['bundle'])}",
        "",
        report.verdict,
        "",
        f"- model: `{printable(v['model'])}`, cut after `{printable(v['cut'])}`, where "
        f"{'×'.join(map(str, v['crossing']))} values cross; {printable(v['classifier'])}",
        f"- device: {device['share_of_macs']:.0%} of the multiply-accumulates "
        f"({device['macs'] / 1e6:,.1f} M), head {device['head_bytes']:,} B; server: tail "
        f"{device['tail_bytes']:,} B",
        *([f"- microcontroller: {text_of(v['microcontroller'])}"] if "microcontroller" in v else ()),
        f"- sent: {'×'.join(map(str, v['symbols']))} symbols, coded by {v['codec']}: "
        f"{v['bytes_of_sent']:,.1f} B for each {words.one} that is sent",
        f"- at T_c = {v['threshold']:g}: {accuracy['pair']:.2%} right (95 %: {low:.1%} to {high:.1%}), "
        f"{v['exit_rate']:.1%} of the {words.many} answered by the device, the others by "
        f"{ANSWERED_BY[v['sent_answer']]}; {v['bytes_mean']:,.1f} B a {words.one} on average",
        f"- unsplit, in float: {accuracy['unsplit']:.2%}; early exit alone: {accuracy['early']:.2%}; "
        f"all sent: {accuracy['sent']:.2%}",
        f"- quantized: {_quantized(v['quantized'])}",
        f"- {words.many}: {photos['train']:,} to train, {photos['validation']:,} to choose, "
        f"{photos['test']:,} to test",
        "",
        *_by_part(v.get("parts", []), words),
        "## By class",
        "",
        *_table(
            ("class", words.many, "unsplit", f"at T_c = {v['threshold']:g}", "early exit alone"),
            [
                (
                    printable(each["class"], 60),
                    f"{each['photos']:,}",
                    *(
                        "unknown" if each[key] is None else f"{each[key]:.1%}"
                        for key in ("unsplit", "pair", "early")
                    ),
                )
                for each in v["classes"]
            ],
        ),
        "",
        f"## Over T_c, and {words.file}s",
        "",
        f"On {v['comparison']['photos']:,} test {words.many}. {_note(words, v['comparison']['tuned'])} "
        f'"{words.hybrid.capitalize()}" is the best T_c and quality for the accuracy of its row.',
        "",
    ]
    rows = _curve(v["comparison"], v["threshold"])
    lines += _table(("T_c", "right", f"bytes a {words.one}", words.rivals, words.hybrid), rows)
    lines += ["", *_table((words.file, "bytes", "right"), _pictures(v["comparison"])), ""]
    return "\n".join(lines)


def _by_part(parts: Sequence[dict[str, Any]], words: Words) -> list[str]:
    if not parts:
        return []
    head = ("part", "up to", "T_c", "answers", "rightly", "alone", "in float", f"B a {words.one} on", "M MAC")
    rows = [
        (
            str(number),
            printable(each.get("cut", "the end")),
            f"{each['threshold']:g}" if "threshold" in each else "",
            f"{each['answered']:.1%}",
            f"{each['right']:.2%}",
            f"{each['accuracy']:.2%}",
            f"{each['accuracy_float']:.2%}",
            f"{each['sent_bytes_mean']:,.1f}",
            f"{(each['macs'] or 0) / 1e6:,.1f}",
        )
        for number, each in enumerate(parts, start=1)
    ]
    text = (
        f"Answers and bytes are shares of all {words.many} and means over them, each exit at its T_c; "
        '"alone" '
        f"is right were every {words.one} to reach the part. The figures above and below are the first "
        "part's, with all that is behind it for the server."
    )
    return ["## By part", "", *_table(head, rows), "", text, ""]


def _note(words: Words, epochs: float) -> str:
    return f"{words.note} {_tuned(epochs)}" if words == PHOTOS else words.note


def _tuned(epochs: float) -> str:
    if not epochs:
        return "which was not trained on them; one that was does better (`--rival-minutes`)."
    return f"or by a copy of it tuned on WebP for {epochs:.3g} epochs, whichever is right more often."


def _quantized(found: dict[str, Any]) -> str:
    """How far both halves are from their float form, and what of them stays in it."""
    parts = []
    for half, name in (("head", "device"), ("tail", "server")):
        off = "; ".join(Divergence(**each).text() for each in found[half])
        kinds = found["in_float_kinds"][half]
        parts.append(f"{name}: {off}; {kinds} in float" if kinds else f"{name}: {off}")
    return ". ".join(parts)


def _points(values: Sequence[dict[str, Any]]) -> list[Point]:
    return [Point(**each) for each in values]


def _curve(comparison: dict[str, Any], threshold: float) -> list[tuple[str, ...]]:
    wanted = {f"T_c = {at:g}" for at in (*SHOWN, threshold)}
    pictures, hybrids = (_points(comparison[name]) for name in ("pictures", "hybrids"))
    rows = []
    for each in _points(comparison["ours"]):
        if each.name in wanted:
            beside = [cheapest(found, each.accuracy) for found in (pictures, hybrids)]
            rows.append(
                (
                    each.name.removeprefix("T_c = "),
                    f"{each.accuracy:.2%}",
                    f"{each.bytes_mean:,.1f}",
                    *("not reached" if one is None else f"{one.bytes_mean:,.1f}" for one in beside),
                )
            )
    return rows


def _pictures(comparison: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (each.name, f"{each.bytes_mean:,.0f}", f"{each.accuracy:.2%}")
        for each in _points(comparison["pictures"])
    ]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    line = "|" + "---|" + "---:|" * (len(head) - 1)
    return [f"| {' | '.join(row)} |" for row in (head,)] + [line] + [f"| {' | '.join(row)} |" for row in rows]


def write(report: Report, out: Path) -> None:
    """`MARKDOWN` and `JSON` beside the bundle."""
    contents = {MARKDOWN: markdown(report), JSON: json.dumps(report.values, indent=1) + "\n"}
    for name, text in contents.items():
        replace_file(out / name, text.encode())
