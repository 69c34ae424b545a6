"""A graph as it is read: nodes, constants, what has been found of it so far, and refusals by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from offramp.cli.export_c.network import Layer, Tensor
from offramp.common.errors import BundleError, printable

IMAGE = "image"
CHANNELS = 3
MOST = 65_535
"""Of a side or of channels."""


@dataclass(frozen=True)
class Node:
    """One operator of the graph."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Constant:
    """Integers and the scales, one or one for each of the first axis, that make them numbers."""

    name: str
    values: NDArray[Any]
    scale: NDArray[np.float32]


class Graph:
    """What has been read of a graph; ``reader.py`` and ``reals.py`` walk it once."""

    def __init__(self, graph: bytes, classes: int, sides: tuple[int, int]) -> None:
        # Here, so that --help needs no onnx.
        from onnx import ModelProto, helper, numpy_helper

        model = ModelProto.FromString(graph)
        self.classes = classes
        self.constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        self.nodes = [
            Node(
                node.op_type,
                tuple(node.input),
                node.output[0],
                {a.name: helper.get_attribute_value(a) for a in node.attribute},
            )
            for node in model.graph.node
        ]
        self.tensors = {IMAGE: Tensor(IMAGE, CHANNELS, *sides)}
        self.layers: list[Layer] = []
        self.views: dict[str, tuple[str, tuple[int, ...]]] = {IMAGE: (IMAGE, tuple(range(CHANNELS)))}
        """A tensor of bytes that is channels of another."""
        self.numbers: dict[str, Tensor | Constant] = {}
        """What dequantizes to this tensor."""
        self.pending: dict[str, Callable[[Tensor], Layer]] = {}
        """Layers whose output is not quantized yet."""
        self.real: set[str] = set()
        """Those of them that compute in float32."""
        self.tables: dict[str, tuple[Tensor, NDArray[np.float32]]] = {}
        """What is a function of one byte: of which tensor, and its 256 values for all channels or each."""
        self.reals: dict[str, NDArray[np.float32]] = {}
        """Constants that are computed."""
        self.users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                self.users.setdefault(name, []).append(node)

    def _refuse(self, node: Node, why: str) -> NoReturn:
        raise BundleError(f"'{printable(node.output, 60)}' {why}")

    def _scalar(self, node: Node, index: int) -> float:
        values = self.constants.get(node.inputs[index])
        if values is None or values.size != 1:
            self._refuse(node, "has a scale or zero point for each channel, expected one for all")
        return float(values.reshape(()))

    def _view(self, node: Node, name: str) -> tuple[str, tuple[int, ...]]:
        if name not in self.views:
            self._refuse(node, f"needs '{printable(name, 60)}', which is not a quantized tensor")
        return self.views[name]

    def _window(
        self, node: Node, data: Tensor, shape: tuple[int, ...]
    ) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]:
        """A convolution's kernel, stride, borders above and to the left, and the sides of what it makes."""
        top, left, bottom, right = node.attributes.get("pads", [0, 0, 0, 0])
        down, across = node.attributes.get("strides", [1, 1])
        if len(shape) != 4 or any(each != 1 for each in node.attributes.get("dilations", [1, 1])):
            self._refuse(node, "is dilated or not of two dimensions, expected a plain 2-D convolution")
        if node.attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
            self._refuse(node, "pads automatically, expected its pads")
        outputs, _, high, wide = shape
        if max(high, wide, down, across, top, left) > 255:
            self._refuse(node, f"has a kernel of {high}×{wide} or a stride over 255")
        height = (data.height + top + bottom - high) // down + 1
        width = (data.width + left + right - wide) // across + 1
        if height < 1 or width < 1 or max(height, width, outputs) > MOST:
            self._refuse(node, f"makes {outputs}×{height}×{width}, expected sides of 1 … {MOST:,}")
        return (high, wide), (down, across), (top, left), (height, width)


def sides_of(tensor: Tensor) -> tuple[int, int, int]:
    return tensor.channels, tensor.height, tensor.width
