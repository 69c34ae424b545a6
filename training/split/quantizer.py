"""ONNX Runtime's own quantizer for one float graph, with chosen operators in float; ranges are measured once.

Weights int8 for each channel, activations uint8 by their range on calibration inputs, as DequantizeLinear and
QuantizeLinear around each operator.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

BATCH = 8
_KINDS = (
    "Conv", "Gemm", "MatMul", "Add", "Mul", "Div", "Sub", "Sigmoid", "HardSigmoid", "HardSwish", "Gelu",
    "Softmax", "LayerNormalization", "BatchNormalization", "GlobalAveragePool", "AveragePool", "ReduceMean",
    "Concat", "Clip", "Relu", "LeakyRelu", "PRelu", "MaxPool", "Tanh", "Sqrt",
)  # fmt: skip
_FLOAT = ("Cast", "Sqrt", "ReduceMean", "HardSwish", "HardSigmoid", "Gelu")
"""What ONNX Runtime has no integer form of: quantizing around it only adds noise."""
_MOVES = (
    "Reshape", "Transpose", "Slice", "Flatten", "Squeeze", "Unsqueeze", "DepthToSpace", "MaxPool", "Relu",
)  # fmt: skip
"""What takes integers as they come and rounds nothing."""


class Quantizer:
    """One graph of one input, and its ranges.

    Args:
        model: float32 inside, as `named` gives it.
        name: of its input.
        inputs: for calibration, [N, …] as the graph takes them.
        keep: nodes, by name, that stay in float.
        exact: tensors that are whole numbers -128 … 127, which uint8 with scale 1 holds as they are.
        folder: empty; where it keeps the graph and the ranges.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        name: str,
        inputs: NDArray[np.generic],
        folder: Path,
        *,
        keep: Callable[[str], bool] = lambda _: False,
        exact: Sequence[str] = (),
    ) -> None:
        self._model, self._name, self._inputs = model, name, inputs
        self._keep, self._exact, self._folder = keep, exact, folder
        onnx.save(model, folder / "in.onnx")

    def may_be_integer(self, node: onnx.NodeProto) -> bool:
        """Whether an operator has an integer form that rounds, and may have it."""
        return node.op_type in _KINDS and node.op_type not in (*_FLOAT, *_MOVES) and not self._keep(node.name)

    def quantized(self, in_float: Collection[str]) -> onnx.ModelProto:
        """The graph with all but these operators quantized."""
        from onnxruntime.quantization import (
            CalibrationDataReader,
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )

        inputs, name = self._inputs, self._name

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.parts = iter(range(0, len(inputs), BATCH))

            def get_next(self) -> dict[str, NDArray[np.generic]] | None:
                start = next(self.parts, None)
                return None if start is None else {name: inputs[start : start + BATCH]}

        nodes = self._model.graph.node
        whole = {
            "scale": np.array(1, np.float32),
            "zero_point": np.array(128, np.uint8),
            "quant_type": QuantType.QUInt8,
        }
        with _quiet():
            quantize_static(
                str(self._folder / "in.onnx"),
                str(self._folder / "out.onnx"),
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=sorted({node.op_type for node in nodes} & {*_KINDS, *_MOVES}),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[
                    node.name
                    for node in nodes
                    if self._keep(node.name) or node.op_type in _FLOAT or node.name in in_float
                ],
                calibrate_method=CalibrationMethod.MinMax,
                calibration_cache_path=self._folder / "ranges.json",
                extra_options={"TensorQuantOverrides": {each: [whole] for each in self._exact}},
            )
        return _with_float_outputs(onnx.load(self._folder / "out.onnx"))


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with a name for every node, and shapes inferred."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="offramp-quantize-") as folder, _quiet():
        source, result = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        onnx.save(model, source)
        quant_pre_process(str(source), str(result), skip_optimization=True, skip_symbolic_shape=True)
        found = onnx.load(result)
    for number, node in enumerate(found.graph.node):
        node.name = node.name or f"node{number}"
    return found


def _with_float_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without rounding of the outputs themselves: integer kernels give float sums as they are."""
    graph = model.graph
    made = {output: node for node in graph.node for output in node.output}
    for output in [each.name for each in graph.output]:
        last = made.get(output)
        before = made.get(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
        if last is None or before is None or before.op_type != "QuantizeLinear":
            continue
        source, levels = before.input[0], before.output[0]
        users = [node for node in graph.node if {source, levels, output} & {*node.input}]
        if len(users) == 2 and source in made:
            graph.node.remove(before)
            graph.node.remove(last)
            made[source].output[:] = [output if name == source else name for name in made[source].output]
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantizer's remarks, which go to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
