"""Which operators of a graph make the noise of its quantized form: one graph that can be quantized in part.

The float graph gets, behind every tensor and weight that the quantized one rounds, the rounded value and a
switch between the two. So any part of the operators can be tried as integers without making another graph:
an operator is one where its inputs, weights and output are rounded. It computes in float what the integer
kernels compute, but for the last bit of their sums.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from offramp.common.cpus import require_threads
from offramp.common.part.session import session_options
from offramp.training.split.divergence import Divergence, divergence

_SWITCHES = "quantized?"
_FUSED = ("Relu", "Clip")
"""What the quantizer makes the end of a range: nothing is rounded between it and what is before it."""
BATCH = 8


class Switched:
    """A float graph in which any operators can be integers.

    Args:
        model: float32, its nodes named.
        quantized: the same with everything quantized.
        inputs: of its one input ``name``, on which it is run.
        candidates: whether an operator may be quantized at all.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        quantized: onnx.ModelProto,
        name: str,
        inputs: NDArray[np.generic],
        candidates: Callable[[onnx.NodeProto], bool],
    ) -> None:
        self._name, self._inputs = name, inputs
        self._outputs = [each.name for each in model.graph.output]
        rounded = _rounded(model, quantized)
        self._order = {tensor: number for number, tensor in enumerate(rounded)}
        self._touches = {
            node.name: touched
            for node in model.graph.node
            if candidates(node) and (touched := self._tensors_of(node, model))
        }
        require_threads(0)
        options = session_options(1)
        # No more: what is fused could be other sums.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        switched = _with_switches(model, rounded, self._order)
        self._session = onnxruntime.InferenceSession(
            switched.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._wanted = self._run((), len(inputs))

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the operators that round something, in the graph's order."""
        return tuple(self._touches)

    def tried(self, quantized: Collection[str], count: int | None = None) -> list[Divergence]:
        """How far the outputs of the first ``count`` inputs, all by default, are off where these operators
        are integers and all others float."""
        count = len(self._inputs) if count is None else min(count, len(self._inputs))
        found = self._run(quantized, count)
        wanted = [each[:count] for each in self._wanted]
        return [divergence(*each) for each in zip(self._outputs, wanted, found, strict=True)]

    def _run(self, quantized: Collection[str], count: int) -> list[NDArray[np.float32]]:
        switches = np.zeros(max(1, len(self._order)), np.bool_)
        for node in quantized:
            switches[self._touches[node]] = True
        parts = [
            self._session.run(
                self._outputs,
                {self._name: self._inputs[start : min(start + BATCH, count)], _SWITCHES: switches},
            )
            for start in range(0, count, BATCH)
        ]
        return [np.concatenate(each) for each in zip(*parts, strict=True)]

    def _tensors_of(self, node: onnx.NodeProto, model: onnx.ModelProto) -> list[int]:
        """Switches of what an operator rounds; a fused activation function is a part of what is before it."""
        names = [*node.input, *node.output]
        for output in node.output:
            users = [each for each in model.graph.node if output in each.input]
            if output not in self._order and len(users) == 1 and users[0].op_type in _FUSED:
                names += users[0].output
        return sorted({self._order[name] for name in names if name in self._order})


def noisiest(switched: Switched) -> list[str]:
    """Operators by the noise that each makes alone, the most first."""
    costs = {node: max(each.cost for each in switched.tried((node,), BATCH)) for node in switched.nodes}
    return sorted(costs, key=lambda node: -costs[node])


def fewest_in_float(switched: Switched, ranked: Sequence[str]) -> int:
    """How many of the first of ``ranked`` have to be float so that every output is good enough."""
    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high) // 2
        if max(each.cost for each in switched.tried(ranked[middle:])) <= 1:
            high = middle
        else:
            low = middle + 1
    return low


Step = tuple[NDArray[np.generic], ...]


def _rounded(model: onnx.ModelProto, quantized: onnx.ModelProto) -> dict[str, Step | NDArray[np.float32]]:
    """Of each rounded tensor of the float graph its scale and zero point, of a weight its rounded values."""
    values = {each.name: each for each in quantized.graph.initializer}
    own = {each.name for each in model.graph.initializer}
    found: dict[str, Step | NDArray[np.float32]] = {}
    for node in quantized.graph.node:
        if node.op_type == "QuantizeLinear":
            tensor = node.input[0].removesuffix("_QuantizeLinear_Input")
            found[tensor] = tuple(numpy_helper.to_array(values[name]) for name in node.input[1:3])
        elif node.op_type == "DequantizeLinear" and node.input[0] in values:
            weight = node.input[0].removesuffix("_quantized")
            levels = numpy_helper.to_array(values[node.input[0]])
            if weight in own and levels.dtype == np.int8:
                scale, zero = (numpy_helper.to_array(values[name]) for name in node.input[1:3])
                axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
                shape = [-1 if at == axis else 1 for at in range(levels.ndim)]
                if scale.ndim:
                    scale, zero = scale.reshape(shape), zero.reshape(shape)
                found[weight] = (levels.astype(np.float32) - zero.astype(np.float32)) * scale
    return found


def _with_switches(
    model: onnx.ModelProto, rounded: dict[str, Step | NDArray[np.float32]], order: dict[str, int]
) -> onnx.ModelProto:
    switched = onnx.ModelProto()
    switched.CopyFrom(model)
    graph = switched.graph
    outputs = {each.name for each in graph.output}
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: NDArray[np.generic]) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def source(name: str) -> str:
        return f"{name}/float" if name in outputs and name in rounded else name

    def result(name: str) -> str:
        return name if name in outputs else f"{name}/either"

    def add_switch(name: str) -> None:
        step = rounded[name]
        if isinstance(step, tuple):
            scale, zero = constant(f"{name}/scale", step[0]), constant(f"{name}/zero", step[1])
            nodes.append(helper.make_node("QuantizeLinear", [source(name), scale, zero], [f"{name}/levels"]))
            nodes.append(
                helper.make_node("DequantizeLinear", [f"{name}/levels", scale, zero], [f"{name}/rounded"])
            )
        else:
            constant(f"{name}/rounded", step)
        at = constant(f"{name}/at", np.array(order[name], np.int64))
        nodes.append(helper.make_node("Gather", [_SWITCHES, at], [f"{name}/switch"]))
        nodes.append(
            helper.make_node("Where", [f"{name}/switch", f"{name}/rounded", source(name)], [result(name)])
        )

    given = {each.name for each in graph.input} | {each.name for each in graph.initializer}
    for name in rounded:
        if name in given:
            add_switch(name)
    for node in list(graph.node):
        node.input[:] = [result(name) if name in rounded else name for name in node.input]
        made = [name for name in node.output if name in rounded]
        node.output[:] = [source(name) for name in node.output]
        nodes.append(node)
        for name in made:
            add_switch(name)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info(_SWITCHES, TensorProto.BOOL, [max(1, len(order))]))
    return switched
