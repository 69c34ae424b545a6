"""A quantized model as two ONNX graphs in QDQ form: ``head`` for the device, ``tail`` for the server.

    head   image uint8 [N, 3, H, W]    -> symbols uint8 [N, C, h, w], logits float32 [N, K]
    tail   symbols uint8 [N, C, h, w]  -> logits float32 [N, K]

Each quantized layer is exactly DequantizeLinear -> Conv -> QuantizeLinear with nothing between, so that a
runtime can fuse it into one integer convolution: there is no batch norm, no ReLU (but where a split inside a
residual block makes two tensors share a code), no normalisation of the input and no QuantizeLinear but at a
layer's output; max pooling takes the codes as they are. ONNX Runtime then takes its direct integer
convolution, for which weights have to be int8 with zero point 0 and input channels to come in fours
(depthwise: in sixteens); with uint8 weights or three channels it falls back to kernels that take half as long
again. Standard ONNX operators only, opset 21, weights inside the file, N dynamic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from offramp.training.quantize.quantized import (
    IMAGE,
    Affine,
    QuantAdd,
    QuantBlock,
    QuantLayer,
    QuantModel,
    QuantPool,
    QuantShuffle,
)

OPSET = 21
IR_VERSION = 10


@dataclass(frozen=True)
class Graphs:
    """Serialised ONNX models."""

    head: bytes
    tail: bytes


class _GraphBuilder:
    """Collects nodes and initializers; every method returns the name of the tensor that it adds."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.count = 0

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def node(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        self.count += 1
        name = output or f"{op}_{self.count}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"{self.count}_{op}", **attributes))
        return name

    def code(self, code: Affine) -> tuple[str, str]:
        scale = self.constant(f"scale_{code.scale!r}", np.array(code.scale, np.float32))
        zero = self.constant(f"zero_{code.zero_point}", np.array(code.zero_point, np.uint8))
        return scale, zero

    def quantize(self, x: str, code: Affine, output: str | None = None) -> str:
        return self.node("QuantizeLinear", x, *self.code(code), output=output)

    def dequantize(self, x: str, code: Affine) -> str:
        return self.node("DequantizeLinear", x, *self.code(code))

    def weight(self, name: str, layer: QuantLayer) -> tuple[str, str]:
        """The dequantized weight and bias of a layer."""
        scale = self.constant(f"{name}.scale", layer.weight_scale)
        zero = self.constant(f"{name}.zero", np.zeros(len(layer.weight), np.int8))
        weight = self.node(
            "DequantizeLinear", self.constant(f"{name}.weight", layer.weight), scale, zero, axis=0
        )
        bias_scale = layer.weight_scale * np.float32(layer.input.scale)
        bias_zero = np.zeros(len(layer.bias), np.int32)
        bias = self.node(
            "DequantizeLinear",
            self.constant(f"{name}.bias", layer.bias),
            self.constant(f"{name}.bias_scale", bias_scale),
            self.constant(f"{name}.bias_zero", bias_zero),
            axis=0,
        )
        return weight, bias

    def conv(self, name: str, x: str, layer: QuantLayer, output: str | None = None) -> str:
        kernel = layer.weight.shape[2]
        assert layer.output is not None
        y = self.node(
            "Conv",
            self.dequantize(x, layer.input),
            *self.weight(name, layer),
            kernel_shape=[kernel, kernel],
            pads=[layer.padding] * 4,
            strides=[layer.stride] * 2,
            group=layer.groups,
        )
        return self.quantize(self.node("Relu", y) if layer.relu else y, layer.output, output)

    def linear(self, name: str, x: str, layer: QuantLayer) -> str:
        """The layer's float32 logits, named ``logits``."""
        flat = self.dequantize(self.node("Flatten", x, axis=1), layer.input)
        return self.node("Gemm", flat, *self.weight(name, layer), transB=1, output="logits")

    def bytes(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> bytes:
        graph = helper.make_graph(self.nodes, name, inputs, outputs, list(self.initializers.values()))
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="offramp",
        )
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))


@dataclass(frozen=True)
class _Codes:
    """A uint8 tensor and its code; beside it the residual branch that is still open, if one is."""

    x: str
    code: Affine
    skip: str | None = None
    skip_code: Affine | None = None


