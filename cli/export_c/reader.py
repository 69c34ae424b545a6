"""A head's ONNX graph to layers: each pattern of quantize and dequantize that ONNX Runtime runs in integers.

The arithmetic of what comes out is ONNX Runtime's on x86-64 with AVX2 (docs/reference/microcontroller.md):
the numbers that it computes once, in float32, are computed here in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from offramp.cli.export_c.network import Kind, Layer, Network, Tensor
from offramp.common.bundle.load import Bundle
from offramp.common.errors import BundleError, printable
from offramp.common.inputs.spec import Preprocessing

IMAGE, SYMBOLS, LOGITS = "image", "symbols", "logits"
CHANNELS = 3
MOST = 65_535
"""Of a side or of channels."""


@dataclass(frozen=True)
class _Node:
    """One operator of the graph."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class _Constant:
    """Integers and the scales, one or one for each of the first axis, that make them numbers."""

    name: str
    values: NDArray[Any]
    scale: NDArray[np.float32]


def read_head(bundle: Bundle) -> Network:
    """The head of a bundle as layers. Raises BundleError, naming the layer, where it has what C does not."""
    taken = bundle.manifest.input
    if not isinstance(taken, Preprocessing):
        raise BundleError(f"{bundle.path}: takes {printable(taken.what)}, export-c takes bundles of pictures")
    head = bundle.manifest.parts[0].graph
    try:
        return _Reader(bundle.head, len(bundle.manifest.classes), (taken.height, taken.width)).network()
    except BundleError as error:
        raise BundleError(f"{bundle.path}: {head}: {error}") from None


