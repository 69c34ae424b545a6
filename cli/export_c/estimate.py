"""What a head of a classifier would need in C, before it is trained: the planner on the classifier's graph.

The figures are those of a head in integers without a code, an exit and a coder, which only a bundle has: the
least that a bundle cut there needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offramp.cli.export_c.arena import plan
from offramp.cli.export_c.graph import CHANNELS, IMAGE, MOST
from offramp.cli.export_c.network import Kind, Layer, Network, Tensor
from offramp.cli.export_c.program import CODE_BYTES, MOST_LAYERS, buffers_of, state_bytes, table_bytes
from offramp.cli.export_c.schedule import make_schedule

if TYPE_CHECKING:
    from torch import fx

FOLDED = {
    "getitem",
    "batch_norm",
    "relu",
    "relu_",
    "clamp",
    "hardtanh",
    "hardtanh_",
    "dropout",
    "clone",
    "contiguous",
}
"""Part of the layer before them."""
LOOKUPS = {"silu", "silu_", "hardswish", "hardswish_", "sigmoid", "hardsigmoid", "gelu", "tanh", "leaky_relu"}
PADS = {"pad", "constant_pad_nd"}
MEANS = {"mean", "adaptive_avg_pool2d"}


@dataclass(frozen=True)
class Needs:
    """Bytes of a microcontroller: memory without the picture and a stack, and flash with about the code."""

    ram_bytes: int
    flash_bytes: int

    def fits(self, ram: int | None, flash: int | None) -> bool:
        """Within these limits, where there are any."""
        return (ram is None or self.ram_bytes <= ram) and (flash is None or self.flash_bytes <= flash)


def needs_of(nodes: Iterable[fx.Node], end: fx.Node) -> Needs | None:
    """What the head of these nodes, in their order, needs; None where C has not all of its operators."""
    network = _Walk().network(nodes, end)
    if network is None:
        return None
    schedule = make_schedule(network)
    arena = plan(buffers_of(network, schedule))
    weights = sum(layer.flash_bytes for layer in network.layers)
    return Needs(arena.bytes + state_bytes(network), weights + table_bytes(network, schedule) + CODE_BYTES)


class _Unknown(Exception):
    """An operator that is not in C."""


class _Walk:
    """From nodes of a captured graph to layers."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.layers: list[Layer] = []
        self.of: dict[fx.Node, str] = {}
        """The tensor that a node's value is in."""
        self.padded: dict[fx.Node, tuple[fx.Node, int, int]] = {}
        """Zeros around a tensor for the convolution behind them: of what, rows above, columns to the left."""

    def network(self, nodes: Iterable[fx.Node], end: fx.Node) -> Network | None:
        try:
            for node in nodes:
                if node.op == "placeholder":
                    self._image(node)
                elif node.op == "call_function":
                    self._operator(node)
            made = self.tensors[self._tensor(end)]
        except _Unknown:
            return None
        if len(self.layers) >= MOST_LAYERS or made.name == IMAGE:
            return None
        symbols = Tensor("symbols, channels first", made.channels, made.height, made.width)
        layer = Layer(Kind.CHANNELS_FIRST, symbols.name, (made.name,), symbols.name)
        tensors = self.tensors | {symbols.name: symbols}
        return Network(tensors, (*self.layers, layer), IMAGE, symbols.name, 0)

    def _image(self, node: fx.Node) -> None:
        sides = _sides(node)
        if sides[0] != CHANNELS:
            raise _Unknown
        self.tensors[IMAGE] = Tensor(IMAGE, *sides)
        self.of[node] = IMAGE

    def _tensor(self, node: Any) -> str:
        if node not in self.of:
            raise _Unknown
        return self.of[node]

    def _operator(self, node: fx.Node) -> None:
        from offramp.training.split.cuts import operator_name

        name = operator_name(node)
        if name.startswith("conv2d"):
            self._conv(node)
        elif name in PADS:
            self._pad(node)
        elif name in FOLDED:
            self.of[node] = self._tensor(node.args[0])
        elif name in LOOKUPS:
            self._put(node, Kind.LOOKUP, (self._tensor(node.args[0]),), np.empty(256, np.int8))
        elif name in ("add", "add_"):
            inputs = tuple(self._tensor(each) for each in node.args[:2])
            if len({(t.channels, t.height, t.width) for t in map(self.tensors.get, inputs) if t}) != 1:
                raise _Unknown
            self._put(node, Kind.ADD, inputs, scale=np.empty(3, np.float32))
        elif name in MEANS and _sides(node)[1:] == (1, 1):
            self._put(node, Kind.MEAN, (self._tensor(node.args[0]),), scale=np.empty(3, np.float32))
        else:
            raise _Unknown

    def _put(
        self, node: fx.Node, kind: Kind, inputs: tuple[str, ...], weights: Any = None, **more: Any
    ) -> None:
        self.tensors[node.name] = Tensor(node.name, *_sides(node))
        given = {} if weights is None else {"weights": weights}
        self.layers.append(Layer(kind, node.name, inputs, node.name, **given, **more))
        self.of[node] = node.name

    def _pad(self, node: fx.Node) -> None:
        given: tuple[Any, ...] = node.args
        source, sides, *rest = given
        if len(sides) != 4 or min(sides) < 0:
            raise _Unknown
        if any(each not in ("constant", None, 0, 0.0) for each in rest):
            raise _Unknown
        left, _, top, _ = sides
        self.padded[node] = source, top, left

    def _conv(self, node: fx.Node) -> None:
        given: tuple[Any, ...] = (*node.args, *_DEFAULTS[len(node.args) :])
        data, weights, _, stride, pad, dilation, groups = given
        data, top, left = self.padded.get(data, (data, 0, 0))
        source = self.tensors[self._tensor(data)]
        outputs, inputs, high, wide = _shape(weights)
        depthwise = groups > 1
        if isinstance(pad, str) or any(each != 1 for each in dilation):
            raise _Unknown
        if depthwise and not (inputs == 1 and groups == outputs == source.channels):
            raise _Unknown
        shape = (high, wide, outputs) if depthwise else (outputs, high, wide, inputs)
        self._put(
            node,
            Kind.DEPTHWISE if depthwise else Kind.CONV,
            (source.name,),
            _empty(shape),
            kernel=(high, wide),
            stride=_two(stride),
            pad=(_two(pad)[0] + top, _two(pad)[1] + left),
            bias=np.empty(outputs, np.int32),
            scale=np.empty(outputs, np.float32),
        )


_DEFAULTS: tuple[Any, ...] = (None, None, None, (1, 1), (0, 0), (1, 1), 1)


def _empty(shape: tuple[int, ...]) -> NDArray[np.int8]:
    """Only its shape is used."""
    return np.broadcast_to(np.int8(0), shape)


def _two(values: Any) -> tuple[int, int]:
    first, *rest = values if isinstance(values, list | tuple) else [values]
    return int(first), int(rest[0] if rest else first)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(side) for side in node.meta["val"].shape)


def _sides(node: fx.Node) -> tuple[int, int, int]:
    value = node.meta.get("val")
    sides = tuple(value.shape[1:]) if value is not None and hasattr(value, "shape") else ()
    if len(sides) != 3 or not all(isinstance(side, int) and 1 <= side <= MOST for side in sides):
        raise _Unknown
    return int(sides[0]), int(sides[1]), int(sides[2])
