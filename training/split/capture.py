"""Any classifier as one dataflow graph: float32 [N, ...] in, float32 logits [N, K] out, N free.

``torch.export`` records the operators that a module runs; the graph is functional (nothing is changed in
place) and uses the module's own parameters, so training either trains both. The module is captured as in
evaluation: dropout is gone and batch norm uses its running statistics.
"""

from __future__ import annotations

import operator
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from offramp.common.errors import ConfigError, printable

MAX_BATCH = 65_536
WRAPPED = "module"
_TOLERANCE = 1e-4
_RESHAPES = {
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.reshape.default,
}


@dataclass(frozen=True)
class Captured:
    """A captured classifier.

    graph: float32 [N, *shape] to float32 logits [N, classes], for every N from 1 on. Each node's
        ``meta["val"]`` has its shape, in which N is a symbol.
    shape: of one input.
    classes: K.
    exact: whether its logits were bit-identical to the module's on random inputs of another batch; else they
        were the same within rounding (a module with a fast path of its own).
    """

    graph: fx.GraphModule
    shape: tuple[int, ...]
    classes: int
    exact: bool


class _Logits(nn.Module):
    """A module whose answer is the logits alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        found = find_logits(self.module(x))
        assert found is not None
        return found


def find_logits(answer: Any) -> Tensor | None:
    """The logits in what a model returns: it, its ``.logits``, ``["logits"]`` or only tensor."""
    if isinstance(answer, Tensor):
        return answer
    found = getattr(answer, "logits", None)
    if found is None and isinstance(answer, dict):
        found = answer.get("logits")
    if found is None and isinstance(answer, list | tuple) and len(answer) == 1:
        (found,) = answer
    return found if isinstance(found, Tensor) else None


def capture(module: nn.Module, shape: tuple[int, ...], *, name: str = "the model") -> Captured:
    """Capture a classifier; the module stays as it is, in training or in evaluation.

    Args:
        module: takes one float32 tensor [N, *shape]; returns float32 logits [N, K], alone or as ``.logits``.
        shape: of one input, such as (3, 224, 224).
        name: of the model, for errors.

    Raises:
        ConfigError: it does not run on such an input, returns something else, or cannot be captured: the
            message says which.
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with warnings.catch_warnings():
            # Of torch's own use of itself, and of the model's.
            warnings.simplefilter("ignore")
            return _capture(module, tuple(shape), name)
    finally:
        for part, training in modes.items():
            part.training = training


def _capture(module: nn.Module, shape: tuple[int, ...], name: str) -> Captured:
    generator = torch.Generator().manual_seed(0)
    # Not 1, which torch takes for a constant.
    example = torch.randn(2, *shape, generator=generator)
    with torch.no_grad():
        try:
            answer = module(example)
        except Exception as error:  # the module is the user's, and may raise anything
            raise ConfigError(
                f"{name}: does not run on float32 {[*example.shape]}: {_first_line(error)}"
            ) from error
        logits = find_logits(answer)
        if logits is None:
            raise ConfigError(f"{name}: returns {type(answer).__name__}; expected logits [N, K] or .logits")
        if logits.ndim != 2 or logits.shape[0] != 2 or not logits.is_floating_point():
            found = f"{str(logits.dtype).removeprefix('torch.')} {[*logits.shape]}"
            raise ConfigError(f"{name}: returns {found} for two inputs; expected logits [2, K]")
        whole = module if isinstance(answer, Tensor) else _Logits(module).eval()
        try:
            program = torch.export.export(
                whole, (example,), dynamic_shapes=({0: Dim("N", min=1, max=MAX_BATCH)},)
            ).run_decompositions({})
        except Exception as error:  # dozens of classes, without a common root
            raise ConfigError(f"{name}: torch.export cannot capture it: {_reason(error)}") from error
        graph = _plain(program.module(check_guards=False), wrapped=whole is not module)
        other = torch.randn(3, *shape, generator=generator)
        ours, theirs = graph(other), find_logits(module(other))
    assert theirs is not None
    exact = torch.equal(ours, theirs)
    if not exact and not torch.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE):
        off = float((ours - theirs).abs().max())
        raise ConfigError(
            f"{name}: its captured graph answers differently, by up to {off:.3g}: does it use random numbers?"
        )
    return Captured(graph, shape, int(logits.shape[1]), exact)


