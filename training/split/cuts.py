"""Where a classifier can be cut: every point of its graph that exactly one tensor crosses.

A network is a graph from one input to one output. A tensor through which every way leads is a cut: the
device computes it, the server needs nothing else. Inside a residual or attention block several tensors
cross, so there is no cut.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import fx

from offramp.common.errors import ConfigError, printable
from offramp.training.split.capture import Captured, batch_of, closure, is_item, is_size, same
from offramp.training.split.macs import NodeCost, count


@dataclass(frozen=True)
class Cost:
    """Of one half, for one input: multiply-accumulates, and parameters (a shared one once)."""

    macs: int
    weights: int


@dataclass(frozen=True)
class Cut:
    """A point that exactly one tensor crosses.

    name: the outermost module that ends there, such as ``layer2.0``; a second run of the same module has
        ``@2`` behind it. Where no module ends: the operator in its module, such as ``blocks.1:add``.
    node: the operator's name in the graph.
    modules: every module that ends there, outermost first.
    shape: of the float32 tensor that crosses, without the batch.
    int8_bytes: its size at one byte an element, not coded.
    head, tail: what each half costs.
    peak_bytes: the most bytes of activations that the device holds at once, at one byte an element: batch
        norm and elementwise operators in place, weights not counted.
    operators: of the head, by PyTorch's names, sorted.
    """

    name: str
    node: str
    modules: tuple[str, ...]
    shape: tuple[int, ...]
    int8_bytes: int
    head: Cost
    tail: Cost
    peak_bytes: int
    operators: tuple[str, ...]


@dataclass(frozen=True)
class Crossed:
    """The end of a module where no cut is.

    tensors: how many cross there; 1 where it is one that cannot be sent alone, because its first axis is not
        the batch or it is not floating point.
    before, after: names of the nearest cuts, None beyond the first or last.
    """

    name: str
    tensors: int
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Cuts:
    """All that is known of where a model can be cut.

    cuts: from input to output.
    crossed: ends of modules at which there is no cut, in the same order.
    whole: what the unsplit model costs.
    """

    cuts: tuple[Cut, ...]
    crossed: tuple[Crossed, ...]
    whole: Cost

    def find(self, name: str) -> Cut:
        """The cut of that name, or where that module ends.

        Raises:
            ConfigError: no such cut: which cuts are before and after it, or which names are similar.
        """
        for cut in self.cuts:
            if name in (cut.name, cut.node):
                return cut
        for cut in self.cuts:
            if name in cut.modules:
                return cut
        asked = printable(name)
        for place in self.crossed:
            if place.name == name:
                raise ConfigError(f"{asked}: {_why(place)}; {_nearest(place.before, place.after)}")
        names = [cut.name for cut in self.cuts]
        close = difflib.get_close_matches(name, names, 4, 0.5) or names[:4]
        raise ConfigError(f"{asked}: no such cut; expected one of {len(names)}, such as {', '.join(close)}")

    def places(self) -> tuple[Cut, ...]:
        """The cuts worth a choice: of those between which nothing is multiplied and no size changes, such as
        before and after an activation function, the last that a module ends at, else the last; none before
        the first multiplication."""
        kept: dict[tuple[int, int], Cut] = {}
        for cut in self.cuts:
            place = cut.head.macs, cut.int8_bytes
            if cut.head.macs and (cut.modules or place not in kept or not kept[place].modules):
                kept[place] = cut
        return tuple(kept.values())


def _why(place: Crossed) -> str:
    if place.tensors == 1:
        return "what crosses where it ends is not one float tensor for each input"
    return f"{place.tensors} tensors cross where it ends, so it is not a cut"


def _nearest(before: str | None, after: str | None) -> str:
    if before is None and after is None:
        return "the model has no cut"
    sides = [f"{name} {side}" for name, side in ((before, "before it"), (after, "after it")) if name]
    return f"the nearest {'cut is' if len(sides) == 1 else 'cuts are'} {' and '.join(sides)}"


def find_cuts(captured: Captured) -> Cuts:
    """Every cut of a captured classifier, with what both halves cost."""
    graph = captured.graph
    costs = count(graph, captured.shape)
    live = _live(graph.graph)
    crossing = _crossing(live)
    ends = _Ends(live)
    batch = batch_of(graph)
    output = next(node for node in graph.graph.nodes if node.op == "output")
    (logits,) = output.all_input_nodes
    points = [
        node
        for node in live
        if node.op != "placeholder"
        and node is not logits
        and len(crossing[node]) == 1
        and _can_be_sent(node, batch)
    ]
    measure = _Measure(graph, costs, live, logits)
    names = _Names()
    cuts = tuple(measure.cut(node, names.give(ends.at(node), node), ends.at(node)) for node in points)
    return Cuts(cuts, _crossed(live, crossing, ends, cuts), measure.cost(closure(logits)))


def _live(graph: fx.Graph) -> list[fx.Node]:
    """The operators through which values flow from input to output, in order; sizes are no values."""
    depends: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or (
            node.op != "output"
            and not is_size(node)
            and any(each in depends for each in node.all_input_nodes)
        ):
            depends.add(node)
    return [node for node in graph.nodes if node in depends]


def _crossing(live: list[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """For each operator the tensors that what comes behind it still needs.

    Items of an operator that returns several count each, the tuple itself does not.
    """
    at = {node: index for index, node in enumerate(live)}
    last = {node: max((at.get(user, len(live)) for user in _users(node)), default=-1) for node in live}
    crossing, open_now = {}, list[fx.Node]()
    for index, node in enumerate(live):
        open_now = [each for each in (*open_now, node) if last[each] > index]
        crossing[node] = open_now
    return crossing


def _users(node: fx.Node) -> Iterable[fx.Node]:
    """What uses a node's values, not only its size."""
    return (user for user in node.users if not is_size(user))


