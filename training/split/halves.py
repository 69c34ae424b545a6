"""The parts of a captured classifier at one cut or several: the same operators, parameters and bits.

head     float32 [N, *input]       -> float32 [N, *activation]
between  float32 [N, *activation]  -> float32 [N, *activation of the next cut]
tail     float32 [N, *activation]  -> float32 [N, K]
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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
    """Head and tail at a cut of the same captured classifier. Raises ConfigError as `divide` does."""
    return Halves(*divide(captured, (cut,)))


def divide(captured: Captured, cuts: Sequence[Cut]) -> tuple[fx.GraphModule, ...]:
    """The parts between cuts, which are in the order of the graph: one more than there are cuts.

    One after the other they are bit for bit what the whole graph computes, as `Halves` are.

    Raises:
        ConfigError: a cut is of another model, lies before the one that is named before it, or a part needs
            a size that what crosses does not have.
    """
    nodes = list(captured.graph.graph.nodes)
    at = {node.name: number for number, node in enumerate(nodes)}
    for cut in cuts:
        if cut.node not in at or tuple(nodes[at[cut.node]].meta["val"].shape[1:]) != cut.shape:
            raise ConfigError(f"{cut.name}: not a cut of this model; expected one that find_cuts gave for it")
    for first, second in pairwise(cuts):
        if at[first.node] >= at[second.node]:
            raise ConfigError(
                f"{first.name}, {second.name}: the second is not behind the first; expected cuts from input "
                "to output"
            )
    (logits,) = nodes[-1].all_input_nodes
    goals = [*(nodes[at[cut.node]] for cut in cuts), logits]
    rest = [
        _behind(captured, goal, following, cut.name)
        for goal, following, cut in zip(goals, goals[1:], cuts, strict=False)
    ]
    return _head(captured, goals[0]), *rest


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


def _behind(captured: Captured, cut: fx.Node, goal: fx.Node, name: str) -> fx.GraphModule:
    """From a cut, called ``name`` in errors, to what another one or the logits are."""
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    made[cut] = graph.placeholder("activation")
    made[cut].meta = {"val": cut.meta["val"]}
    _add_sizes(captured, graph, made, closure(goal, stop=cut), made[cut])
    # Without what only computed sizes.
    needed = _needed(goal, made)
    for node in captured.graph.graph.nodes:
        if node in needed:
            if node.op == "placeholder":
                raise ConfigError(f"{name}: what is behind it needs the input itself, so it is not a cut")
            made[node] = graph.node_copy(node, lambda old: made[old])
    graph.output(made[goal])
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


def _needed(goal: fx.Node, made: dict[fx.Node, fx.Node]) -> set[fx.Node]:
    found, stack = set[fx.Node](), [goal]
    while stack:
        node = stack.pop()
        if node not in found and node not in made:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found
