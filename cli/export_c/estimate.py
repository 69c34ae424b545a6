"""What a head of a classifier would need in C, before it is trained: the planner on the classifier's graph.

The figures are those of a head in integers: the least that a bundle cut there needs. With a place they have
the encoder and exit that `offramp split` trains there, but no coder, which only a bundle has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offramp.cli.export_c.arena import plan
from offramp.cli.export_c.graph import CHANNELS, IMAGE, MOST
from offramp.cli.export_c.network import Kind, Layer, Network, Tensor
from offramp.cli.export_c.program import CODE_BYTES, MOST_LAYERS, buffers_of, state_bytes, table_bytes
from offramp.cli.export_c.schedule import make_schedule
from offramp.training.split.board import Needs

if TYPE_CHECKING:
    from torch import fx

    from offramp.training.split.capture import Captured
    from offramp.training.split.place import Place

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


def needs_of(nodes: Iterable[fx.Node], end: fx.Node, place: Place | None = None) -> Needs | None:
    """What the head of these nodes, in their order, needs; None where C has not all of its operators.

    place: with the encoder and exit of `offramp.training.split.code` there.
    """
    network = _Walk().network(nodes, end, place)
    if network is None:
        return None
    schedule = make_schedule(network)
    arena = plan(buffers_of(network, schedule))
    weights = sum(layer.flash_bytes for layer in network.layers)
    return Needs(arena.bytes + state_bytes(network), weights + table_bytes(network, schedule) + CODE_BYTES)


def needs_at(captured: Captured, place: Place) -> Needs | None:
    """What the head of a place of a captured classifier needs, its code and exit included."""
    from offramp.training.split.capture import closure

    nodes = {node.name: node for node in captured.graph.graph.nodes}
    end = nodes[place.cut.node]
    head = closure(end)
    kept = [node for node in nodes.values() if node in head]
    return needs_of(kept, end, place)


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

    def network(self, nodes: Iterable[fx.Node], end: fx.Node, place: Place | None) -> Network | None:
        try:
            for node in nodes:
                if node.op == "placeholder":
                    self._image(node)
                elif node.op == "call_function":
                    self._operator(node)
            made = self.tensors[self._tensor(end)]
            if place is not None:
                made = self._code(made, place)
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

    def _code(self, source: Tensor, place: Place) -> Tensor:
        """The layers of `Features`, `Transform`, which stays in float, and `EarlyExit`; the symbols.

        Of the exit's last layer nothing is counted: how many classes the photos have is not known yet.
        """
        from offramp.training.split.code import SIDE, exit_width
        from offramp.training.split.transform import blocks_of

        shape, sides = place.code, (source.channels, source.height, source.width)
        if place.layout.kind != "map" or place.layout.map_shape != sides:
            raise _Unknown
        wide, size = shape.width, 2**shape.halvings
        centred = self._table(source, Kind.LOOKUP)
        found = self._table(centred, Kind.LOOKUP)
        for step in range(max(1, shape.halvings)):
            found = self._conv_of(found, wide, 3, 2 if step < shape.halvings else 1)
            body = self._conv_of(self._conv_of(found, wide, 3), wide, 1)
            scale = np.empty(3, np.float32)
            found = self._add(Kind.ADD, replace(found, name=""), (found.name, body.name), scale=scale)
        above, left = (blocks_of(side, shape.halvings)[1] for side in sides[1:])
        more = self._conv_of(found, shape.channels, 1, real=True)
        blocks = self._table(centred, Kind.REAL)
        symbols = self._conv_of(blocks, shape.channels, size, size, (above, left), real=True, addend=more)
        half = 2 if max(symbols.height, symbols.width) > SIDE // 2 else 1
        last = self._conv_of(found, exit_width(wide), 3, half)
        mean = self._add(Kind.MEAN, Tensor("", last.channels, 1, 1), (last.name,))
        self.layers.append(Layer(Kind.LOGITS, "logits", (mean.name,), "logits"))
        return symbols

    def _add(self, kind: Kind, made: Tensor, inputs: tuple[str, ...], **more: Any) -> Tensor:
        """A layer of the code; returns its result."""
        made = replace(made, name=f"code {len(self.layers)}")
        self.tensors[made.name] = made
        self.layers.append(Layer(kind, made.name, inputs, made.name, **more))
        return made

    def _table(self, source: Tensor, kind: Kind) -> Tensor:
        """Each byte to another, or to a float, by a table for each channel."""
        real = kind is Kind.REAL
        values = np.empty((256, source.channels), np.float32 if real else np.int8)
        return self._add(kind, replace(source, real=real), (source.name,), weights=values)

    def _conv_of(
        self,
        source: Tensor,
        channels: int,
        kernel: int,
        stride: int = 1,
        pad: tuple[int, int] | None = None,
        *,
        real: bool = False,
        addend: Tensor | None = None,
    ) -> Tensor:
        """A convolution, which has as many rows as strides begin in its input. real: it computes in float; to
        bytes where there is what its sums begin with."""
        high, wide = -(-source.height // stride), -(-source.width // stride)
        shape = (channels, kernel, kernel, source.channels)
        inputs = (source.name,) if addend is None else (source.name, addend.name)
        return self._add(
            Kind.REAL_CONV if real else Kind.CONV,
            Tensor("", channels, high, wide, real=real and addend is None),
            inputs,
            kernel=(kernel, kernel),
            stride=(stride, stride),
            pad=(kernel // 2, kernel // 2) if pad is None else pad,
            weights=_empty(shape).astype(np.float32) if real else _empty(shape),
            bias=np.empty(channels, np.int32),
            scale=np.empty(channels, np.float32),
            levels=_empty((256, 1)).astype(np.float32) if real and addend is None else np.empty(0),
        )

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
