"""What every node of a captured graph costs, counted by running it with one input that has shapes only."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten


@dataclass(frozen=True)
class NodeCost:
    """Of one node, for one input.

    macs: multiply-accumulates of convolutions, matrix products and attention.
    shapes: of each tensor that it returns.
    scratch: elements that it holds while it runs, beside inputs and outputs: the weights of attention.
    """

    macs: int
    shapes: tuple[tuple[int, ...], ...]
    scratch: int


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Flops of softmax(Q Kᵀ) V from the shapes [..., L, E], [..., S, E] and [..., S, V]."""
    *batch, rows, width = query
    return 2 * math.prod(batch) * rows * key[-2] * (width + value[-1])


COUNTED = {aten._scaled_dot_product_flash_attention_for_cpu: _attention}
"""What FlopCounterMode does not count: the attention of CPUs."""


class _Counter(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.costs: dict[fx.Node, NodeCost] = {}

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
            result = super().run_node(n)
        returned = result if isinstance(result, list | tuple) else [result]
        shapes = tuple(
            tuple(int(side) for side in each.shape) for each in returned if isinstance(each, Tensor)
        )
        self.costs[n] = NodeCost(counter.get_total_flops() // 2, shapes, self._scratch(n))
        return result

    def _scratch(self, n: fx.Node) -> int:
        if n.target is not aten.scaled_dot_product_attention.default:
            return 0
        query, key = (self.env[arg] for arg in n.args[:2] if isinstance(arg, fx.Node))
        return int(math.prod(query.shape[:-1]) * key.shape[-2])


def count(graph: fx.GraphModule, shape: tuple[int, ...]) -> dict[fx.Node, NodeCost]:
    """The cost of each node of a graph that takes float32 [N, *shape], for N = 1."""
    counter = _Counter(graph)
    with warnings.catch_warnings(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        warnings.simplefilter("ignore")
        counter.run(torch.empty(1, *shape))
    return counter.costs