def _run(
    graph: _GraphBuilder, flow: _Codes, blocks: tuple[QuantBlock, ...], output: str | None = None
) -> _Codes:
    """Emit the blocks; the last one's uint8 result is named ``output``."""
    for block in blocks:
        name = output if block is blocks[-1] else None
        if isinstance(block.layer, QuantAdd):
            flow = _Codes(_add(graph, flow, block, block.layer, name), block.output)
        elif isinstance(block.layer, QuantPool):
            sides = [block.layer.kernel] * 2
            pooled = graph.node("MaxPool", flow.x, output=name, kernel_shape=sides, strides=sides)
            flow = replace(flow, x=pooled)
        elif isinstance(block.layer, QuantShuffle):
            factor = block.layer.factor
            # CRD is the order of torch's pixel_shuffle.
            flow = replace(
                flow, x=graph.node("DepthToSpace", flow.x, output=name, blocksize=factor, mode="CRD")
            )
        else:
            skip, skip_code = (flow.x, flow.code) if block.opens else (flow.skip, flow.skip_code)
            flow = _Codes(graph.conv(block.name, flow.x, block.layer, name), block.output, skip, skip_code)
    return flow


def _add(graph: _GraphBuilder, flow: _Codes, block: QuantBlock, layer: QuantAdd, output: str | None) -> str:
    assert flow.skip is not None and flow.skip_code is not None
    skip, shortcut = flow.skip, layer.shortcut
    if shortcut is not None:
        skip = graph.conv(f"{block.name}.shortcut", skip, shortcut)
    total = graph.node("Add", graph.dequantize(flow.x, flow.code), graph.dequantize(skip, flow.skip_code))
    return graph.quantize(graph.node("Relu", total) if layer.relu else total, block.output, output)


def export(model: QuantModel) -> Graphs:
    """Both graphs of a quantized model."""
    return Graphs(_head(model), _tail(model))


def _head(model: QuantModel) -> bytes:
    graph = _GraphBuilder()
    exits = model.exit_number + 1
    encoder = model.blocks[exits : model.cut]
    plain = not encoder and model.split_shape == model.exit_shape
    stem, *others = model.blocks[:exits]
    image, stem = _four_channels(graph, stem)
    flow = _run(graph, _Codes(image, IMAGE), (stem, *others), "symbols" if plain else None)
    seen = flow.x
    if encoder:
        hidden = _run(graph, flow, encoder[:-1])
        _run(graph, hidden, encoder[-1:], "symbols")
        seen = flow.x if model.seen == model.exit_number else hidden.x
    elif not plain:
        assert flow.skip is not None
        graph.node("Concat", flow.x, flow.skip, axis=1, output="symbols")
    for number, layer in enumerate(model.exit_convolutions):
        seen = graph.conv(f"exit.convolution{number}", seen, layer)
    # An average pool between Dequantize- and QuantizeLinear stays float in ONNX Runtime, and slow; this one
    # fuses.
    pooled = graph.conv("exit.pool", seen, model.exit_pool)
    graph.linear("exit.linear", pooled, model.exit_linear)
    return graph.bytes(
        "head",
        [_value("image", TensorProto.UINT8, model.input_shape)],
        [
            _value("symbols", TensorProto.UINT8, model.split_shape),
            _value("logits", TensorProto.FLOAT, (model.classes,)),
        ],
    )


def _four_channels(graph: _GraphBuilder, stem: QuantBlock) -> tuple[str, QuantBlock]:
    """The image with its first channel a second time, and the stem with weights of 0 for it: the same
    function.

    ONNX Runtime has a kernel without im2col for channels in fours; with three, the stem takes twice as long.
    """
    assert isinstance(stem.layer, QuantLayer)
    ends = (
        graph.constant(f"slice.{name}", np.array([end], np.int64)) for name, end in (("start", 0), ("end", 1))
    )
    first = graph.node("Slice", "image", *ends, graph.constant("slice.axis", np.array([1], np.int64)))
    weight = np.pad(stem.layer.weight, ((0, 0), (0, 1), (0, 0), (0, 0)))
    return graph.node("Concat", "image", first, axis=1), replace(
        stem, layer=replace(stem.layer, weight=weight)
    )


def _tail(model: QuantModel) -> bytes:
    graph = _GraphBuilder()
    flow = _Codes("symbols", model.symbols)
    if model.cut == model.exit_number + 1 and model.split_shape != model.exit_shape:
        channels = model.exit_shape[0]
        sizes = graph.constant("sizes", np.array([channels, model.split_shape[0] - channels], np.int64))
        graph.nodes.append(helper.make_node("Split", ["symbols", sizes], ["activation", "skip"], axis=1))
        flow = _Codes("activation", model.symbols, "skip", model.symbols)
    flow = _run(graph, flow, model.blocks[model.cut :])
    x, code = flow.x, flow.code
    for number, layer in enumerate(model.top):
        x = graph.conv(f"top{number}", x, layer)
        assert layer.output is not None
        code = layer.output
    pooled = graph.quantize(graph.node("GlobalAveragePool", graph.dequantize(x, code)), model.pooled)
    graph.linear("classifier", pooled, model.classifier)
    return graph.bytes(
        "tail",
        [_value("symbols", TensorProto.UINT8, model.split_shape)],
        [_value("logits", TensorProto.FLOAT, (model.classes,))],
    )


def _value(name: str, kind: int, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["N", *shape])
