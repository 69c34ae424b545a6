"""What a head computes in float32, and functions of single bytes, which become tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.cli.export_c.graph import Graph, Node, sides_of
from offramp.cli.export_c.network import Kind, Layer, Network, Tensor
from offramp.common.errors import printable

FLOAT = 1
"""ONNX's number of float32."""
BLOCK, RUN = 16, 128
"""Channels that ONNX Runtime convolves at a time, and multiplies in one run."""
LARGEST = float(np.finfo(np.float32).max)
ELEMENTWISE: dict[str, Callable[[Any, Any], Any]] = {
    "Add": np.add,
    "Div": np.divide,
    "Mul": np.multiply,
    "Sub": np.subtract,
}


class Reals(Graph):
    """Reads those operators."""

    def _constant(self, name: str) -> NDArray[np.float32] | None:
        """A constant in float32, of one value or one for each channel; None: not one."""
        found = self.reals.get(name, self.constants.get(name))
        if found is None or found.dtype != np.float32 or found.size != max(found.shape[1:2], default=1):
            return None
        return found.reshape(-1)

    def _table(self, node: Node, name: str) -> tuple[Tensor, NDArray[np.float32]]:
        """What a tensor is as a function of one byte. Refuses one that is not."""
        if name in self.tables:
            return self.tables[name]
        tensor = self.numbers.get(name)
        if not isinstance(tensor, Tensor) or tensor.real:
            self._refuse(node, f"needs '{printable(name, 60)}', which is not made of single bytes")
        levels = (np.arange(256) - tensor.zero).astype(np.float32) * np.float32(tensor.scale)
        return tensor, levels[:, None]

    def _cast(self, node: Node) -> None:
        whole, channels = self._view(node, node.inputs[0])
        if node.attributes.get("to") != FLOAT or channels != tuple(range(self.tensors[whole].channels)):
            self._refuse(node, "casts some channels or to another type, expected all to float32")
        self.tables[node.output] = self.tensors[whole], np.arange(256, dtype=np.float32)[:, None]

    def _elementwise(self, node: Node) -> None:
        """A byte's number with a constant: still a function of that byte."""
        first, second = (self._constant(name) for name in node.inputs)
        if (first is None) == (second is None):
            self._refuse(node, "has no constant operand or two, expected one, for all channels or each")
        tensor, values = self._table(node, node.inputs[0 if first is None else 1])
        left = values if first is None else first[None]
        right = values if second is None else second[None]
        made = ELEMENTWISE[node.kind](left, right).astype(np.float32)
        if made.shape[1] not in (1, tensor.channels) or not np.isfinite(made).all():
            self._refuse(node, "has a constant of another size, or results that are not finite")
        self.tables[node.output] = tensor, made

    def _lookup(self, node: Node) -> Callable[[Tensor], Layer]:
        tensor, values = self.tables[node.inputs[0]]

        def make(out: Tensor) -> Layer:
            self.tensors[out.name] = Tensor(out.name, *sides_of(tensor), out.scale, out.zero)
            levels = (np.rint(values / np.float32(out.scale)) + out.zero).clip(0, 255).astype(np.uint8)
            if (levels == levels[:, :1]).all():
                levels = levels[:, :1]
            name = printable(node.inputs[0], 60)
            return Layer(Kind.LOOKUP, name, (tensor.name,), out.name, weights=levels.view(np.int8))

        return make

    def _real(self, node: Node, name: str) -> Tensor:
        """A tensor of float32, as a layer of its own where it is not one yet."""
        key = f"{name} in float32"
        if key in self.tensors:
            return self.tensors[key]
        if name in self.real:
            out = Tensor(key, 0, 0, 0, real=True)
            self.layers.append(self.pending.pop(name)(out))
            return self.tensors[key]
        tensor, values = self._table(node, name)
        if (values == values[:, :1]).all():
            values = values[:, :1]
        self.tensors[key] = Tensor(key, *sides_of(tensor), real=True)
        self.layers.append(Layer(Kind.REAL, printable(name, 60), (tensor.name,), key, scale=values))
        return self.tensors[key]

    def _real_conv(self, node: Node) -> None:
        weights, group = self.constants[node.inputs[1]], node.attributes.get("group", 1)
        bias = self.constants[node.inputs[2]] if len(node.inputs) > 2 else np.zeros(len(weights), np.float32)
        if isinstance(found := self.numbers.get(node.inputs[0]), Tensor) and self._is_quantized_next(node):
            weights, bias = rounded(weights, bias, np.float32(found.scale))
        data = self._real(node, node.inputs[0])
        depthwise = group > 1
        if weights.shape[1] * group != data.channels or (depthwise and weights.shape[1] != 1):
            self._refuse(node, f"has {group} groups, expected 1 or one for each channel")
        kernel, stride, pad, sides = self._window(node, data, weights.shape)
        kept = weights[:, 0].transpose(1, 2, 0) if depthwise else weights.transpose(0, 2, 3, 1)
        # As ONNX Runtime adds up: channels of a picture one by one, others in runs.
        chunk = 1 if data.channels < BLOCK else RUN if kernel == (1, 1) else BLOCK

        def make(out: Tensor) -> Layer:
            self.tensors[out.name] = Tensor(out.name, len(weights), *sides, out.scale, out.zero, out.real)
            return Layer(
                Kind.REAL_DEPTHWISE if depthwise else Kind.REAL_CONV,
                printable(node.inputs[1].partition(".weight")[0], 60),
                (data.name,),
                out.name,
                kernel,
                stride,
                pad,
                np.ascontiguousarray(kept),
                scale=np.concatenate([[-LARGEST, LARGEST, out.scale], bias]).astype(np.float32),
                chunk=chunk,
            )

        self.pending[node.output] = make
        self.real.add(node.output)

    def _real_sum(self, node: Node) -> None:
        """A convolution whose sums begin with another's result, not with 0: ONNX Runtime joins them so."""
        inner = self.pending.pop(node.inputs[0])
        addend = self._real(node, node.inputs[1])

        def make(out: Tensor) -> Layer:
            layer = inner(out)
            if sides_of(addend) != sides_of(self.tensors[out.name]) or layer.kind is not Kind.REAL_CONV:
                self._refuse(node, "adds to a convolution what is of another shape, expected two alike")
            return replace(layer, inputs=(*layer.inputs, addend.name))

        self.pending[node.output] = make
        self.real.add(node.output)

    def _is_quantized_next(self, node: Node) -> bool:
        """Whether only a Clip is between this node and its quantization: ONNX Runtime rounds its weights."""
        (user, *others) = self.users.get(node.output, [node])
        while not others and user.kind == "Clip":
            (user, *others) = self.users.get(user.output, [node])
        return not others and user.kind == "QuantizeLinear"

    def _clip(self, node: Node) -> None:
        if node.inputs[0] not in self.real or len(node.inputs) != 3:
            self._refuse(node, "clips what is not a convolution in float32, expected no Clip before a byte's")
        inner = self.pending.pop(node.inputs[0])
        low, high = self._scalar(node, 1), self._scalar(node, 2)

        def make(out: Tensor) -> Layer:
            layer = inner(out)
            return replace(layer, scale=np.concatenate([np.array([low, high], np.float32), layer.scale[2:]]))

        self.pending[node.output] = make
        self.real.add(node.output)

    def _mean(self, node: Node) -> None:
        data = self.numbers.get(node.inputs[0])
        axes = self.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
        if not isinstance(data, Tensor) or data.real or axes is None or sorted(axes.tolist()) != [2, 3]:
            self._refuse(node, "is not the mean over rows and columns of a quantized tensor")

        def make(out: Tensor) -> Layer:
            self.tensors[out.name] = Tensor(out.name, data.channels, 1, 1, out.scale, out.zero)
            scale = np.array([data.scale, data.height * data.width, out.scale], np.float32)
            return Layer(Kind.MEAN, printable(node.output, 60), (data.name,), out.name, scale=scale)

        self.pending[node.output] = make