def _can_be_sent(node: fx.Node, batch: torch.SymInt) -> bool:
    value = node.meta.get("val")
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.ndim > 1
        and same(value.shape[0], batch)
        and all(isinstance(side, int) for side in value.shape[1:])
    )


class _Ends:
    """Which modules end at which operator."""

    def __init__(self, live: list[fx.Node]) -> None:
        self.next = dict(zip(live, (*live[1:], None), strict=True))

    def at(self, node: fx.Node) -> tuple[str, ...]:
        after = self.next[node]
        going_on = {call for call, _ in after.meta.get("modules", ())} if after is not None else set()
        return tuple(path for call, path in node.meta.get("modules", ()) if call not in going_on)


class _Names:
    """Gives each cut a name of its own."""

    def __init__(self) -> None:
        self.given: Counter[str] = Counter()

    def give(self, modules: tuple[str, ...], node: fx.Node) -> str:
        around = node.meta.get("modules", ())
        name = modules[0] if modules else ":".join((*(path for _, path in around[-1:]), operator_name(node)))
        self.given[name] += 1
        return name if self.given[name] == 1 else f"{name}@{self.given[name]}"


def _crossed(
    live: list[fx.Node], crossing: dict[fx.Node, list[fx.Node]], ends: _Ends, cuts: tuple[Cut, ...]
) -> tuple[Crossed, ...]:
    by_node = {cut.node: cut.name for cut in cuts}
    reached = {module for cut in cuts for module in cut.modules}
    found: dict[str, Crossed] = {}
    for index, node in enumerate(live[:-1]):
        if node.name in by_node:
            continue
        for module in ends.at(node):
            if module not in reached and module not in found:
                before = next((by_node[each.name] for each in live[index::-1] if each.name in by_node), None)
                after = next((by_node[each.name] for each in live[index:] if each.name in by_node), None)
                found[module] = Crossed(module, len(crossing[node]), before, after)
    return tuple(found.values())


