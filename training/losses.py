"""The paper's losses: cross-entropies over the exits, and what makes the split activation cheap to send.

Everything is differentiable, runs in the dtype of its input and costs O(N_a) time and memory in the number of
activation samples N_a, whatever the number of bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from offramp.common.errors import ConfigError
from offramp.training import processes

# Keeps log2 finite at an empty bin; h_j log2 h_j is already 0 to every digit there.
_EMPTY = 1e-12


def objective(logits: Sequence[Tensor], labels: Tensor, rho: Sequence[float] | None = None) -> Tensor:
    """Eq. (1): the sum over the exits of rho_i times the mean cross-entropy, a scalar.

    Args:
        logits: one [N, K] per exit, early exits first.
        labels: int64 [N].
        rho: one weight per exit; None gives each of the N_e exits 1 / N_e.

    Raises:
        ConfigError: if there is not one weight per exit.
    """
    weights = [1 / len(logits)] * len(logits) if rho is None else list(rho)
    if len(weights) != len(logits):
        raise ConfigError(f"{len(logits)} exits need {len(logits)} weights rho, got {len(weights)}")
    total = torch.zeros((), dtype=logits[0].dtype, device=logits[0].device)
    for weight, exit_logits in zip(weights, logits, strict=True):
        total = total + weight * functional.cross_entropy(exit_logits, labels)
    return total


class _SoftHistogram(torch.autograd.Function):
    """Two bincounts forward and one gather backward, instead of an N_a x N_b matrix of weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bins: int, shared: bool) -> Tensor:
        position = x.flatten() * (bins - 1)
        # The last node belongs to the last interval. Outside [0, 1], and NaN, go to a cell that is cut off.
        cell = position.floor().clamp_(max=bins - 2)
        cell.masked_fill_(~((position >= 0) & (position <= bins - 1)), bins - 1)
        index = cell.long()
        right = torch.bincount(index, weights=position - cell, minlength=bins)[: bins - 1].double()
        count = torch.bincount(index, minlength=bins)[: bins - 1]
        histogram = torch.zeros(bins, dtype=torch.float64, device=x.device)
        histogram[:-1] += count - right
        histogram[1:] += right
        inside = count.sum()
        if shared:
            histogram, inside = processes.summed(histogram), processes.summed(inside)
        inside = inside.clamp_min(1)
        ctx.save_for_backward(index.to(torch.int32), inside)
        ctx.bins, ctx.shape = bins, x.shape
        # Each process's loss is the same one, of all samples; their gradients are averaged.
        ctx.processes = processes.count() if shared else 1
        return (histogram / inside).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        index, inside = ctx.saved_tensors
        (grad,) = grads
        # Moving x right by one step moves 1 / N_a from its left node to its right one; outliers move nothing.
        slope = torch.cat([grad.diff(), grad.new_zeros(1)]) * ((ctx.bins - 1) * ctx.processes / inside)
        return slope.index_select(0, index).view(ctx.shape), None, None


def soft_histogram(x: Tensor, bins: int, *, shared: bool = False) -> Tensor:
    """Eq. (4) and (5): the triangular histogram of the samples of ``x`` that lie in [0, 1].

    The nodes t_1 = 0, ..., t_Nb = 1 fill the range evenly, so their spacing is 1 / (N_b - 1). The paper
    prints 1 / N_b, with which its own nodes would end short of 1 and the weights of one sample not sum to 1;
    this is the spacing that agrees with the nodes.

    Args:
        x: floating point, any shape; samples outside [0, 1] are not counted in N_a and get no gradient.
        bins: N_b, at least 2.
        shared: count the samples of all processes that train; each has to call it.

    Returns:
        [bins], same dtype, sum 1 (0 if no sample lies in [0, 1]).
    """
    if bins < 2:
        raise ConfigError(f"a histogram needs at least 2 bins, got {bins}")
    histogram: Tensor = _SoftHistogram.apply(x, bins, shared)  # type: ignore[no-untyped-call]
    return histogram


def entropy_bits(histogram: Tensor) -> Tensor:
    """The bracket of Eq. (3): entropy of a histogram [N_b] that sums to 1, in bits per sample, a scalar."""
    return -(histogram * histogram.clamp_min(_EMPTY).log2()).sum()


class EntropyLoss(nn.Module):
    """Eq. (3): lambda_e times the entropy of the activations at the split, relative to its maximum log2 N_b.

    Samples outside mu +- 3 sigma are left out and that interval is mapped onto [0, 1]. mu and sigma are
    running values over the training batches: the first batch sets them, later ones move them by ``momentum``.
    They are buffers, carry no gradient and stay as they are in eval mode.

    Args:
        weight: lambda_e.
        bins: N_b.
        momentum: share of the newest batch in mu and sigma.
        shared: a batch is that of all processes that train, each of which has an equal share.
    """

    mean: Tensor
    std: Tensor
    batches: Tensor

    def __init__(
        self, weight: float, *, bins: int = 256, momentum: float = 0.1, shared: bool = False
    ) -> None:
        super().__init__()
        self.weight, self.bins, self.momentum, self.shared = weight, bins, momentum, shared
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def bits(self, activation: Tensor) -> Tensor:
        """Entropy in bits per activation sample under the running mu and sigma, a scalar with a gradient."""
        if self.training:
            self._follow(activation.detach())
        low = (self.mean - 3 * self.std).to(activation.dtype)
        width = (6 * self.std).to(activation.dtype).clamp_min(1e-12)
        scaled = (activation - low) / width
        return entropy_bits(soft_histogram(scaled, self.bins, shared=self.shared))

    def forward(self, activation: Tensor) -> Tensor:
        """float activation [N, C, H, W] to the loss, a scalar."""
        return self.relative(self.bits(activation))

    def relative(self, bits: Tensor) -> Tensor:
        """The loss of an entropy in bits, a scalar."""
        return bits * (self.weight / math.log2(self.bins))

    def _follow(self, activation: Tensor) -> None:
        std, mean = torch.std_mean(activation.float())
        if self.shared and processes.count() > 1:
            std, mean = _of_all(std, mean, activation.numel())
        # Not an `if`: on a GPU it would wait for the whole forward pass.
        step = torch.where(self.batches == 0, 1.0, self.momentum).to(mean.dtype)
        self.mean.lerp_(mean, step)
        self.std.lerp_(std, step)
        self.batches += 1


def _of_all(std: Tensor, mean: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Deviation and mean of the samples of all processes, from those of as many samples in each."""
    own, many = torch.stack([std, mean]).double(), processes.count()
    (everywhere,) = (processes.summed(own[1:]) / many).unbind()
    spread = (samples - 1) * own[0] ** 2 + samples * (own[1] - everywhere) ** 2
    total = (processes.summed(spread) / (many * samples - 1)).sqrt()
    return total.to(std.dtype), everywhere.to(mean.dtype)


def sparsity_loss(activation: Tensor, weight: float) -> Tensor:
    """Eq. (6): lambda_s times the mean absolute activation, a scalar."""
    return weight * activation.abs().mean()
