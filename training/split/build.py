"""From a fitted split to a bundle: quantize, count code tables, choose T_c, measure, write.

Validation photos choose, test photos are only measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import CODEBOOK, HEAD, TAIL, Crossing, Cut, Exit, Manifest, Part
from offramp.common.bundle.write import file_entries, write_bundle
from offramp.common.errors import printable
from offramp.common.inputs.spec import PictureInput, TensorInput
from offramp.training.calibrate.card import figures, provenance
from offramp.training.calibrate.codebook import Candidate, choose_codec, payload_bytes
from offramp.training.calibrate.confidence import fit_temperature
from offramp.training.calibrate.measure import Answers, run_graphs, with_better_answer
from offramp.training.calibrate.threshold import choose_threshold
from offramp.training.calibrate.unknown import unknown_or_none
from offramp.training.data.datasets import Dataset, Labelled
from offramp.training.export import Graphs
from offramp.training.split.code import ZERO_POINT, Code
from offramp.training.split.graphs import (
    CODE,
    IMAGE,
    LAST,
    NORMALISE,
    TENSOR,
    float_graphs,
    from_symbols,
    with_symbols,
)
from offramp.training.split.halves import Halves
from offramp.training.split.macs import COUNTED
from offramp.training.split.photos import Normalise, batches
from offramp.training.split.quantize import Quantized, quantize
from offramp.training.split.whole import WholeCode

CALIBRATION = 200
"""Photos on which ranges are measured."""
TABLES = 4000
"""Training photos on whose symbols code tables are counted, at most."""


@dataclass(frozen=True)
class Goal:
    """What T_c is chosen for: at most so many points below the best accuracy, or at most so many bytes."""

    drop: float | None
    budget: float | None


@dataclass(frozen=True)
class Split:
    """What was fitted, with its names.

    name: of the bundle; model, cut: by what a user calls them; number: of the cut, from 1.
    recipe: the text of what made it; seed: it was made with.
    tensor: what it takes, where that is no picture.
    """

    halves: Halves
    code: Code | WholeCode
    normalise: Normalise
    name: str
    model: str
    cut: str
    number: int
    recipe: str
    seed: int
    tensor: TensorInput | None = None


@dataclass(frozen=True)
class Built:
    """A bundle, and what was measured of it on the test photos.

    answers: of its graphs, at its temperature; payloads: bytes of each photo, int64 [N]; codec: its name.
    head, tail: how they were quantized; chosen_accuracy: of T_c on validation photos.
    """

    bundle: Bundle
    answers: Answers
    payloads: NDArray[np.int64]
    codec: str
    head: Quantized
    tail: Quantized
    chosen_accuracy: float


def build(
    out: Path, split: Split, data: Dataset, goal: Goal, say: Callable[[str], object] = lambda _: None
) -> Built:
    """Write the bundle. Raises BundleError for graphs that no bundle may have, DataError for a goal that no
    T_c meets."""
    shape = tuple(int(side) for side in data.train.images.shape[1:])
    head, tail = _quantized(split, data, shape, say)
    graphs = Graphs(
        with_symbols(head.model).SerializeToString(deterministic=True),
        from_symbols(tail.model).SerializeToString(deterministic=True),
    )
    say("counting code tables and choosing T_c")
    seen = run_graphs(graphs, data.validation)
    known = run_graphs(graphs, _some(data.train, TABLES))
    codec = choose_codec(known.symbols, seen.symbols)
    temperature = min(1000.0, max(0.001, fit_temperature(seen.early, seen.labels)))
    seen = with_better_answer(replace(seen, temperature=temperature))
    chosen = choose_threshold(
        seen,
        payload_bytes(codec.tables, codec.lanes, seen.symbols),
        drop=None if goal.drop is None else goal.drop / 100,
        budget=goal.budget,
        seed=split.seed,
    )
    say("measuring on the test photos")
    answers = replace(run_graphs(graphs, data.test), temperature=temperature, sent_answer=seen.sent_answer)
    payloads = payload_bytes(codec.tables, codec.lanes, answers.symbols)
    manifest, files = _manifest(split, data, graphs, codec, answers, payloads, chosen.threshold)
    unknown = unknown_or_none(replace(known, temperature=temperature), seen)
    bundle = write_bundle(out, manifest.changed(unknown=unknown), files)
    return Built(bundle, answers, payloads, codec.name, head, tail, chosen.accuracy)


def _manifest(
    split: Split,
    data: Dataset,
    graphs: Graphs,
    codec: Candidate,
    answers: Answers,
    payloads: NDArray[np.int64],
    threshold: float,
) -> tuple[Manifest, dict[str, bytes]]:
    """What the bundle says of itself, and its files; answers and payloads are of the test part."""
    files = {HEAD: graphs.head, TAIL: graphs.tail, CODEBOOK: codec.tables.to_bytes()}
    entries = file_entries(files)
    shape = tuple(int(side) for side in data.train.images.shape[1:])
    (head_macs, head_weights), (tail_macs, tail_weights) = costs(split.halves, split.code, shape)
    cut = Cut(name=printable(split.cut, 200), number=split.number)
    manifest = Manifest(
        format_version=2,
        name=split.name,
        model=printable(split.model, 200),
        input=split.tensor or PictureInput(color="RGB", height=shape[1], width=shape[2], resize="bilinear"),
        classes=list(data.classes),
        files=entries,
        parts=[
            Part(
                graph=HEAD,
                cut=cut,
                macs=head_macs,
                weights=head_weights,
                exit=Exit(threshold=threshold, temperature=answers.temperature),
            ),
            Part(graph=TAIL, macs=tail_macs, weights=tail_weights),
        ],
        crossings=[
            Crossing(
                shape=split.code.symbols_shape,
                scale=1.0,
                zero_point=ZERO_POINT,
                codec=codec.entry,
                tables=CODEBOOK,
            )
        ],
        answers="all" if answers.sent_answer == "both" else "last",
        provenance=provenance(data, split.recipe, split.seed),
        figures=figures(answers, _in_float(split, data.test), payloads, threshold),
    )
    return manifest, files


def costs(
    halves: Halves, code: Code | WholeCode, shape: tuple[int, ...]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Multiply-accumulates for one input and weights, of the device's part and the server's, with the code.

    shape: of one input.
    """
    image, crossing = torch.zeros(1, *shape), torch.zeros(1, *code.layout.shape)
    symbols = torch.zeros(1, *code.symbols_shape)
    with torch.inference_mode():
        features = code.features(crossing)
    first = [
        (halves.head, image),
        (code.features, crossing),
        (code.transform, crossing),
        (code.exit, features),
    ]
    if code.correction is not None:
        first.append((code.correction, features))
    second = ((code.decoder, symbols), (halves.tail, crossing))
    return _cost(first), _cost(second)


