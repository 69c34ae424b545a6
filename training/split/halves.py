"""The two halves of a captured classifier at a cut: the same operators, the same parameters, the same bits.

head   float32 [N, *input]       -> float32 [N, *activation]
tail   float32 [N, *activation]  -> float32 [N, K]
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from offramp.common.errors import ConfigError
from offramp.training.split.capture import Captured, batch_of, closure, is_size, multiple
from offramp.training.split.cuts import Cut


@dataclass(frozen=True)
class Halves:
    """``tail(head(x))`` is bit for bit what the whole graph computes, for any number of inputs.

    Parameters and buffers are the original module's own objects: what trains a half trains the module, and
    one that only one half uses is only there. Both are for evaluation: batch norm uses its statistics.
    """

    head: fx.GraphModule
    tail: fx.GraphModule


def split(captured: Captured, cut: Cut) -> Halves:
    """Head and tail at a cut of the same captured classifier.

    Raises:
        ConfigError: the cut is of another model, or the tail needs a size that what crosses does not have.
    """
    graph = captured.graph.graph
    node = next((each for each in graph.nodes if each.name == cut.node), None)
    if node is None or tuple(node.meta["val"].shape[1:]) != cut.shape:
        raise ConfigError(f"{cut.name}: not a cut of this model; expected one that find_cuts gave for it")
    return Halves(_head(captured, node), _tail(captured, node, cut.name))


def _head(captured: Captured, cut: fx.Node) -> fx.GraphModule:
    needed = closure(cut)
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in captured.graph.graph.nodes:
        # The input is there even where nothing of it is used.
        if node in needed or node.op == "placeholder":
            made[node] = graph.node_copy(node, lambda old: made[old])
    graph.output(made[cut])
    graph.lint()
    return fx.GraphModule(captured.graph, graph).eval()


def _tail(captured: Captured, cut: fx.Node, name: str) -> fx.GraphModule:
    output = next(node for node in captured.graph.graph.nodes if node.op == "output")
    (logits,) = output.all_input_nodes
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    made[cut] = graph.placeholder("activation")
    made[cut].meta = {"val": cut.meta["val"]}
    _add_sizes(captured, graph, made, closure(logits, stop=cut), made[cut])
    # Without what only computed sizes.
    needed = _needed(logits, made)
    for node in captured.graph.graph.nodes:
        if node in needed:
            if node.op == "placeholder":
                raise ConfigError(f"{name}: the tail needs the input itself, so it is not a cut")
            made[node] = graph.node_copy(node, lambda old: made[old])
    graph.output(made[logits])
    graph.lint()
    return fx.GraphModule(captured.graph, graph).eval()


def _add_sizes(
    captured: Captured,
    graph: fx.Graph,
    made: dict[fx.Node, fx.Node],
    nodes: set[fx.Node],
    activation: fx.Node,
) -> None:
    """Sizes that depend on the batch, read from the tensor that crosses."""
    batch = batch_of(captured.graph)
    used = [node for node in captured.graph.graph.nodes if node in nodes and is_size(node)]
    wanted = {node: multiple(node.meta["val"], batch) for node in used}
    if not any(factor for factor in wanted.values()):
        return
    size = graph.call_function(torch.ops.aten.sym_size.int, (activation, 0))
    size.meta = {"val": batch}
    for node, factor in wanted.items():
        if factor == 1:
            made[node] = size
        elif factor is not None:
            made[node] = graph.call_function(operator.mul, (size, factor))
            made[node].meta = dict(node.meta)


def _needed(logits: fx.Node, made: dict[fx.Node, fx.Node]) -> set[fx.Node]:
    found, stack = set[fx.Node](), [logits]
    while stack:
        node = stack.pop()
        if node not in found and node not in made:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found
