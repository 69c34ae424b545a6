"""The parts of a fitted split as float ONNX graphs, before they are quantized.

    head     image uint8 [N, 3, H, W] or tensor uint8 [N, …]
                                        -> code float32 [N, c, h, w], logits float32 [N, K]
    between  code float32 [N, c, h, w]  -> next_code float32 [N, c, h, w], logits float32 [N, K]
    tail     code float32 [N, c, h, w]  -> logits float32 [N, K]

A code's values are not yet rounded where a graph makes them, and whole numbers where it takes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper
from torch import fx, nn

from offramp.training.split.code import ZERO_POINT, Code
from offramp.training.split.export import to_onnx
from offramp.training.split.photos import Normalise
from offramp.training.split.whole import WholeCode

IMAGE, TENSOR, CODE, SYMBOLS, LOGITS = "image", "tensor", "code", "symbols", "logits"
NEXT_CODE, NEXT_SYMBOLS = "next_code", "next_symbols"
"""What a part sends that takes symbols itself: a graph's input and output cannot have one name."""
NORMALISE = ("normalise_cast", "normalise_scale", "normalise_shift")
"""The nodes that make numbers of pixels, by name."""
LAST = "to_symbols"
"""Prefix of the nodes that make the code, which stay in float: rounding comes right behind them."""


def float_graphs(
    modules: Sequence[fx.GraphModule],
    codes: Sequence[Code | WholeCode],
    normalise: Normalise,
    shape: tuple[int, ...],
    source: str = IMAGE,
) -> tuple[onnx.ModelProto, ...]:
    """The parts in their order; the first one's input is called ``source``.

    Args:
        modules: of `halves.divide`, one more than codes.
        codes: one at each cut.
        normalise: what the first part expects of its bytes.
        shape: of one input.

    Raises ConfigError for what has no ONNX form.
    """
    head = _part(in_allowed_operators(modules[0]), shape, "head", "pixels", "activation")
    found = [_with_pixels(_with_encoder(head, codes[0], CODE), normalise, source)]
    for module, before, after in zip(modules[1:], codes, (*codes[1:], None), strict=True):
        decoder = _part(_traced(before.decoder), before.symbols_shape, "decoder", CODE, "activation")
        name, result = ("tail", LOGITS) if after is None else ("body", "activation")
        own = _part(in_allowed_operators(module), before.layout.shape, name, "in", result)
        if after is not None:
            # Two graphs that are joined may not share a name.
            _rename(decoder, {"activation": "decoded"})
        joined = _joined(decoder, own, {_outputs(decoder)[0]: "in"})
        found.append(joined if after is None else _with_encoder(joined, after, NEXT_CODE))
    return tuple(found)


def _with_encoder(part: onnx.ModelProto, code: Code | WholeCode, name: str) -> onnx.ModelProto:
    """A graph whose output is an activation, with code and early exit in its place; name: of the code."""
    activation = code.layout.shape
    hidden = _shape_of(code.features, activation)
    part = _then(part, _traced(code.features), activation, "features", "activation", "hidden")
    part = _then(part, _traced(code.exit), hidden, "exit", "hidden", LOGITS)
    linear = name if code.correction is None else "coefficients"
    part = _then(part, _traced(code.transform), activation, f"{LAST}_transform", "activation", linear)
    if code.correction is not None:
        part = _then(part, _traced(code.correction), hidden, f"{LAST}_correction", "hidden", "correction")
        part.graph.node.append(helper.make_node("Add", [linear, "correction"], [name], name=f"{LAST}_add"))
        sides: list[str | int | None] = ["N", *code.symbols_shape]
        part.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sides))
    return _keep_outputs(part, [name, LOGITS])


def _then(
    model: onnx.ModelProto, graph: fx.GraphModule, shape: tuple[int, ...], name: str, source: str, result: str
) -> onnx.ModelProto:
    """A graph with a part behind ``source``, one of its outputs, all of which stay outputs."""
    part = _part(graph, shape, name, f"{name}_in", result)
    return _joined(model, part, {source: f"{name}_in"}, keep=_outputs(model))


