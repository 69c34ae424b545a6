"""Quantized by ONNX Runtime, with in float the operators that measurement says have to be."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from offramp.training.split.quantize import quantize


def convolutions(*, hostile: bool) -> onnx.ModelProto:
    """Four convolutions and, if hostile, between the second and third a product whose range no 256 steps can
    hold."""
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 3, 3, 3), "b": (8, 8, 3, 3), "c": (8, 8, 1, 1), "d": (4, 8, 3, 3)}
    tensors = [
        numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["first"], name="conv_a"),
        helper.make_node("Relu", ["first"], ["positive"], name="relu"),
        helper.make_node("Conv", ["positive", "b"], ["second"], name="conv_b"),
    ]
    if hostile:
        scales = np.array([1e4, *[1.0] * 7], np.float32).reshape(1, 8, 1, 1)
        tensors += [numpy_helper.from_array(scales, "up"), numpy_helper.from_array(1 / scales, "down")]
        nodes += [
            helper.make_node("Mul", ["second", "up"], ["wide"], name="mul_up"),
            helper.make_node("Mul", ["wide", "down"], ["narrow"], name="mul_down"),
        ]
    nodes += [
        helper.make_node("Conv", ["narrow" if hostile else "second", "c"], ["third"], name="conv_c"),
        helper.make_node("Mul", ["third", "half"], ["halved"], name="mul_half"),
        helper.make_node("Conv", ["halved", "d"], ["y"], name="conv_d"),
    ]
    tensors.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
        for name, shape in (("x", (3, 12, 12)), ("y", (4, 6, 6)))
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def inputs(count: int = 64) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, (count, 3, 12, 12)).astype(np.float32)


def int8_weights(model: onnx.ModelProto) -> set[tuple[int, ...]]:
    return {
        tuple(each.dims)
        for each in model.graph.initializer
        if each.data_type == TensorProto.INT8 and len(each.dims) == 4
    }


def test_everything_is_quantized_where_that_is_good_enough() -> None:
    lines: list[str] = []
    found = quantize(convolutions(hostile=False), "x", inputs(), inputs(20), say=lines.append)
    assert found.in_float == () and found.kinds == "" and found.cost <= 1 and min(found.noise) > 30
    assert int8_weights(found.model) == {(8, 3, 3, 3), (8, 8, 3, 3), (8, 8, 1, 1), (4, 8, 3, 3)}
    assert lines == [found.divergence[0].text()] and "of the symbols change" in lines[0]


def test_only_the_operators_that_make_the_noise_stay_in_float() -> None:
    lines: list[str] = []
    found = quantize(convolutions(hostile=True), "x", inputs(), inputs(20), say=lines.append)
    # Not all of that kind, and no convolution that is far from them.
    assert set(found.in_float) == {"mul_up", "mul_down"} and found.kinds == "2 Mul"
    assert found.cost <= 1 and min(found.noise) > 25
    assert lines[0] == "in float: 2 Mul of 8 operators"
    assert (8, 3, 3, 3) in int8_weights(found.model) and (4, 8, 3, 3) in int8_weights(found.model)
    rounded = {node.input[0] for node in found.model.graph.node if node.op_type == "QuantizeLinear"}
    assert "wide" not in rounded and "halved" in rounded


def test_a_nodes_name_can_keep_it_in_float() -> None:
    found = quantize(
        convolutions(hostile=False), "x", inputs(), inputs(20), keep=lambda name: name == "conv_d"
    )
    assert (4, 8, 3, 3) not in int8_weights(found.model) and (8, 8, 3, 3) in int8_weights(found.model)
    assert found.in_float == ()


@pytest.mark.parametrize("hostile", [False, True])
def test_the_same_twice(hostile: bool) -> None:
    made = [quantize(convolutions(hostile=hostile), "x", inputs(), inputs(20)) for _ in range(2)]
    assert made[0].model.SerializeToString(deterministic=True) == made[1].model.SerializeToString(
        deterministic=True
    )
