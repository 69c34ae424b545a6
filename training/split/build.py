"""From a fitted split to a bundle: quantize, count code tables, choose T_c, measure, write.

Validation photos choose, test photos are only measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import (
    CODEBOOK,
    HEAD,
    TAIL,
    Activation,
    Manifest,
    Preprocessing,
    SplitPoint,
)
from offramp.common.bundle.write import file_entries, write_bundle
from offramp.common.errors import printable
from offramp.training.calibrate.card import figures, provenance
from offramp.training.calibrate.codebook import choose_codec, payload_bytes
from offramp.training.calibrate.confidence import fit_temperature
from offramp.training.calibrate.measure import Answers, run_graphs, with_better_answer
from offramp.training.calibrate.threshold import choose_threshold
from offramp.training.data.datasets import Dataset, Labelled
from offramp.training.export import Graphs
from offramp.training.split.code import ZERO_POINT, Code
from offramp.training.split.graphs import (
    CODE,
    IMAGE,
    LAST,
    NORMALISE,
    float_graphs,
    from_symbols,
    with_symbols,
)
from offramp.training.split.halves import Halves
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
    shape = data.train.images.shape[1:]
    head, tail = _quantized(split, data, (int(shape[0]), int(shape[1]), int(shape[2])), say)
    graphs = Graphs(
        with_symbols(head.model).SerializeToString(deterministic=True),
        from_symbols(tail.model).SerializeToString(deterministic=True),
    )
    say("counting code tables and choosing T_c")
    seen = run_graphs(graphs, data.validation)
    codec = choose_codec(run_graphs(graphs, _some(data.train, TABLES)).symbols, seen.symbols)
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
    files = {HEAD: graphs.head, TAIL: graphs.tail, CODEBOOK: codec.tables.to_bytes()}
    entries = file_entries(files)
    manifest = Manifest(
        format_version=1,
        name=split.name,
        files={"head.onnx": entries[HEAD], "tail.onnx": entries[TAIL], "codebook.bin": entries[CODEBOOK]},
        classes=list(data.classes),
        preprocessing=Preprocessing(color="RGB", height=shape[1], width=shape[2], resize="bilinear"),
        split=SplitPoint(
            model=printable(split.model, 200), exit=split.number, layer=printable(split.cut, 200)
        ),
        activation=Activation(shape=split.code.symbols_shape, scale=1.0, zero_point=ZERO_POINT),
        codec=codec.entry,
        threshold=chosen.threshold,
        temperature=temperature,
        sent_answer=seen.sent_answer,
        provenance=provenance(data, split.recipe, split.seed),
        figures=figures(answers, _in_float(split, data.test), payloads, chosen.threshold),
    )
    bundle = write_bundle(out, manifest, files)
    return Built(bundle, answers, payloads, codec.name, head, tail, chosen.accuracy)


def _some(part: Labelled, most: int) -> Labelled:
    return part.take(np.arange(0, len(part), -(-len(part) // most)))


def _quantized(
    split: Split, data: Dataset, shape: tuple[int, int, int], say: Callable[[str], object]
) -> tuple[Quantized, Quantized]:
    say("exporting")
    head, tail = float_graphs(split.halves, split.code, split.normalise, shape)
    calibrating, held_out = _some(data.train, CALIBRATION), _some(data.validation, CALIBRATION)

    def stays(name: str) -> bool:
        return name in NORMALISE or name.startswith(f"{LAST}/")

    say("quantizing the device's half")
    done = quantize(head, IMAGE, calibrating.images, held_out.images, keep=stays, say=say)
    say("quantizing the server's half")
    codes = [_codes(split, each.images) for each in (calibrating, held_out)]
    return done, quantize(tail, CODE, *codes, exact=(CODE,), say=say)


@torch.inference_mode()
def _codes(split: Split, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return torch.cat([_coded(split, each)[1] for each in batches(images)]).numpy()


def _coded(split: Split, images: Tensor) -> tuple[Tensor, Tensor]:
    """The encoder's features and the symbols of uint8 [N, 3, H, W]."""
    features = split.code.features(split.halves.head(split.normalise(images)))
    return features, split.code.symbols(features).clamp(-128, 127).round()


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