class _Measure:
    """What the halves of a cut cost."""

    def __init__(
        self, graph: fx.GraphModule, costs: dict[fx.Node, NodeCost], live: list[fx.Node], logits: fx.Node
    ) -> None:
        self.graph, self.costs, self.logits = graph, costs, logits
        self.live = set(live)
        self.parameters = dict(graph.named_parameters(remove_duplicate=False))

    def cut(self, node: fx.Node, name: str, modules: tuple[str, ...]) -> Cut:
        head = closure(node)
        tail = closure(self.logits, stop=node) - {node}
        shape = self.costs[node].shapes[0][1:]
        return Cut(
            name,
            node.name,
            modules,
            shape,
            math.prod(shape),
            self.cost(head),
            self.cost(tail),
            self.peak([each for each in self.graph.graph.nodes if each in head and each in self.live], node),
            tuple(sorted({operator_name(each) for each in head if each.op == "call_function"} - {"getitem"})),
        )

    def cost(self, nodes: set[fx.Node]) -> Cost:
        used = {
            self.parameters[str(node.target)]
            for node in nodes
            if node.op == "get_attr" and str(node.target) in self.parameters
        }
        return Cost(sum(self.costs[node].macs for node in nodes), sum(each.numel() for each in used))

    def peak(self, nodes: list[fx.Node], kept: fx.Node) -> int:
        """The most elements that are held at once while these operators run in order."""
        at = {node: index for index, node in enumerate(nodes)}
        owner: dict[fx.Node, fx.Node] = {}
        dies: dict[fx.Node, int] = {}
        for node in nodes:
            first = next((each for each in node.all_input_nodes if each in at), None)
            owner[node] = owner[first] if first is not None and _shares_memory(node) else node
            last = max((at[user] for user in _users(node) if user in at), default=at[node])
            dies[owner[node]] = max(dies.get(owner[node], 0), len(nodes) if node is kept else last)
        held, most = 0, 0
        size = {node: self._size(node) if owner[node] is node else 0 for node in nodes}
        for index, node in enumerate(nodes):
            sources = {owner[each] for each in node.all_input_nodes if each in at}
            ending = sum(size[each] for each in sources if dies[each] == index)
            overwritten = size[node] if _in_place(node) and 0 < size[node] <= ending else 0
            most = max(most, held + size[node] - overwritten + self.costs[node].scratch)
            held += size[node] - ending
            if dies[owner[node]] == index and owner[node] is node:
                held -= size[node]
        return most

    def _size(self, node: fx.Node) -> int:
        shapes = self.costs[node].shapes
        items = {user.args[1] for user in node.users if is_item(user)}
        return sum(math.prod(shape) for at, shape in enumerate(shapes) if not items or at in items)


_VIEWS = {"reshape"}
_MOVES = {"permute", "transpose", "t", "expand"}
"""Views in PyTorch, copies in other runtimes."""
_USUAL = {"_native_batch_norm_legit_no_training": "batch_norm", "max_pool2d_with_indices": "max_pool2d"}
_IN_PLACE = {"batch_norm", "clamp", "hardtanh"}


def _shares_memory(node: fx.Node) -> bool:
    name = operator_name(node)
    if is_item(node) or name in _VIEWS:
        return True
    schema = getattr(node.target, "_schema", None)
    return name not in _MOVES and schema is not None and any(each.alias_info for each in schema.returns)


def _in_place(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or operator_name(node) in _IN_PLACE


def operator_name(node: fx.Node) -> str:
    """``conv2d`` for ``torch.ops.aten.conv2d.default``; what PyTorch splits or renames by its usual name."""
    target: Callable[..., object] | str = node.target
    packet = getattr(target, "overloadpacket", None)
    name = str(getattr(packet if packet is not None else target, "__name__", target))
    return _USUAL.get(name, name)
