"""Thresholds of all exits of a chain, chosen together on held-out images.

Every combination of hundredths is counted at once, from sums over the images that fall between two thresholds
of each exit: with one exit or two that is all there is to know. From four exits on the grid is coarser, and
what it finds is moved one exit at a time, in hundredths, until nothing gets better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from offramp.common.errors import ConfigError
from offramp.training.calibrate.chain import Chain
from offramp.training.calibrate.frontier import THRESHOLDS, frontier

CELLS = 1_100_000
"""Combinations that are counted, at most."""
_PASSES = 4
_SLACK = 1e-12
"""For the last bit of a mean."""


@dataclass(frozen=True)
class Goal:
    """What thresholds are chosen for: one of drop and budget.

    drop: fewest bytes at most so much below the best accuracy of any thresholds, a share of 1.
    budget: most accuracy at so many bytes an image, a mean over all images, on each hop.
    costs: what a byte costs on each hop; by them bytes are added up. Empty: 1 each.
    """

    drop: float | None = None
    budget: tuple[float, ...] | None = None
    costs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Chosen:
    """Thresholds of each exit, and what they mean on the images that they were chosen on."""

    thresholds: tuple[float, ...]
    accuracy: float
    bytes_mean: tuple[float, ...]
    """Over all images, of each hop."""


@dataclass(frozen=True)
class _Grid:
    """Counts of every combination, [L, …] with an axis for each exit.

    levels: the thresholds along each axis; right: answers that are right; sent: bytes of each hop.
    """

    levels: tuple[tuple[float, ...], ...]
    right: NDArray[np.int64]
    sent: tuple[NDArray[np.int64], ...]


def choose_thresholds(chain: Chain, payloads: Sequence[NDArray[np.int64]], goal: Goal) -> Chosen:
    """The thresholds for a goal; all at 0 send nothing, so that any budget is met.

    Args:
        chain: of held-out images, with the temperatures and the ``sent_answer`` that it will have.
        payloads: bytes of each image at each crossing, int64 [N].

    Raises ConfigError for a budget or costs that are not one for each hop.
    """
    exits = len(chain.temperatures)
    for name, given in (("budget", goal.budget), ("costs", goal.costs)):
        if given and len(given) != exits:
            raise ConfigError(f"{name}: {len(given)} numbers; expected one for each of {exits} hops")
    fine = _grid(chain, payloads, (_levels(exits),) * exits)
    at, floor = _best(fine, len(chain), goal, None)
    found = tuple(levels[place] for levels, place in zip(fine.levels, at, strict=True))
    if len(fine.levels[0]) < len(THRESHOLDS):
        for _ in range(_PASSES):
            before = found
            for moved in range(exits):
                levels = tuple(
                    THRESHOLDS if exit_ == moved else (value,) for exit_, value in enumerate(found)
                )
                fine = _grid(chain, payloads, levels)
                at, _ = _best(fine, len(chain), goal, floor)
                found = tuple(each[place] for each, place in zip(levels, at, strict=True))
            if found == before:
                break
    count = len(chain)
    return Chosen(found, float(fine.right[at]) / count, tuple(float(each[at]) / count for each in fine.sent))


def with_better_answer(chain: Chain) -> Chain:
    """The same with the ``sent_answer`` that is more often right at its best thresholds; of equals, the last
    exit's. Choose on held-out images."""
    exits = len(chain.temperatures)
    server, both = replace(chain, sent_answer="server"), replace(chain, sent_answer="both")
    best = [int(_grid(each, (), (_levels(exits),) * exits).right.max()) for each in (server, both)]
    return both if best[1] > best[0] else server


def _levels(exits: int) -> tuple[float, ...]:
    count = min(len(THRESHOLDS), max(2, int(CELLS ** (1 / exits))))
    return tuple(THRESHOLDS[round(at)] for at in np.linspace(0, len(THRESHOLDS) - 1, count))


def _grid(
    chain: Chain, payloads: Sequence[NDArray[np.int64]], levels: tuple[tuple[float, ...], ...]
) -> _Grid:
    # An image leaves at an exit for the thresholds before this place: those that its confidence exceeds.
    leaves = [
        np.searchsorted(np.array(each, np.float32), confidence, "left")
        for each, confidence in zip(levels, chain.confidence, strict=True)
    ]
    shape = tuple(map(len, levels))

    def counted(of: NDArray[np.integer], exits: int, *, stop: bool) -> NDArray[np.int64]:
        """Sum over the images that pass so many exits, and with ``stop`` leave at the next."""
        axes = exits + stop
        sides = tuple(side + 1 for side in shape[:axes])
        places = np.ravel_multi_index(leaves[:axes], sides) if axes else np.zeros(len(chain), np.int64)
        found = np.bincount(places, of, math.prod(sides)).astype(np.int64).reshape(sides)
        for axis in range(exits):
            # It passes at thresholds from its place on.
            found = found.cumsum(axis).take(range(shape[axis]), axis)
        if stop:
            found = found.sum(exits, keepdims=True) - found.cumsum(exits).take(range(shape[exits]), exits)
        return found.reshape(found.shape + (1,) * (len(shape) - axes))

    right = np.zeros(shape, np.int64)
    for number, each in enumerate(chain.right):
        right += counted(each.astype(np.int64), number, stop=number < len(shape))
    sent = [counted(each, number + 1, stop=False) for number, each in enumerate(payloads)]
    return _Grid(levels, right, tuple(np.broadcast_to(each, shape) for each in sent))


def _best(grid: _Grid, count: int, goal: Goal, floor: float | None) -> tuple[tuple[int, ...], float | None]:
    """Where in the grid the goal is met best, and the accuracy below which a drop may not lead."""
    weights = goal.costs or (1.0,) * len(grid.sent)
    cost = np.zeros(grid.right.shape)
    for weight, sent in zip(weights, grid.sent, strict=True):
        cost += weight * (sent / count)
    right = grid.right.ravel()
    if goal.budget is not None:
        fits = np.ones(grid.right.shape, np.bool_)
        for most, sent in zip(goal.budget, grid.sent, strict=True):
            fits &= sent / count <= most + _SLACK
        # A single threshold of a pass may pass a budget that the grid's met.
        worth = np.where(fits.ravel(), right, -1)
        return _at(int(np.lexsort((cost.ravel(), -worth))[0]), grid), None
    points = frontier(cost.ravel(), right)
    if floor is None:
        assert goal.drop is not None
        floor = max(0.0, right[points[-1]] / count - goal.drop)
    enough = next((each for each in points if right[each] / count >= floor - _SLACK), points[-1])
    return _at(int(enough), grid), floor


def _at(place: int, grid: _Grid) -> tuple[int, ...]:
    return tuple(int(each) for each in np.unravel_index(place, grid.right.shape))
