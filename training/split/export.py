"""A half as an ONNX graph that a runtime finds simple: fixed sizes, nothing that computes a shape.

Sizes that depend on the batch are -1 already (`capture`); attention is written as products and a softmax
here and a global pool as a mean, because the exporter's own forms read shapes at run time. What is left then
is the copying of a constant, such as a class token, for each input; with a fixed batch that goes, too.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import operator
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import onnx
import torch
from torch import fx
from torch.export import Dim

from offramp.common.errors import ConfigError, printable
from offramp.training.split.capture import MAX_BATCH

OPSET = 20
_FOLDED = 1 << 20
"""Elements of a constant that is computed before the export, at most."""
aten = torch.ops.aten


def to_onnx(
    half: fx.GraphModule,
    shape: tuple[int, ...],
    *,
    batch: int | None = None,
    names: tuple[str, str] = ("input", "output"),
) -> bytes:
    """Serialise a head, a tail or a whole captured graph; batch norm is folded into convolutions.

    Args:
        half: float32 [N, *shape] to one float32 tensor.
        shape: of one input.
        batch: N, where it is fixed; None leaves it free, named ``N``.
        names: of the graph's input and output.

    Raises:
        ConfigError: an operator has no ONNX form, or the package onnxscript is missing.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise ConfigError("exporting to ONNX needs the package 'onnxscript': pip install 'offramp[split]'")
    _list_operators_once()
    plain = _with_constants(_with_plain_operators(half)).eval()
    dynamic = ({0: Dim("N", min=1, max=MAX_BATCH)},) if batch is None else None
    try:
        with warnings.catch_warnings(), _quiet("torch.onnx"), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                plain,
                (torch.zeros(batch or 2, *shape),),
                dynamo=True,
                dynamic_shapes=dynamic,
                opset_version=OPSET,
                input_names=[names[0]],
                output_names=[names[1]],
                verbose=False,
            )
    except Exception as error:  # dozens of classes, without a common root
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(f"cannot be exported to ONNX: {printable(lines[-1] if lines else '?')}") from error
    assert program is not None
    model = _with_own_padding(_without_traces(program.model_proto))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


@cache
def _list_operators_once() -> None:
    """torch.onnx reads the source of all its operators again for each export, a third of its time.

    Where that has another name, an export takes this third longer.
    """
    with suppress(ImportError, AttributeError, KeyError):
        from torch.onnx._internal import _lazy_import

        library: Any = vars(_lazy_import)["onnxscript_apis"]
        library.get_torchlib_ops = cache(library.get_torchlib_ops)


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes, which have stack traces and paths of this machine in them."""
    for item in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.initializer):
        value.ClearField("metadata_props")
    return model


def _with_own_padding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Zeros around a convolution's input become its own padding, which takes no step of its own.

    TensorFlow's "same" padding, with more zeros on one side, comes as an operator before the convolution.
    """
    graph = model.graph
    constants = {each.name: each for each in graph.initializer}
    outputs = {each.name for each in graph.output}
    for pad in [node for node in graph.node if node.op_type == "Pad"]:
        readers = [node for node in graph.node if pad.output[0] in node.input]
        zeros = _zeros_around_map(pad, constants)
        only = all(node.op_type == "Conv" and node.input[0] == pad.output[0] for node in readers)
        if zeros is None or pad.output[0] in outputs or not only:
            continue
        for conv in readers:
            own = next((each for each in conv.attribute if each.name == "pads"), None)
            before = list(own.ints) if own is not None else [0, 0, 0, 0]
            if own is not None:
                conv.attribute.remove(own)
            sums = [a + b for a, b in zip(before, zeros, strict=True)]
            conv.attribute.append(onnx.helper.make_attribute("pads", sums))
            conv.input[0] = pad.input[0]
        graph.node.remove(pad)
    used = {name for node in graph.node for name in node.input}
    for name in set(constants) - used:
        graph.initializer.remove(constants[name])
    return model