def whole_graph(graph: fx.GraphModule, normalise: Normalise, shape: tuple[int, ...]) -> onnx.ModelProto:
    """An unsplit classifier, image to logits. Raises ConfigError for an operator that has no ONNX form."""
    whole = _part(in_allowed_operators(graph), shape, "whole", "pixels", LOGITS)
    return _with_pixels(whole, normalise, IMAGE)


def _traced(module: nn.Module) -> fx.GraphModule:
    return fx.symbolic_trace(module.eval())


def _shape_of(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    with torch.inference_mode():
        return tuple(module(torch.zeros(1, *shape)).shape[1:])


def _part(
    graph: fx.GraphModule, shape: tuple[int, ...], name: str, source: str, result: str
) -> onnx.ModelProto:
    """One part as ONNX, every name inside it with the part's before it."""
    model = onnx.load_from_string(to_onnx(graph, shape, names=("x", "y")))
    model = compose.add_prefix(model, f"{name}/")
    for each in (*model.graph.input, *model.graph.output):
        for side in (*each.type.tensor_type.shape.dim[:1],):
            side.Clear()
            side.dim_param = "N"
    _rename(model, {f"{name}/x": source, f"{name}/y": result})
    del model.graph.value_info[:]
    return model


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    for each in (*model.graph.input, *model.graph.output):
        each.name = names.get(each.name, each.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _outputs(model: onnx.ModelProto) -> tuple[str, ...]:
    return tuple(each.name for each in model.graph.output)


def _joined(
    first: onnx.ModelProto, second: onnx.ModelProto, links: dict[str, str], keep: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """Two graphs one after the other; ``keep``: outputs of the first that stay outputs."""
    outputs = list(dict.fromkeys((*keep, *_outputs(second)))) if keep else None
    joined = compose.merge_models(first, second, io_map=list(links.items()), outputs=outputs)
    # One entry for each set of operators.
    versions = {each.domain: each.version for each in joined.opset_import}
    del joined.opset_import[:]
    joined.opset_import.extend(helper.make_opsetid(*each) for each in versions.items())
    return joined


def _keep_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    kept = {each.name: each for each in model.graph.output}
    del model.graph.output[:]
    model.graph.output.extend(kept[name] for name in names)
    return model


def _with_pixels(model: onnx.ModelProto, normalise: Normalise, name: str = IMAGE) -> onnx.ModelProto:
    """With bytes 0 … 255 for its input, called ``name``, and the normalisation inside.

    Where all channels have one mean, a whole number of levels, and one deviation, bytes are the integers that
    the first convolution takes: nothing is computed or rounded.
    """
    graph = model.graph
    (old,) = graph.input
    sides = [side.dim_value for side in old.type.tensor_type.shape.dim[1:]]
    ones = [1] * (len(sides) - 1)
    levels = 255 * normalise.mean[0]
    cast_name, scale_name, shift_name = NORMALISE
    constants: dict[str, NDArray[np.generic]]
    if len({*normalise.mean}) == len({*normalise.std}) == 1 and abs(levels - round(levels)) < 1e-3:
        step, zero = np.array(1 / (255 * normalise.std[0]), np.float32), np.array(round(levels), np.uint8)
        constants = {"pixel_scale": step, "pixel_zero": zero}
        nodes = [helper.make_node("DequantizeLinear", [name, *constants], ["pixels"], name=cast_name)]
    else:
        scale = np.array([1 / (255 * each) for each in normalise.std], np.float32).reshape(1, -1, *ones)
        shift = np.array(
            [-mean / std for mean, std in zip(normalise.mean, normalise.std, strict=True)], np.float32
        ).reshape(1, -1, *ones)
        constants = {"pixel_scale": scale, "pixel_shift": shift}
        nodes = [
            helper.make_node("Cast", [name], ["levels"], name=cast_name, to=TensorProto.FLOAT),
            helper.make_node("Mul", ["levels", "pixel_scale"], ["scaled"], name=scale_name),
            helper.make_node("Add", ["scaled", "pixel_shift"], ["pixels"], name=shift_name),
        ]
    new = helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", *sides])
    rest = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *rest])
    graph.input.append(new)
    graph.initializer.extend(numpy_helper.from_array(value, each) for each, value in constants.items())
    return model


def with_symbols(part: onnx.ModelProto) -> onnx.ModelProto:
    """A part whose code is rounded to uint8 symbols."""
    return _with_code(part, "QuantizeLinear", inside=False)


def from_symbols(part: onnx.ModelProto) -> onnx.ModelProto:
    """A part that takes uint8 symbols."""
    return _with_code(part, "DequantizeLinear", inside=True)


def in_symbols(parts: Sequence[onnx.ModelProto]) -> tuple[bytes, ...]:
    """All parts of a chain, serialised, with symbols where they take and make codes."""
    last = len(parts) - 1
    taking = [parts[0], *map(from_symbols, parts[1:])]
    made = [each if number == last else with_symbols(each) for number, each in enumerate(taking)]
    return tuple(each.SerializeToString(deterministic=True) for each in made)


def _with_code(model: onnx.ModelProto, operator: str, *, inside: bool) -> onnx.ModelProto:
    """Symbols in the place of the code, at the graph's input (``inside``) or output."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    ports = graph.input if inside else graph.output
    found = next(each for each in ports if each.name in (CODE, NEXT_CODE))
    code, symbols = found.name, SYMBOLS if found.name == CODE else NEXT_SYMBOLS
    source, result = (symbols, code) if inside else (code, symbols)
    node = helper.make_node(
        operator, [source, "symbol_scale", "symbol_zero"], [result], name=f"{SYMBOLS}_{operator}"
    )
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([node, *rest] if inside else [*rest, node])
    found.name = symbols
    found.type.tensor_type.elem_type = TensorProto.UINT8
    constants: dict[str, NDArray[np.generic]] = {
        "symbol_scale": np.array(1, np.float32),
        "symbol_zero": np.array(ZERO_POINT, np.uint8),
    }
    # A part between two others takes symbols and makes them.
    known = {each.name for each in graph.initializer}
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items() if name not in known
    )
    return changed


def in_allowed_operators(half: fx.GraphModule) -> fx.GraphModule:
    """The same by operators that bundles allow: a constant that is copied for each input, as a class token,
    is added to zeros, since how often it is copied would be a value inside the graph; one index is a slice.
    """
    aten = torch.ops.aten
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    source: fx.Node | None = None
    for node in half.graph.nodes:
        if node.op == "placeholder":
            source = node
        if node.target is aten.expand.default and _is_constant(node, half) and source is not None:
            constant = node.args[0]
            assert isinstance(constant, fx.Node)
            rank = len(source.meta["val"].shape)
            mean = graph.call_function(aten.mean.dim, (made[source], list(range(1, rank)), True))
            zeros = graph.call_function(aten.mul.Tensor, (mean, 0.0))
            wanted = constant.meta["val"].ndim
            flat = graph.call_function(aten.reshape.default, (zeros, [-1, *[1] * (wanted - 1)]))
            made[node] = graph.call_function(aten.add.Tensor, (made[constant], flat))
            made[node].meta = dict(node.meta)
        elif node.target is aten.select.int and isinstance(node.args[2], int) and node.args[2] >= 0:
            dim, at = node.args[1], node.args[2]
            one = graph.call_function(aten.slice.Tensor, (made[node.args[0]], dim, at, at + 1))
            made[node] = graph.call_function(aten.squeeze.dim, (one, dim))
            made[node].meta = dict(node.meta)
        elif node.op == "output":
            graph.output(made[node.args[0]])
        else:
            made[node] = graph.node_copy(node, lambda old: made[old])
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule(half, graph)


def _is_constant(node: fx.Node, half: fx.GraphModule) -> bool:
    """Whether a copied tensor is a parameter whose first side is 1 and whose others stay."""
    constant = node.args[0]
    if not isinstance(constant, fx.Node) or constant.op != "get_attr":
        return False
    had, gets = constant.meta["val"].shape, node.meta["val"].shape
    return (
        len(had) == len(gets)
        and had[0] == 1
        and all(str(a) == str(b) for a, b in zip(had[1:], gets[1:], strict=True))
    )
