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
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import CODEBOOK, HEAD, TAIL, Crossing, Cut, Exit, Manifest, Part
from offramp.common.bundle.write import file_entries, write_bundle
from offramp.common.errors import printable
from offramp.common.inputs.spec import PictureInput, TensorInput
from offramp.training.calibrate.card import figures, provenance
from offramp.training.calibrate.chain import Chain, run_parts, with_temperatures
from offramp.training.calibrate.chain_thresholds import Goal, choose_thresholds, with_better_answer
from offramp.training.calibrate.codebook import Candidate, choose_codec, payload_bytes
from offramp.training.calibrate.measure import Answers
from offramp.training.calibrate.unknown import unknown_or_none
from offramp.training.data.datasets import Dataset, Labelled
from offramp.training.split.code import ZERO_POINT, Code
from offramp.training.split.graphs import (
    CODE,
    IMAGE,
    LAST,
    NORMALISE,
    TENSOR,
    float_graphs,
    in_symbols,
)
from offramp.training.split.macs import COUNTED
from offramp.training.split.photos import Normalise, batches
from offramp.training.split.quantize import Quantized, quantize
from offramp.training.split.whole import WholeCode

CALIBRATION = 200
"""Photos on which ranges are measured."""
TABLES = 4000
"""Training photos on whose symbols code tables are counted, at most."""


@dataclass(frozen=True)
class Split:
    """What was fitted, with its names.

    parts: of `halves.divide`; codes: one at each cut, between two parts.
    cuts: each cut's name, by what a user calls it, and its number, from 1.
    name: of the bundle; model: by what a user calls it.
    recipe: the text of what made it; seed: it was made with.
    tensor: what it takes, where that is no picture.
    """

    parts: tuple[fx.GraphModule, ...]
    codes: tuple[Code | WholeCode, ...]
    normalise: Normalise
    name: str
    model: str
    cuts: tuple[tuple[str, int], ...]
    recipe: str
    seed: int
    tensor: TensorInput | None = None


@dataclass(frozen=True)
class Built:
    """A bundle, and what was measured of it on the test photos.

    answers: of the first part and what is behind it, at the bundle's thresholds; chain: of every part.
    hops: bytes of each photo at each crossing, int64 [N]; codecs: their names.
    parts: how they were quantized; chosen_accuracy: of the thresholds on validation photos.
    """

    bundle: Bundle
    answers: Answers
    chain: Chain
    hops: tuple[NDArray[np.int64], ...]
    codecs: tuple[str, ...]
    parts: tuple[Quantized, ...]
    chosen_accuracy: float

    @property
    def payloads(self) -> NDArray[np.int64]:
        """Bytes of each photo at the first crossing, int64 [N]."""
        return self.hops[0]

    @property
    def codec(self) -> str:
        """Of the first crossing, by name."""
        return self.codecs[0]

    @property
    def head(self) -> Quantized:
        """The first part."""
        return self.parts[0]

    @property
    def tail(self) -> Quantized:
        """The last part."""
        return self.parts[-1]


def build(
    out: Path, split: Split, data: Dataset, goal: Goal, say: Callable[[str], object] = lambda _: None
) -> Built:
    """Write the bundle. Raises BundleError for graphs that no bundle may have."""
    shape = tuple(int(side) for side in data.train.images.shape[1:])
    parts = _quantized(split, data, shape, say)
    graphs = in_symbols([each.model for each in parts])
    say("counting code tables and choosing T_c")
    seen = run_parts(graphs, data.validation)
    known = run_parts(graphs, _some(data.train, TABLES))
    codecs = [choose_codec(*each) for each in zip(known.symbols, seen.symbols, strict=True)]
    seen = with_better_answer(with_temperatures(seen))
    chosen = choose_thresholds(seen, _payloads(codecs, seen), goal)
    say("measuring on the test photos")
    own = {"temperatures": seen.temperatures, "sent_answer": seen.sent_answer}
    chain = replace(run_parts(graphs, data.test), **own)  # type: ignore[arg-type]
    hops = _payloads(codecs, chain)
    manifest, files = _manifest(split, data, graphs, codecs, chain, hops, chosen.thresholds)
    trained = replace(known, temperatures=seen.temperatures).of_first(chosen.thresholds)
    unknown = unknown_or_none(trained, seen.of_first(chosen.thresholds))
    bundle = write_bundle(out, manifest.changed(unknown=unknown), files)
    answers, names = chain.of_first(chosen.thresholds), tuple(each.name for each in codecs)
    return Built(bundle, answers, chain, hops, names, parts, chosen.accuracy)


def _payloads(codecs: Sequence[Candidate], chain: Chain) -> tuple[NDArray[np.int64], ...]:
    """Bytes of each image at each crossing."""
    both = zip(codecs, chain.symbols, strict=True)
    return tuple(payload_bytes(codec.tables, codec.lanes, symbols) for codec, symbols in both)


