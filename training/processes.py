"""The processes that train together, each on its own share of every batch; one, where nothing launched more.

A batch of N images is dealt out: of P processes the r-th has images r, r + P, r + 2P … What depends on the
whole batch (batch norm, the entropy's histogram, noise) is made of all shares, so that the numbers are those
of one process, to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def count() -> int:
    """How many there are."""
    return distributed.get_world_size() if _several() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return distributed.get_rank() if _several() else 0


def own(batch: Tensor) -> Tensor:
    """This process's share of a tensor whose first axis counts the images of a whole batch."""
    return batch[rank() :: count()] if _several() else batch


def summed(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, the same in each; without a gradient."""
    if _several():
        values = values.clone()
        distributed.all_reduce(values)
    return values


def uniform_like(share: Tensor) -> Tensor:
    """Random numbers, 0 … 1, in the shape of a share: those that one process would draw for its images."""
    if not _several():
        return torch.rand_like(share)
    return own(torch.rand_like(torch.cat([share] * count())))


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
