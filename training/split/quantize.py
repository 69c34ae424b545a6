"""A float graph quantized by ONNX Runtime's own quantizer, with in float what measurement says has to be.

Weights int8 for each channel, activations uint8 by their range on calibration inputs, as DequantizeLinear and
QuantizeLinear around each operator. First everything is quantized. Where an output then has more noise than
`ENOUGH` allows, the kind of operator whose float form helps most stays in float, then the next.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from offramp.common.part.session import session

ENOUGH = 20.0
"""Decibels of signal over the noise that quantization adds, of each output, from which it is good enough."""
_BATCH = 8
_TRIED = 64
"""Inputs on which the noise is measured."""
_KINDS = (
    "Conv", "Gemm", "MatMul", "Add", "Mul", "Div", "Sub", "Sigmoid", "HardSigmoid", "HardSwish", "Gelu",
    "Softmax", "LayerNormalization", "BatchNormalization", "GlobalAveragePool", "AveragePool", "ReduceMean",
    "Concat", "Clip", "Relu", "LeakyRelu", "PRelu", "MaxPool", "Tanh", "Sqrt",
)  # fmt: skip
"""What may be asked to stay in float, or not at all quantized by ONNX Runtime."""
_FLOAT = ("Cast", "Sqrt", "ReduceMean", "HardSwish", "HardSigmoid", "Gelu")
"""What ONNX Runtime has no integer form of: quantizing around it only adds noise."""
_MOVES = (
    "Reshape",
    "Transpose",
    "Slice",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "DepthToSpace",
    "MaxPool",
    "Relu",
)


@dataclass(frozen=True)
class Quantized:
    """A quantized graph.

    noise: decibels of signal over noise of each output, the least first.
    in_float: kinds of operators that stay in float, in the order in which they were chosen.
    """

    model: onnx.ModelProto
    noise: tuple[float, ...]
    in_float: tuple[str, ...]


def quantize(
    model: onnx.ModelProto,
    name: str,
    inputs: NDArray[np.generic],
    held_out: NDArray[np.generic],
    *,
    keep: Callable[[str], bool] = lambda _: False,
    exact: Sequence[str] = (),
    say: Callable[[str], object] = lambda _: None,
) -> Quantized:
    """Quantize a graph of one input.

    Args:
        model: float32 inside.
        name: of its input.
        inputs: for calibration, [N, …] as the graph takes them.
        held_out: on which the noise is measured.
        keep: nodes, by name, that stay in float.
        exact: tensors that are whole numbers -128 … 127, which uint8 with scale 1 holds as they are.
        say: called with a line for each kind of operator that stays in float.
    """
    named = _with_names(model)
    outputs = [each.name for each in named.graph.output]
    part = held_out[:_TRIED]
    wanted = _run(named, name, outputs, part)
    in_float: tuple[str, ...] = ()

    def tried(kinds: tuple[str, ...]) -> Quantized:
        made = _quantize(named, name, inputs, kinds, keep, exact)
        found = _run(made, name, outputs, part)
        noise = tuple(signal_to_noise(a, b) for a, b in zip(wanted, found, strict=True))
        return Quantized(made, noise, kinds)

    best = tried(in_float)
    present = {node.op_type for node in named.graph.node if not keep(node.name)}
    kinds = [kind for kind in _KINDS if kind in present and kind not in _FLOAT]
    while min(best.noise) < ENOUGH and kinds:
        options = [tried((*best.in_float, kind)) for kind in kinds]
        better = max(options, key=lambda each: min(each.noise))
        if min(better.noise) < min(best.noise) + 0.5:
            break
        best = better
        kinds.remove(best.in_float[-1])
        say(f"{best.in_float[-1]} stays in float: {min(best.noise):.1f} dB over the noise")
    return best


def signal_to_noise(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Decibels of the values' variance over the difference's power; 100 at most."""
    noise = float(((wanted - found).astype(np.float64) ** 2).mean())
    signal = float(wanted.astype(np.float64).var())
    if noise <= signal * 1e-10:
        return 100.0
    return 10 * float(np.log10(max(signal, 1e-30) / noise)) if signal > 0 else 0.0


def _run(
    model: onnx.ModelProto, name: str, outputs: list[str], inputs: NDArray[np.generic]
) -> list[NDArray[np.float32]]:
    graph = session(model.SerializeToString(), threads=1)
    parts = [
        graph.run(outputs, {name: inputs[start : start + _BATCH]}) for start in range(0, len(inputs), _BATCH)
    ]
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with a name for every node, shapes inferred, and what is constant folded."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="offramp-quantize-") as folder, _quiet():
        source, result = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        onnx.save(model, source)
        quant_pre_process(str(source), str(result), skip_optimization=True, skip_symbolic_shape=True)
        found = onnx.load(result)
    for number, node in enumerate(found.graph.node):
        node.name = node.name or f"node{number}"
    return found


def _quantize(
    model: onnx.ModelProto,
    name: str,
    inputs: NDArray[np.generic],
    in_float: tuple[str, ...],
    keep: Callable[[str], bool],
    exact: Sequence[str],
) -> onnx.ModelProto:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.parts = iter(range(0, len(inputs), _BATCH))

        def get_next(self) -> dict[str, NDArray[np.generic]] | None:
            start = next(self.parts, None)
            return None if start is None else {name: inputs[start : start + _BATCH]}

    left_out = [
        node.name for node in model.graph.node if keep(node.name) or node.op_type in (*in_float, *_FLOAT)
    ]
    types = sorted({node.op_type for node in model.graph.node} & {*_KINDS, *_MOVES})
    overrides = {
        each: [
            {
                "scale": np.array(1, np.float32),
                "zero_point": np.array(128, np.uint8),
                "quant_type": QuantType.QUInt8,
            }
        ]
        for each in exact
    }
    with tempfile.TemporaryDirectory(prefix="offramp-quantize-") as folder, _quiet():
        source, result = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        onnx.save(model, source)
        quantize_static(
            str(source),
            str(result),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=types,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=left_out,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"TensorQuantOverrides": overrides, "ForceQuantizeNoInputCheck": False},
        )
        return onnx.load(result)


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
