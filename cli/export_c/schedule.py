"""In which order rows are computed, and how many rows of each tensor have to be kept.

No tensor is ever whole, but the symbols and what the logits are made of: a convolution needs as many rows of
its input as its kernel is high, so each tensor is a ring of a few rows. Every row is computed once. Of the
layers that can make a row, the one nearest to the end does: what it has used can then be overwritten soonest.
"""

from __future__ import annotations

from dataclasses import dataclass

from offramp.cli.export_c.network import WHOLE, Kind, Layer, Network


@dataclass(frozen=True)
class Schedule:
    """steps: the layer of each step, which makes its next row. rows: of each tensor's ring. life: the
    first and the last step in which a tensor is needed; ``len(steps)``: after all of them."""

    steps: tuple[int, ...]
    rows: dict[str, int]
    life: dict[str, tuple[int, int]]


def needed(network: Network, layer: Layer, row: int, name: str) -> range:
    """The rows of one of its inputs that the layer needs for this row of its output."""
    if name != layer.inputs[0]:
        return range(row, row + 1)
    height = network.tensors[name].height
    return range(height) if layer.kind in WHOLE else layer.rows(row, height)


def _height(network: Network, layer: Layer) -> int:
    """Steps of a layer."""
    return 1 if layer.kind is Kind.LOGITS else network.tensors[layer.output].height


def make_schedule(network: Network) -> Schedule:
    """The order of rows for a network, and its rings."""
    layers = network.layers
    heights = [_height(network, layer) for layer in layers]
    made = dict.fromkeys(network.tensors, 0)
    made[network.image] = network.tensors[network.image].height
    done = [0] * len(layers)
    users = {name: [i for i, each in enumerate(layers) if name in each.inputs] for name in network.tensors}
    rows = dict.fromkeys(network.tensors, 0)
    life: dict[str, tuple[int, int]] = {}
    steps: list[int] = []

    def can_run(index: int) -> bool:
        if done[index] == heights[index]:
            return False
        layer, row = layers[index], done[index]
        return all(made[name] >= needed(network, layer, row, name).stop for name in layer.inputs)

    def oldest(name: str) -> int:
        """The first row that is still needed."""
        firsts = [
            needed(network, layers[i], done[i], name).start for i in users[name] if done[i] < heights[i]
        ]
        return min(firsts, default=made[name])

    while any(d < h for d, h in zip(done, heights, strict=True)):
        index = next(i for i in reversed(range(len(layers))) if can_run(i))
        layer, step = layers[index], len(steps)
        if layer.output in made:
            # Its inputs are still needed while it writes.
            made[layer.output] += 1
            kept = made[layer.output] - min(oldest(layer.output), made[layer.output] - 1)
            rows[layer.output] = max(rows[layer.output], kept)
        for name in (*layer.inputs, layer.output):
            first, _ = life.get(name, (step, step))
            life[name] = (first, step)
        done[index] += 1
        steps.append(index)
    rows[network.symbols] = network.tensors[network.symbols].height
    life[network.symbols] = (life[network.symbols][0], len(steps))
    rows[network.image] = 0
    return Schedule(tuple(steps), rows, life)
