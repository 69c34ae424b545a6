"""What a head has that C does not is refused by name; what it has is counted right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from offramp.cli.export_c.network import Kind
from offramp.cli.export_c.reader import read_head
from offramp.common.bundle.load import load_bundle
from offramp.common.errors import BundleError
from tests import toy_tensor
from tests.cli.export_c import toy_heads

MODELS = Path(__file__).parents[3] / "models"


def test_the_digits_head() -> None:
    network = read_head(load_bundle(MODELS / "digits-mobilenetv2-exit12"))

    kinds = [layer.kind for layer in network.layers]
    shown = (Kind.CONV, Kind.DEPTHWISE, Kind.ADD, Kind.LOGITS, Kind.CHANNELS_FIRST)
    assert [kinds.count(kind) for kind in shown] == [8, 5, 1, 1, 1]
    assert len(kinds) == 16
    stem = network.layers[0]
    assert stem.name == "stem"
    assert stem.weights.shape == (32, 3, 3, 3), "the channel that the graph gives twice is once here"
    assert network.macs(stem) == 32 * 32 * 32 * 27
    assert {layer.name for layer in network.layers} >= {"block3.C2", "exit.linear"}


def edited(change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = onnx.ModelProto.FromString(toy_heads.head().bytes())
    change(model)
    return bytes(model.SerializeToString())


def put(name: str, values: object) -> Callable[[onnx.ModelProto], object]:
    """Replace a constant."""

    def change(model: onnx.ModelProto) -> None:
        (found,) = (each for each in model.graph.initializer if each.name == name)
        found.CopyFrom(numpy_helper.from_array(np.asarray(values), name))

    return change


def attribute(node: str, name: str, value: object) -> Callable[[onnx.ModelProto], object]:
    """Set an attribute of the node with this output."""

    def change(model: onnx.ModelProto) -> None:
        (found,) = (each for each in model.graph.node if each.output[0] == node)
        kept = [each for each in found.attribute if each.name != name]
        del found.attribute[:]
        found.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def relu(model: onnx.ModelProto) -> None:
    """Something between a convolution and its bytes."""
    for index, node in enumerate(model.graph.node):
        if node.input[0] == "wide.f":
            node.input[0] = "wide.relu"
            model.graph.node.insert(index, helper.make_node("Relu", ["wide.f"], ["wide.relu"]))
            return


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (relu, "'wide.relu' is the operator Relu, expected one of"),
        (attribute("deep.f", "dilations", [2, 2]), "'deep.f' is dilated"),
        (attribute("deep.f", "auto_pad", "SAME_UPPER"), "'deep.f' pads automatically"),
        (attribute("wide.f", "group", 3), "'wide.f' has 3 groups, expected 1 or one for each channel"),
        (
            put("wide.weight.z", np.ones(9, np.int8)),
            "'wide.f' is computed in float, expected int8 weights around 0",
        ),
        (put("wide.bias", np.ones(9, np.int8)), "'wide.f' has a float bias"),
        (put("block.s", np.ones(2, np.float32)), "'block' has a scale or zero point for each channel"),
    ],
)
def test_what_c_has_not_is_refused(
    change: Callable[[onnx.ModelProto], object], message: str, tmp_path: Path
) -> None:
    bundle = toy_heads.write(tmp_path / "bundle", "raw", edited(change))
    with pytest.raises(BundleError, match=r"head\.onnx: ") as error:
        read_head(bundle)
    assert message in str(error.value)


def missing(model: onnx.ModelProto) -> None:
    """A constant that is named and not there."""
    (found,) = (each for each in model.graph.initializer if each.name == "dense.bias.s")
    model.graph.initializer.remove(found)


def test_a_damaged_graph_is_one_error(tmp_path: Path) -> None:
    bundle = toy_heads.write(tmp_path / "bundle", "raw", edited(missing))
    with pytest.raises(BundleError, match=r"head\.onnx: is not a graph that runs: KeyError"):
        read_head(bundle)


def test_a_bundle_that_takes_no_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="export-c takes bundles of pictures"):
        read_head(toy_tensor.write(tmp_path / "bundle"))