def _cost(modules: Sequence[tuple[nn.Module, Tensor]]) -> tuple[int, int]:
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        for module, example in modules:
            module(example)
    weights = sum(each.numel() for module, _ in modules for each in module.parameters())
    return counter.get_total_flops() // 2, weights


def _some(part: Labelled, most: int) -> Labelled:
    return part.take(np.arange(0, len(part), -(-len(part) // most)))


def _quantized(
    split: Split, data: Dataset, shape: tuple[int, ...], say: Callable[[str], object]
) -> tuple[Quantized, Quantized]:
    say("exporting")
    name = IMAGE if split.tensor is None else TENSOR
    head, tail = float_graphs(split.halves, split.code, split.normalise, shape, name)
    calibrating, held_out = _some(data.train, CALIBRATION), _some(data.validation, CALIBRATION)

    def stays(name: str) -> bool:
        return name in NORMALISE or name.startswith(LAST)

    say("quantizing the device's half")
    done = quantize(head, name, calibrating.images, held_out.images, keep=stays, say=say)
    say("quantizing the server's half")
    codes = [_codes(split, each.images) for each in (calibrating, held_out)]
    return done, quantize(tail, CODE, *codes, exact=(CODE,), say=say)


@torch.inference_mode()
def _codes(split: Split, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return torch.cat([_coded(split, each)[1] for each in batches(images)]).numpy()


def _coded(split: Split, images: Tensor) -> tuple[Tensor, Tensor]:
    """The encoder's features and the symbols of uint8 [N, 3, H, W]."""
    crossing = split.halves.head(split.normalise(images))
    features = split.code.features(crossing)
    return features, split.code.encode(crossing, features).clamp(-128, 127).round()


@torch.inference_mode()
def _in_float(split: Split, test: Labelled) -> tuple[float, float]:
    """Accuracy of early and final exit before anything is quantized."""
    early, final = [], []
    for images in batches(test.images):
        features, symbols = _coded(split, images)
        early.append(split.code.exit(features))
        final.append(split.halves.tail(split.code.decoder(symbols)))
    labels = torch.from_numpy(test.labels)
    return tuple((torch.cat(each).argmax(1) == labels).double().mean().item() for each in (early, final))  # type: ignore[return-value]


def bundle_name(out: Path) -> str:
    """A bundle's name from its folder's."""
    text = re.sub(r"[^a-z0-9._-]+", "-", out.resolve().name.lower()).strip("-._")
    return text[:100] or "split"
