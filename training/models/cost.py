"""What each side of a split holds and computes, in the units of Table II."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offramp.training.models.split_model import SplitModel


@dataclass(frozen=True)
class Cost:
    """Table II's units: weights without biases or batch norm, and multiply-accumulates for one image."""

    weights: int = 0
    macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.weights + other.weights, self.macs + other.macs)


@dataclass(frozen=True)
class Partition:
    """Table II for one split: ``device`` includes ``branch``, the early exit."""

    device: Cost
    branch: Cost
    server: Cost


def partition(model: SplitModel) -> Partition:
    """Count convolution and linear weights and their MACs on each side of the split (Table II)."""
    costs = {"device": Cost(), "branch": Cost(), "server": Cost()}
    sides: dict[nn.Module, str] = dict.fromkeys(model.branch.modules(), "branch")
    for position, block in enumerate(model.blocks()):
        sides.update(dict.fromkeys(block.modules(), "device" if position < model.cut else "server"))

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        # Each output element of one channel takes one MAC per weight of that channel's filter.
        macs = output[0].numel() * weight[0].numel()
        side = sides.get(module, "server")
        costs[side] += Cost(weight.numel(), macs)

    handles = [
        m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, *model.backbone.input_shape))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return Partition(costs["device"] + costs["branch"], costs["branch"], costs["server"])