def _zeros_around_map(pad: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> list[int] | None:
    """Top, left, bottom and right of a constant padding of [N, C, H, W] with zeros; None for any other."""
    mode = next((each.s for each in pad.attribute if each.name == "mode"), b"constant")
    if (
        mode != b"constant"
        or len(pad.input) > 3
        or any(each not in constants for each in pad.input[1:] if each)
    ):
        return None
    sizes, *value = [onnx.numpy_helper.to_array(constants[each]) for each in pad.input[1:] if each]
    if value and float(value[0]) != 0:
        return None
    found = [int(each) for each in sizes]
    if len(found) != 8 or any(found[at] for at in (0, 1, 4, 5)) or min(found) < 0:
        return None
    return [found[2], found[3], found[6], found[7]]


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without a library's remarks on what else could be installed."""

    def errors_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or not record.name.startswith(name)

    handlers = logging.getLogger("torch").handlers
    for handler in handlers:
        handler.addFilter(errors_only)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(errors_only)


def _with_plain_operators(half: fx.GraphModule) -> fx.GraphModule:
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in half.graph.nodes:
        if node.target is aten.scaled_dot_product_attention.default and _is_plain(node):
            made[node] = _attention(graph, node, made)
        elif node.target is aten.adaptive_avg_pool2d.default and node.args[1] == [1, 1]:
            # Of channels that are last in memory the exporter makes a Gather over computed indices.
            made[node] = graph.call_function(aten.mean.dim, (made[node.args[0]], [-2, -1], True))
            made[node].meta = dict(node.meta)
        elif node.op == "output":
            graph.output(made[node.args[0]])
        else:
            made[node] = graph.node_copy(node, lambda old: made[old])
    graph.lint()
    return fx.GraphModule(half, graph)


def _with_constants(half: fx.GraphModule) -> fx.GraphModule:
    """With what depends on weights alone computed now, such as a bias that is looked up by relative position:
    it would be operators that bundles do not have, and be computed for every input."""
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    values: dict[fx.Node, torch.Tensor] = {}
    kept: dict[str, Any] = {}

    def constant(node: fx.Node) -> fx.Node:
        """The node of a weight, or of a value computed here, made where something else uses it."""
        if node not in made:
            name = str(node.target) if node.op == "get_attr" else f"folded_{node.name}"
            kept[name] = values[node]
            made[node] = graph.get_attr(name)
            made[node].meta = dict(node.meta)
        return made[node]

    for node in half.graph.nodes:
        if node.op == "get_attr":
            values[node] = operator.attrgetter(str(node.target))(half).detach()
        elif node.op == "call_function" and _is_constant(node, values):
            with torch.no_grad():
                values[node] = node.target(
                    *fx.node.map_arg(node.args, values.__getitem__),
                    **fx.node.map_arg(node.kwargs, values.__getitem__),
                ).contiguous()
        elif node.op == "output":
            graph.output(constant(node.args[0]))
        else:
            if node.op == "call_module":
                kept[str(node.target)] = half.get_submodule(str(node.target))
            made[node] = graph.node_copy(node, constant)
    graph.lint()
    return fx.GraphModule(kept, graph)


def _is_constant(node: fx.Node, values: Mapping[fx.Node, torch.Tensor]) -> bool:
    """Whether a node is one tensor, not large, that is computed from weights alone."""
    value = node.meta.get("val")
    return (
        isinstance(value, torch.Tensor)
        and all(isinstance(side, int) for side in value.shape)
        and value.numel() <= _FOLDED
        and bool(node.all_input_nodes)
        and all(each in values for each in node.all_input_nodes)
    )


def _is_plain(node: fx.Node) -> bool:
    """Whether attention has at most a mask that is added: no dropout, not causal, no shared heads."""
    mask = _argument(node, 3, "attn_mask", None)
    added = mask is None or (isinstance(mask, fx.Node) and mask.meta["val"].is_floating_point())
    rest = ((4, "dropout_p", 0.0), (5, "is_causal", False), (7, "enable_gqa", False))
    return added and all(_argument(node, *each) == each[2] for each in rest)


def _argument(node: fx.Node, position: int, name: str, default: object) -> object:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _attention(graph: fx.Graph, node: fx.Node, made: dict[fx.Node, fx.Node]) -> fx.Node:
    query, key, value = (made[each] for each in node.args[:3] if isinstance(each, fx.Node))
    width = query.meta["val"].shape[-1]
    scale = _argument(node, 6, "scale", None) or 1 / math.sqrt(width)
    mask = _argument(node, 3, "attn_mask", None)

    def call(operator: torch._ops.OpOverload, *args: fx.node.Argument) -> fx.Node:
        return graph.call_function(operator, args)

    scaled = call(aten.mul.Scalar, query, scale)  # type: ignore[arg-type]
    weights = call(aten.matmul.default, scaled, call(aten.transpose.int, key, -2, -1))
    if isinstance(mask, fx.Node):
        weights = call(aten.add.Tensor, weights, made[mask])
    mixed = call(aten.matmul.default, call(aten.softmax.int, weights, -1), value)
    mixed.meta = dict(node.meta)
    return mixed