def _reason(error: Exception) -> str:
    """What to tell of an error of torch.export, whose own text has up to hundreds of lines."""
    text = f"{type(error).__name__} {error}"
    if "Constraints violated" in text or "specializ" in text:
        return "its code fixes the batch size; it has to run for any number of inputs"
    if "data-dependent" in text or "GuardOnDataDependent" in text:
        return "its path depends on the values of its input (an `if` on a tensor, or .item())"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[0] if lines else type(error).__name__)


def _plain(exported: nn.Module, *, wrapped: bool) -> fx.GraphModule:
    """The graph as a function of one tensor: without checks, copies for nothing, and fixed sizes computed."""
    assert isinstance(exported, fx.GraphModule)
    (output,) = [node for node in exported.graph.nodes if node.op == "output"]
    (logits,) = output.all_input_nodes
    needed = closure(logits)
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in exported.graph.nodes:
        if node not in needed:
            continue
        if node.target is torch.ops.aten.clone.default and not node.kwargs:
            # What dropout leaves.
            made[node] = made[node.args[0]]
            continue
        made[node] = graph.node_copy(node, lambda old: made[old])
        made[node].meta["modules"] = _modules(node, wrapped)
        _leave_open(made[node])
    graph.output(made[logits])
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule(exported, graph).eval()


def closure(node: fx.Node, stop: fx.Node | None = None) -> set[fx.Node]:
    """The node and all that it is computed from; what ``stop`` is computed from only by another way."""
    found, stack = {node}, [node]
    while stack:
        for source in stack.pop().all_input_nodes:
            if source not in found and source is not stop:
                found.add(source)
                stack.append(source)
    return found


def _modules(node: fx.Node, wrapped: bool) -> tuple[tuple[str, str], ...]:
    """(call, path) of the modules that ran the node, outermost first, without the root.

    The call tells two runs of one module apart, the path does not.
    """
    found = []
    for call, entry in (node.meta.get("nn_module_stack") or {}).items():
        path = entry[0] if isinstance(entry, tuple) else ""
        if wrapped:
            path = "" if path == WRAPPED else path.removeprefix(f"{WRAPPED}.")
        if path and "_empty_nn_module_stack" not in path:
            found.append((str(call), str(path)))
    return tuple(found)


def _leave_open(node: fx.Node) -> None:
    """Write -1 for the only size that depends on the batch, so that no runtime has to compute it."""
    if node.target in _RESHAPES:
        # A view refuses tensors whose channels are last in memory, which a caller may pass.
        node.target = torch.ops.aten.reshape.default
        sizes = node.args[1]
        assert isinstance(sizes, list | tuple)
        if sum(isinstance(size, fx.Node) for size in sizes) == 1 and -1 not in sizes:
            node.args = (node.args[0], [-1 if isinstance(size, fx.Node) else size for size in sizes])
    elif node.target is torch.ops.aten.expand.default:
        source, sizes = node.args[0], node.args[1]
        assert isinstance(source, fx.Node) and isinstance(sizes, list | tuple)
        had, gets = source.meta["val"].shape, node.meta["val"].shape
        ahead = len(gets) - len(had)
        node.args = (
            source,
            [
                -1 if isinstance(size, fx.Node) and at >= ahead and same(had[at - ahead], gets[at]) else size
                for at, size in enumerate(sizes)
            ],
        )


def same(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    """Whether two sizes are the same expression; asking torch would record a guard."""
    return str(a) == str(b)


def multiple(size: int | torch.SymInt, batch: torch.SymInt) -> int | None:
    """k where a size is k times the batch, else None."""
    if isinstance(size, int):
        return None
    ratio = size.node.expr / batch.node.expr
    return int(ratio) if ratio.is_Integer else None


def batch_of(graph: fx.GraphModule) -> torch.SymInt:
    """The symbol N of a captured graph."""
    placeholder = next(node for node in graph.graph.nodes if node.op == "placeholder")
    size = placeholder.meta["val"].shape[0]
    assert isinstance(size, torch.SymInt)
    return size


def is_size(node: fx.Node) -> bool:
    """Whether a node is a size, not a tensor."""
    return isinstance(node.meta.get("val"), torch.SymInt | int)


def is_item(node: fx.Node) -> bool:
    """Whether a node takes one tensor of several that an operator returns."""
    return node.target is operator.getitem
