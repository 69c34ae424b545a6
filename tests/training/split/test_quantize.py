"""Quantized by ONNX Runtime, with in float what measurement says has to be."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from offramp.training.split.quantize import ENOUGH, quantize, signal_to_noise


def convolutions(*, hostile: bool) -> onnx.ModelProto:
    """Two convolutions and, if hostile, between them a product whose range no 256 steps can hold."""
    rng = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(rng.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32), "a"),
        numpy_helper.from_array(rng.normal(0, 0.3, (4, 8, 3, 3)).astype(np.float32), "b"),
    ]
    nodes = [helper.make_node("Conv", ["x", "a"], ["first"])]
    if hostile:
        scales = np.array([1e4, *[1.0] * 7], np.float32).reshape(1, 8, 1, 1)
        tensors += [numpy_helper.from_array(scales, "up"), numpy_helper.from_array(1 / scales, "down")]
        nodes += [
            helper.make_node("Mul", ["first", "up"], ["wide"]),
            helper.make_node("Mul", ["wide", "down"], ["second"]),
        ]
    nodes.append(helper.make_node("Conv", ["second" if hostile else "first", "b"], ["y"]))
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
        for name, shape in (("x", (3, 12, 12)), ("y", (4, 8, 8)))
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def inputs(count: int = 64) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, (count, 3, 12, 12)).astype(np.float32)


def test_everything_is_quantized_where_that_is_good_enough() -> None:
    found = quantize(convolutions(hostile=False), "x", inputs(), inputs(20))
    assert found.in_float == () and min(found.noise) > 30
    weights = [each for each in found.model.graph.initializer if each.data_type == TensorProto.INT8]
    assert sorted(tuple(each.dims) for each in weights if len(each.dims) == 4) == [(4, 8, 3, 3), (8, 3, 3, 3)]


def test_what_makes_the_noise_stays_in_float() -> None:
    lines: list[str] = []
    found = quantize(convolutions(hostile=True), "x", inputs(), inputs(20), say=lines.append)
    assert found.in_float[0] == "Mul" and min(found.noise) >= ENOUGH
    assert lines[0].startswith("Mul stays in float: ")
    assert not any(
        node.op_type == "QuantizeLinear" and node.input[0] in ("wide",) for node in found.model.graph.node
    )


def test_a_nodes_name_can_keep_it_in_float() -> None:
    model = convolutions(hostile=False)
    for number, node in enumerate(model.graph.node):
        node.name = f"conv{number}"
    found = quantize(model, "x", inputs(), inputs(20), keep=lambda name: name == "conv1")
    weights = [each for each in found.model.graph.initializer if each.data_type == TensorProto.INT8]
    assert [tuple(each.dims) for each in weights if len(each.dims) == 4] == [(8, 3, 3, 3)]


def test_signal_to_noise() -> None:
    x = np.array([1, -1, 1, -1], np.float32)
    assert signal_to_noise(x, x) == 100
    assert signal_to_noise(x, x + np.float32(0.1)) == pytest.approx(20, abs=0.01)
