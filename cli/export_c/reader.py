"""A head's ONNX graph to layers: each pattern of quantize and dequantize that ONNX Runtime runs in integers.

The arithmetic of what comes out is ONNX Runtime's on x86-64 with AVX2 (docs/reference/microcontroller.md):
the numbers that it computes once, in float32, are computed here in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.cli.export_c.graph import IMAGE, Constant, Node, sides_of
from offramp.cli.export_c.network import Kind, Layer, Network, Tensor
from offramp.cli.export_c.reals import Reals, joined
from offramp.common.bundle.load import Bundle
from offramp.common.errors import BundleError, printable
from offramp.common.inputs.spec import Preprocessing

SYMBOLS, LOGITS = "symbols", "logits"
MOST_TAPS = 121
"""Of a depthwise kernel, in bytes: pointers to them are on the stack."""


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
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise BundleError(
            f"{bundle.path}: {head}: is not a graph that runs: {printable(repr(error))}"
        ) from None


class _Reader(Reals):
    """Each operator's pattern; what computes in float32 is in ``reals.py``."""

    def network(self) -> Network:
        """All of it."""
        steps: dict[str, Callable[[Node], None]] = {
            "DequantizeLinear": self._dequantize,
            "QuantizeLinear": self._quantize,
            "Conv": self._conv,
            "Add": self._add,
            "Cast": self._cast,
            "Clip": self._clip,
            "Div": self._elementwise,
            "Mul": self._elementwise,
            "ReduceMean": self._mean,
            "Sub": self._elementwise,
            "Slice": self._slice,
            "Concat": self._concat,
            "Flatten": self._flatten,
            "Gemm": self._gemm,
        }
        for node in self.nodes:
            if node.kind not in steps:
                self._refuse(node, f"is the operator {node.kind}, expected one of {', '.join(steps)}")
            steps[node.kind](node)
        if SYMBOLS not in self.views or all(layer.kind is not Kind.LOGITS for layer in self.layers):
            raise BundleError(f"it does not make '{SYMBOLS}' and '{LOGITS}', expected a head with an exit")
        whole, _ = self.views[SYMBOLS]
        found = self.tensors[whole]
        symbols = Tensor("symbols, channels first", *sides_of(found), found.scale, found.zero)
        layer = Layer(Kind.CHANNELS_FIRST, symbols.name, (whole,), symbols.name)
        tensors = self.tensors | {symbols.name: symbols}
        return joined(Network(tensors, (*self.layers, layer), IMAGE, symbols.name, self.classes))

    def _dequantize(self, node: Node) -> None:
        name = node.inputs[0]
        if name in self.constants:
            self._constant_numbers(node, self.constants[name])
            return
        whole, channels = self._view(node, name)
        scale, zero = self._scalar(node, 1), int(self._scalar(node, 2)) if len(node.inputs) > 2 else 0
        tensor = self.tensors[whole]
        if whole == IMAGE and (tensor.scale, tensor.zero) == (1.0, 0):
            tensor = self.tensors[IMAGE] = Tensor(IMAGE, *sides_of(tensor), scale, zero)
        if (tensor.scale, tensor.zero) != (scale, zero):
            self._refuse(node, "reads bytes with another scale than they were written with")
        self.numbers[node.output] = tensor
        self.views[node.output] = whole, channels

    def _constant_numbers(self, node: Node, values: NDArray[Any]) -> None:
        scale = self.constants[node.inputs[1]]
        zeros = self.constants[node.inputs[2]] if len(node.inputs) > 2 else np.zeros(1, np.int32)
        if not zeros.any() and values.dtype in (np.int8, np.int32):
            self.numbers[node.output] = Constant(
                node.inputs[0], values, np.atleast_1d(scale).astype(np.float32)
            )
        elif scale.size == zeros.size == 1:
            # Who needs int8 around 0 refuses it.
            levels = values.astype(np.int32) - int(zeros.reshape(()))
            self.reals[node.output] = (levels * scale.reshape(())).astype(np.float32)

    def _quantize(self, node: Node) -> None:
        make = self.pending.pop(node.inputs[0], None)
        if make is None and node.inputs[0] in self.tables:
            make = self._lookup(node)
        if make is None:
            self._refuse(
                node, f"quantizes '{printable(node.inputs[0], 60)}', expected a convolution or an addition"
            )
        wanted = Tensor(node.output, 0, 0, 0, self._scalar(node, 1), int(self._scalar(node, 2)))
        self.layers.append(make(wanted))
        self.views[node.output] = node.output, tuple(range(self.tensors[node.output].channels))

    def _slice(self, node: Node) -> None:
        whole, channels = self._view(node, node.inputs[0])
        start, end, axis = (int(self._scalar(node, index)) for index in (1, 2, 3))
        if axis != 1 or len(node.inputs) > 4:
            self._refuse(node, "slices rows or columns, expected channels")
        self.views[node.output] = whole, channels[start:end]

    def _concat(self, node: Node) -> None:
        found = [self._view(node, name) for name in node.inputs]
        if node.attributes.get("axis") != 1 or len({whole for whole, _ in found}) != 1:
            self._refuse(node, "joins different tensors, expected channels of one")
        self.views[node.output] = found[0][0], tuple(each for _, channels in found for each in channels)

    def _flatten(self, node: Node) -> None:
        if node.attributes.get("axis", 1) != 1:
            self._refuse(node, "flattens at another axis than 1")
        self.views[node.output] = self._view(node, node.inputs[0])

    def _operands(self, node: Node) -> tuple[Tensor, tuple[int, ...], Constant, NDArray[np.int64]]:
        """A convolution's or product's input, its channels, weights and bias."""
        data, weights = self.numbers.get(node.inputs[0]), self.numbers.get(node.inputs[1])
        if (
            not isinstance(data, Tensor)
            or not isinstance(weights, Constant)
            or weights.values.dtype != np.int8
        ):
            self._refuse(node, "is computed in float, expected int8 weights around 0 and quantized inputs")
        outputs = weights.values.shape[0]
        bias = np.zeros(outputs, np.int64)
        if len(node.inputs) > 2:
            found = self.numbers.get(node.inputs[2])
            if (
                not isinstance(found, Constant)
                or found.values.dtype != np.int32
                or found.values.shape != (outputs,)
            ):
                self._refuse(node, "has a float bias, expected an int32 one")
            bias = found.values.astype(np.int64)
        return data, self.views[node.inputs[0]][1], weights, bias

    def _conv(self, node: Node) -> None:
        if node.inputs[1] in self.constants and self.constants[node.inputs[1]].dtype == np.float32:
            self._real_conv(node)
            return
        data, channels, stored, bias = self._operands(node)
        weights, group = stored.values, node.attributes.get("group", 1)
        depthwise = group > 1
        if depthwise and (weights.shape[1] != 1 or not group == weights.shape[0] == len(channels)):
            self._refuse(node, f"has {group} groups, expected 1 or one for each channel")
        if depthwise and weights[0].size > MOST_TAPS:
            self._refuse(node, f"has a kernel of {weights[0].size} places, expected at most {MOST_TAPS}")
        if channels != tuple(range(data.channels)):
            if depthwise:
                self._refuse(node, "takes some channels only, expected all")
            weights = self._merged(node, weights, channels, data.channels)
        if not depthwise:
            bias = bias - data.zero * weights.astype(np.int64).sum(axis=(1, 2, 3))
        kernel, stride, pad, (height, width) = self._window(node, data, weights.shape)
        kept = weights[:, 0].transpose(1, 2, 0) if depthwise else weights.transpose(0, 2, 3, 1)

        def make(out: Tensor) -> Layer:
            self.tensors[out.name] = Tensor(out.name, weights.shape[0], height, width, out.scale, out.zero)
            scale = np.float32(data.scale) * stored.scale / np.float32(out.scale)
            return Layer(
                Kind.DEPTHWISE if depthwise else Kind.CONV,
                _name(stored),
                (data.name,),
                out.name,
                kernel,
                stride,
                pad,
                np.ascontiguousarray(kept),
                self._bias(node, bias),
                np.broadcast_to(scale, weights.shape[:1]).astype(np.float32),
            )

        self.pending[node.output] = make

    def _merged(
        self, node: Node, weights: NDArray[Any], channels: tuple[int, ...], count: int
    ) -> NDArray[np.int8]:
        """The weights for each channel once, where the graph gives some twice: the sums are the same."""
        summed = np.zeros((weights.shape[0], count, *weights.shape[2:]), np.int32)
        for index, channel in enumerate(channels):
            summed[:, channel] += weights[:, index]
        if np.abs(summed).max(initial=0) > 127:
            self._refuse(node, "takes a channel twice with weights whose sum is over 127")
        return summed.astype(np.int8)

    def _bias(self, node: Node, bias: NDArray[np.int64]) -> NDArray[np.int32]:
        if np.abs(bias).max(initial=0) > np.iinfo(np.int32).max:
            self._refuse(node, "has a bias that does not fit 32 bits")
        return bias.astype(np.int32)

    def _add(self, node: Node) -> None:
        if any(self._constant(name) is not None for name in node.inputs):
            self._elementwise(node)
            return
        if (
            node.inputs[0] in self.real
            and node.inputs[0] in self.pending
            and node.inputs[1] != node.inputs[0]
        ):
            self._real_sum(node)
            return
        first, second = (self.numbers.get(name) for name in node.inputs)
        if (
            not isinstance(first, Tensor)
            or not isinstance(second, Tensor)
            or sides_of(first) != sides_of(second)
        ):
            self._refuse(
                node, "adds tensors of different shapes or in float, expected two quantized ones alike"
            )

        def make(out: Tensor) -> Layer:
            self.tensors[out.name] = Tensor(out.name, *sides_of(first), out.scale, out.zero)
            ratio = [np.float32(each.scale) / np.float32(out.scale) for each in (first, second)]
            fixed = np.float32(out.zero) - _fused(ratio[0], first.zero, ratio[1] * np.float32(second.zero))
            scale = np.array([*ratio, fixed], np.float32)
            return Layer(
                Kind.ADD, printable(node.output, 60), (first.name, second.name), out.name, scale=scale
            )

        self.pending[node.output] = make

    def _gemm(self, node: Node) -> None:
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


def _name(weights: Constant) -> str:
    """A layer by its weights: a module's name, as `offramp cuts` lists them."""
    return printable(weights.name.partition(".weight")[0], 60)


def _fused(factor: np.float32, other: int, added: np.float32) -> np.float32:
    """factor × other + added, rounded once to float32."""
    exact = Fraction(float(factor)) * other + Fraction(float(added))
    # float() rounds to 53 bits first; what is between float32's halves by less than that is not met here.
    return np.float32(float(exact))