def rounded(
    weights: NDArray[np.float32], bias: NDArray[np.float32], scale: np.float32
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Float weights and bias between quantized tensors, as ONNX Runtime rounds them when it loads a graph."""
    least, most = min(weights.min(), np.float32(0)), max(weights.max(), np.float32(0))
    step = (most - least) / np.float32(255)
    zero = np.rint(np.float32(-128) - least / step).clip(-128, 127)
    levels = (np.rint(weights / step) + zero).clip(-128, 127)
    of_bias = scale * step
    return ((levels - zero) * step).astype(np.float32), (np.rint(bias / of_bias) * of_bias).astype(np.float32)


def joined(network: Network) -> Network:
    """Convolutions in float that look their inputs' bytes up themselves: rows of bytes take a quarter."""
    found: dict[str, Layer] = {}
    for layer in network.layers:
        users = [each for each in network.layers if layer.output in each.inputs]
        if layer.kind is Kind.REAL and all(_looks_up(each, layer.output) for each in users):
            found[layer.output] = layer
    layers = []
    for layer in network.layers:
        if layer.output in found:
            continue
        table = found.get(layer.inputs[0])
        if table is not None:
            layer = replace(layer, inputs=(table.inputs[0], *layer.inputs[1:]), levels=table.scale)
        layers.append(layer)
    tensors = {name: each for name, each in network.tensors.items() if name not in found}
    return replace(network, tensors=tensors, layers=tuple(layers))


def _looks_up(layer: Layer, name: str) -> bool:
    """Whether it could take that tensor's bytes in its place: one input, and of a convolution."""
    return layer.kind in (Kind.REAL_CONV, Kind.REAL_DEPTHWISE) and layer.inputs == (name,)