def file_names(parts: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of each part's graph, and of each crossing's tables."""
    numbers = range(2, parts)
    return (
        (HEAD, *(f"part{number}.onnx" for number in numbers), TAIL),
        (CODEBOOK, *(f"{Path(CODEBOOK).stem}{number}.bin" for number in numbers)),
    )


def _manifest(
    split: Split,
    data: Dataset,
    graphs: Sequence[bytes],
    codecs: Sequence[Candidate],
    chain: Chain,
    hops: Sequence[NDArray[np.int64]],
    thresholds: Sequence[float],
) -> tuple[Manifest, dict[str, bytes]]:
    """What the bundle says of itself, and its files; chain and hops are of the test part."""
    graph_names, table_names = file_names(len(graphs))
    files = dict(zip(graph_names, graphs, strict=True))
    files |= {name: each.tables.to_bytes() for name, each in zip(table_names, codecs, strict=True)}
    entries = file_entries(files)
    shape = tuple(int(side) for side in data.train.images.shape[1:])
    costs_of = costs(split.parts, split.codes, shape)
    exits = [
        {
            "cut": Cut(name=printable(name, 200), number=number),
            "exit": Exit(threshold=threshold, temperature=temperature),
        }
        for (name, number), threshold, temperature in zip(
            split.cuts, thresholds, chain.temperatures, strict=True
        )
    ]
    in_float = _in_float(split, data.test)
    measured = chain.figures(thresholds, hops, in_float) if len(graphs) > 2 else None
    manifest = Manifest(
        format_version=2,
        name=split.name,
        model=printable(split.model, 200),
        input=split.tensor or PictureInput(color="RGB", height=shape[1], width=shape[2], resize="bilinear"),
        classes=list(data.classes),
        files=entries,
        parts=[
            Part(graph=name, macs=macs, weights=weights, **more)  # type: ignore[arg-type]
            for name, (macs, weights), more in zip(graph_names, costs_of, [*exits, {}], strict=True)
        ],
        crossings=[
            Crossing(
                shape=code.symbols_shape,
                scale=1.0,
                zero_point=ZERO_POINT,
                codec=codec.entry,
                tables=name,
            )
            for code, codec, name in zip(split.codes, codecs, table_names, strict=True)
        ],
        answers="all" if chain.sent_answer == "both" else "last",
        provenance=provenance(data, split.recipe, split.seed),
        figures=figures(
            chain.of_first(thresholds), (in_float[0], in_float[-1]), hops[0], thresholds[0], measured
        ),
    )
    return manifest, files


def costs(
    parts: Sequence[nn.Module], codes: Sequence[Code | WholeCode], shape: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Multiply-accumulates for one input and weights, of each machine's part, with the code.

    shape: of one input.
    """
    x, found = torch.zeros(1, *shape), []
    before: tuple[tuple[nn.Module, Tensor], ...] = ()
    for part, code in zip(parts, codes, strict=False):
        crossing, symbols = torch.zeros(1, *code.layout.shape), torch.zeros(1, *code.symbols_shape)
        with torch.inference_mode():
            features = code.features(crossing)
        own: list[tuple[nn.Module, Tensor]] = [
            (code.features, crossing),
            (code.transform, crossing),
            (code.exit, features),
        ]
        if code.correction is not None:
            own.append((code.correction, features))
        found.append(_cost((*before, (part, x), *own)))
        before, x = ((code.decoder, symbols),), crossing
    return [*found, _cost((*before, (parts[-1], x)))]


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
) -> tuple[Quantized, ...]:
    say("exporting")
    name = IMAGE if split.tensor is None else TENSOR
    graphs = float_graphs(split.parts, split.codes, split.normalise, shape, name)
    calibrating, held_out = _some(data.train, CALIBRATION), _some(data.validation, CALIBRATION)

    def stays(name: str) -> bool:
        return name in NORMALISE or name.startswith(LAST)

    say("quantizing the device's half")
    done = [quantize(graphs[0], name, calibrating.images, held_out.images, keep=stays, say=say)]
    coded = [_codes(split, each.images) for each in (calibrating, held_out)]
    for number, graph in enumerate(graphs[1:]):
        last = number == len(graphs) - 2
        say("quantizing the server's half" if last else f"quantizing part {number + 2}")
        codes = [each[number] for each in coded]
        keep = (lambda _: False) if last else stays
        done.append(quantize(graph, CODE, *codes, keep=keep, exact=(CODE,), say=say))
    return tuple(done)


@torch.inference_mode()
def _codes(split: Split, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """What crosses at each cut."""
    parts = [_in_order(split, each)[0] for each in batches(images)]
    return [torch.cat(each).numpy() for each in zip(*parts, strict=True)]


def _in_order(split: Split, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The symbols at each crossing and the logits of each part, of uint8 [N, 3, H, W]."""
    codes, logits, x = [], [], split.normalise(images)
    for part, code in zip(split.parts, split.codes, strict=False):
        crossing = part(x)
        features = code.features(crossing)
        codes.append(code.encode(crossing, features).clamp(-128, 127).round())
        logits.append(code.exit(features))
        x = code.decoder(codes[-1])
    return codes, [*logits, split.parts[-1](x)]


@torch.inference_mode()
def _in_float(split: Split, test: Labelled) -> list[float]:
    """Accuracy of each part before anything is quantized."""
    parts = [_in_order(split, images)[1] for images in batches(test.images)]
    labels = torch.from_numpy(test.labels)
    return [(torch.cat(each).argmax(1) == labels).double().mean().item() for each in zip(*parts, strict=True)]


def bundle_name(out: Path) -> str:
    """A bundle's name from its folder's."""
    text = re.sub(r"[^a-z0-9._-]+", "-", out.resolve().name.lower()).strip("-._")
    return text[:100] or "split"