class _Reader:
    """Walks the graph once; ``fine`` names what each tensor of numbers was quantized from or to."""

    def __init__(self, graph: bytes, classes: int, sides: tuple[int, int]) -> None:
        # Here, so that --help needs no onnx.
        from onnx import ModelProto, helper, numpy_helper

        model = ModelProto.FromString(graph)
        self.classes = classes
        self.constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        self.nodes = [
            _Node(
                node.op_type,
                tuple(node.input),
                node.output[0],
                {a.name: helper.get_attribute_value(a) for a in node.attribute},
            )
            for node in model.graph.node
        ]
        image = Tensor(IMAGE, CHANNELS, *sides, 1.0, 0)
        self.tensors = {IMAGE: image}
        self.layers: list[Layer] = []
        self.views: dict[str, tuple[str, tuple[int, ...]]] = {IMAGE: (IMAGE, tuple(range(CHANNELS)))}
        """A tensor of bytes that is channels of another."""
        self.numbers: dict[str, Tensor | _Constant] = {}
        """What dequantizes to this tensor."""
        self.pending: dict[str, Callable[[Tensor], Layer]] = {}
        """Layers whose output is not quantized yet."""

    def network(self) -> Network:
        """All of it."""
        steps: dict[str, Callable[[_Node], None]] = {
            "DequantizeLinear": self._dequantize,
            "QuantizeLinear": self._quantize,
            "Conv": self._conv,
            "Add": self._add,
            "Slice": self._slice,
            "Concat": self._concat,
            "Flatten": self._flatten,
            "Gemm": self._gemm,
        }
        for node in self.nodes:
            if node.kind not in steps:
                self._refuse(node, f"is the operator {node.kind}, expected integers only: {', '.join(steps)}")
            steps[node.kind](node)
        if SYMBOLS not in self.views or self.layers[-1].kind is not Kind.LOGITS:
            raise BundleError(
                f"its last layers do not make '{SYMBOLS}' and '{LOGITS}', expected a head with an exit"
            )
        whole, _ = self.views[SYMBOLS]
        found = self.tensors[whole]
        symbols = Tensor("symbols, channels first", *_sides(found), found.scale, found.zero)
        layer = Layer(Kind.CHANNELS_FIRST, symbols.name, (whole,), symbols.name)
        return Network(
            self.tensors | {symbols.name: symbols}, (*self.layers, layer), IMAGE, symbols.name, self.classes
        )

    def _refuse(self, node: _Node, why: str) -> NoReturn:
        raise BundleError(f"'{printable(node.output, 60)}' {why}")

    def _scalar(self, node: _Node, index: int) -> float:
        values = self.constants.get(node.inputs[index])
        if values is None or values.size != 1:
            self._refuse(node, "has a scale or zero point for each channel, expected one for all")
        return values.reshape(()).item()

    def _dequantize(self, node: _Node) -> None:
        name = node.inputs[0]
        if name in self.constants:
            values, scale = self.constants[name], self.constants[node.inputs[1]]
            zero = self.constants[node.inputs[2]] if len(node.inputs) > 2 else np.zeros(1)
            if zero.any() or values.dtype not in (np.int8, np.int32):
                return  # who uses them is refused
            self.numbers[node.output] = _Constant(name, values, np.atleast_1d(scale).astype(np.float32))
            return
        whole, channels = self._view(node, name)
        scale, zero = self._scalar(node, 1), int(self._scalar(node, 2))
        tensor = self.tensors[whole]
        if whole == IMAGE and (tensor.scale, tensor.zero) == (1.0, 0):
            tensor = self.tensors[IMAGE] = Tensor(IMAGE, *_sides(tensor), scale, zero)
        if (tensor.scale, tensor.zero) != (scale, zero):
            self._refuse(node, "reads bytes with another scale than they were written with")
        self.numbers[node.output] = tensor
        self.views[node.output] = whole, channels

    def _view(self, node: _Node, name: str) -> tuple[str, tuple[int, ...]]:
        if name not in self.views:
            self._refuse(node, f"needs '{printable(name, 60)}', which is not a quantized tensor")
        return self.views[name]

    def _quantize(self, node: _Node) -> None:
        make = self.pending.pop(node.inputs[0], None)
        if make is None:
            self._refuse(
                node, f"quantizes '{printable(node.inputs[0], 60)}', expected a convolution or an addition"
            )
        wanted = Tensor(node.output, 0, 0, 0, self._scalar(node, 1), int(self._scalar(node, 2)))
        self.layers.append(make(wanted))
        self.views[node.output] = node.output, tuple(range(self.tensors[node.output].channels))

    def _slice(self, node: _Node) -> None:
        whole, channels = self._view(node, node.inputs[0])
        start, end, axis = (int(self._scalar(node, index)) for index in (1, 2, 3))
        if axis != 1 or len(node.inputs) > 4:
            self._refuse(node, "slices rows or columns, expected channels")
        self.views[node.output] = whole, channels[start:end]

    def _concat(self, node: _Node) -> None:
        found = [self._view(node, name) for name in node.inputs]
        if node.attributes.get("axis") != 1 or len({whole for whole, _ in found}) != 1:
            self._refuse(node, "joins different tensors, expected channels of one")
        self.views[node.output] = found[0][0], tuple(each for _, channels in found for each in channels)

    def _flatten(self, node: _Node) -> None:
        if node.attributes.get("axis", 1) != 1:
            self._refuse(node, "flattens at another axis than 1")
        self.views[node.output] = self._view(node, node.inputs[0])

    def _operands(self, node: _Node) -> tuple[Tensor, tuple[int, ...], _Constant, NDArray[np.int64]]:
        """A convolution's or product's input, its channels, weights and bias."""
        data, weights = self.numbers.get(node.inputs[0]), self.numbers.get(node.inputs[1])
        if (
            not isinstance(data, Tensor)
            or not isinstance(weights, _Constant)
            or weights.values.dtype != np.int8
        ):
            self._refuse(node, "is computed in float, expected int8 weights around 0 and quantized inputs")
        outputs = weights.values.shape[0]
        bias = np.zeros(outputs, np.int64)
        if len(node.inputs) > 2:
            found = self.numbers.get(node.inputs[2])
            if (
                not isinstance(found, _Constant)
                or found.values.dtype != np.int32
                or found.values.shape != (outputs,)
            ):
                self._refuse(node, "has a float bias, expected an int32 one")
            bias = found.values.astype(np.int64)
        return data, self.views[node.inputs[0]][1], weights, bias

    def _conv(self, node: _Node) -> None:
        data, channels, stored, bias = self._operands(node)
        weights, group = stored.values, node.attributes.get("group", 1)
        top, left, bottom, right = node.attributes.get("pads", [0, 0, 0, 0])
        stride = node.attributes.get("strides", [1, 1])
        kernel = weights.shape[2:]
        if len(kernel) != 2 or any(each != 1 for each in node.attributes.get("dilations", [1, 1])):
            self._refuse(node, "is dilated or not of two dimensions, expected a plain 2-D convolution")
        if node.attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
            self._refuse(node, "pads automatically, expected its pads")
        if max(*kernel, *stride, top, left) > 255:
            self._refuse(node, f"has a kernel of {kernel[0]}×{kernel[1]} or a stride over 255")
        depthwise = group > 1
        if depthwise and (weights.shape[1] != 1 or not group == weights.shape[0] == len(channels)):
            self._refuse(node, f"has {group} groups, expected 1 or one for each channel")
        if channels != tuple(range(data.channels)):
            if depthwise:
                self._refuse(node, "takes some channels only, expected all")
            weights = self._merged(node, weights, channels, data.channels)
        if not depthwise:
            bias = bias - data.zero * weights.astype(np.int64).sum(axis=(1, 2, 3))
        height = (data.height + top + bottom - kernel[0]) // stride[0] + 1
        width = (data.width + left + right - kernel[1]) // stride[1] + 1
        if height < 1 or width < 1 or max(height, width, weights.shape[0]) > MOST:
            self._refuse(node, f"makes {weights.shape[0]}×{height}×{width}, expected sides of 1 … {MOST:,}")
        kept = weights[:, 0].transpose(1, 2, 0) if depthwise else weights.transpose(0, 2, 3, 1)

        def make(out: Tensor) -> Layer:
            self.tensors[out.name] = Tensor(out.name, weights.shape[0], height, width, out.scale, out.zero)
            scale = np.float32(data.scale) * stored.scale / np.float32(out.scale)
            return Layer(
                Kind.DEPTHWISE if depthwise else Kind.CONV,
                _name(stored),
                (data.name,),
                out.name,
                (int(kernel[0]), int(kernel[1])),
                (stride[0], stride[1]),
                (top, left),
                np.ascontiguousarray(kept),
                self._bias(node, bias),
                np.broadcast_to(scale, weights.shape[:1]).astype(np.float32),
            )

        self.pending[node.output] = make

    def _merged(
        self, node: _Node, weights: NDArray[Any], channels: tuple[int, ...], count: int
    ) -> NDArray[np.int8]:
        """The weights for each channel once, where the graph gives some twice: the sums are the same."""
        summed = np.zeros((weights.shape[0], count, *weights.shape[2:]), np.int32)
        for index, channel in enumerate(channels):
            summed[:, channel] += weights[:, index]
        if np.abs(summed).max(initial=0) > 127:
            self._refuse(node, "takes a channel twice with weights whose sum is over 127")
        return summed.astype(np.int8)

    def _bias(self, node: _Node, bias: NDArray[np.int64]) -> NDArray[np.int32]:
        if np.abs(bias).max(initial=0) > np.iinfo(np.int32).max:
            self._refuse(node, "has a bias that does not fit 32 bits")
        return bias.astype(np.int32)

    def _add(self, node: _Node) -> None:
        first, second = (self.numbers.get(name) for name in node.inputs)
        if not isinstance(first, Tensor) or not isinstance(second, Tensor) or _sides(first) != _sides(second):
            self._refuse(
                node, "adds tensors of different shapes or in float, expected two quantized ones alike"
            )

        def make(out: Tensor) -> Layer:
            self.tensors[out.name] = Tensor(out.name, *_sides(first), out.scale, out.zero)
            ratio = [np.float32(each.scale) / np.float32(out.scale) for each in (first, second)]
            fixed = np.float32(out.zero) - _fused(ratio[0], first.zero, ratio[1] * np.float32(second.zero))
            scale = np.array([*ratio, fixed], np.float32)
            return Layer(
                Kind.ADD, printable(node.output, 60), (first.name, second.name), out.name, scale=scale
            )

        self.pending[node.output] = make

    def _gemm(self, node: _Node) -> None:
        data, _, stored, bias = self._operands(node)
        weights = stored.values if node.attributes.get("transB", 0) else stored.values.T
        shape = (self.classes, data.channels, data.height, data.width)
        if node.output != LOGITS or weights.size != np.prod(shape) or len(bias) != self.classes:
            self._refuse(node, f"is a product of {weights.shape}, expected one whose result is '{LOGITS}'")
        bias = bias - data.zero * weights.astype(np.int64).sum(axis=1)
        scale = np.broadcast_to(np.float32(data.scale) * stored.scale, self.classes).astype(np.float32)
        kept = np.ascontiguousarray(weights.reshape(shape).transpose(0, 2, 3, 1))
        self.layers.append(
            Layer(
                Kind.LOGITS,
                _name(stored),
                (data.name,),
                LOGITS,
                weights=kept,
                bias=self._bias(node, bias),
                scale=scale,
            )
        )


def _sides(tensor: Tensor) -> tuple[int, int, int]:
    return tensor.channels, tensor.height, tensor.width


def _name(weights: _Constant) -> str:
    """A layer by its weights: a module's name, as `offramp cuts` lists them."""
    return printable(weights.name.partition(".weight")[0], 60)


def _fused(factor: np.float32, other: int, added: np.float32) -> np.float32:
    """factor × other + added, rounded once to float32."""
    exact = Fraction(float(factor)) * other + Fraction(float(added))
    # float() rounds to 53 bits first; what is between float32's halves by less than that is not met here.
    return np.float32(float(exact))
