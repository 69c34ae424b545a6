"""A head that computes in float32 in places, as `offramp split` makes them: tables, sums and means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from offramp.cli.export_c.network import Kind
from offramp.cli.export_c.program import make_program
from offramp.cli.export_c.reader import read_head
from offramp.cli.export_c.reals import rounded
from offramp.common.bundle.load import load_bundle
from offramp.common.errors import BundleError
from offramp.common.inputs.pictures import decode
from offramp.common.part.engine import Engine
from tests.cli.export_c import toy_heads

ROOT = Path(__file__).parents[3]
TRASHNET = ROOT / "models/trashnet-efficientnet-lite0"
SHARE = 1e-3
"""Symbols that may differ, by one: another CPU adds up in another order."""


def test_the_trashnet_bundle(tmp_path: Path) -> None:
    """EfficientNet-Lite0: seven convolutions in float32, two of them added, tables, a mean."""
    bundle = load_bundle(TRASHNET)
    files = sorted((ROOT / "examples/trashnet").glob("*.jpg"))[::30]
    images = np.stack([decode(each.name, each.read_bytes(), bundle.manifest.preprocessing) for each in files])
    program = toy_heads.build(make_program(bundle), tmp_path / "c", "-O3")
    records = [toy_heads.threshold_record(1), *map(toy_heads.image_record, images)]
    _, *lines = toy_heads.run(program, records)

    symbols, probabilities = Engine(bundle).head(images)
    differ = []
    for line, wanted, early in zip(lines, symbols, probabilities, strict=True):
        said = toy_heads.parsed(line)
        found = bundle.codec.decode(said.datagram[0] & 3, said.datagram[5:-3])
        differ.append(np.abs(found.astype(int) - wanted))
        assert said.best == early.argmax()
        assert said.confidence == pytest.approx(early.max(), rel=1e-3)
    assert np.max(differ) <= 1
    assert np.mean(np.array(differ) > 0) <= SHARE


def test_its_layers() -> None:
    network = read_head(load_bundle(TRASHNET))
    kinds = [layer.kind for layer in network.layers]
    shown = (Kind.REAL_CONV, Kind.REAL_DEPTHWISE, Kind.LOOKUP, Kind.MEAN)
    assert [kinds.count(kind) for kind in shown] == [5, 2, 2, 1]
    (joined,) = (layer for layer in network.layers if layer.kind is Kind.REAL_CONV and len(layer.inputs) > 1)
    assert joined.name == "to_symbols_transform/linear"
    stem = network.layers[0]
    assert (stem.inputs, stem.levels.shape) == (("image",), (256, 1)), "three channels have one table"
    wide = [each for each in network.layers if each.kind is Kind.REAL]
    assert all(network.tensors[each.output].row_bytes < 4000 for each in wide), "large rows stay bytes"
    assert stem.scale[:2].tolist() == [0, 6], "the bounds of its Clip"


def test_rounded_weights_keep_zero() -> None:
    weights = np.array([-0.6, 0, 0.65], np.float32).reshape(3, 1, 1, 1)
    found, bias = rounded(weights, np.array([0.1, -0.2, 0], np.float32), np.float32(0.01))
    step = np.float32(1.25) / np.float32(255)
    assert found[1] == 0
    assert np.abs(found - weights).max() <= step
    assert np.abs(bias - [0.1, -0.2, 0]).max() <= 0.01 * step


def edited(change: Callable[[list[onnx.NodeProto]], object], *constants: TensorProto) -> bytes:
    """The toy head with its picture through float32, changed."""
    model = onnx.ModelProto.FromString(toy_heads.head().bytes())
    nodes = list(model.graph.node)
    change(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
    return bytes(model.SerializeToString())


def between(kind: str, name: str, *inputs: str) -> Callable[[list[onnx.NodeProto]], object]:
    """Another operator before the quantization of a layer."""

    def change(nodes: list[onnx.NodeProto]) -> None:
        index = next(i for i, node in enumerate(nodes) if node.output[0] == name)
        nodes.insert(index, helper.make_node(kind, [f"{name}.f", *inputs], [f"{name}.more"]))
        nodes[index + 1].input[0] = f"{name}.more"

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (between("Clip", "wide", "low", "high"), "'wide.more' clips what is not a convolution in float32"),
        (between("Mul", "wide", "high"), "needs 'wide.f', which is not made of single bytes"),
        (between("Mul", "wide", "wide.f"), "'wide.more' has no constant operand or two"),
        (between("ReduceMean", "wide", "axes"), "'wide.more' is not the mean over rows and columns"),
    ],
)
def test_what_c_has_not_is_refused(
    change: Callable[[list[onnx.NodeProto]], object], message: str, tmp_path: Path
) -> None:
    constants = [
        numpy_helper.from_array(np.array(0, np.float32), "low"),
        numpy_helper.from_array(np.array(6, np.float32), "high"),
        numpy_helper.from_array(np.array([2, 3]), "axes"),
    ]
    bundle = toy_heads.write(tmp_path / "bundle", "raw", edited(change, *constants))
    with pytest.raises(BundleError) as error:
        read_head(bundle)
    assert message in str(error.value)
