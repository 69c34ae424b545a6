"""A float graph in integers, with in float what measurement says has to be.

First everything is quantized. Where an output is then further off than `divergence` allows, operators are
ordered by the noise that each makes alone (`sensitivity`), and the fewest of the noisiest that make it good
enough stay in float.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from offramp.common.part.session import session
from offramp.training.split.divergence import Divergence, divergence
from offramp.training.split.quantizer import BATCH, Quantizer, named
from offramp.training.split.sensitivity import Switched, fewest_in_float, noisiest

_TRIED = 64
"""Inputs on which a quantized graph is measured."""
_RANKED = 24
"""Inputs on which parts of the operators are tried."""


@dataclass(frozen=True)
class Quantized:
    """A quantized graph.

    source: the float graph that it was made of.
    divergence: of each output from the float graph's.
    in_float: names of the operators that stay in float though they have an integer form, the noisiest first.
    kinds: the same by the kind of operator, as in "3 Conv, 1 Softmax".
    """

    model: onnx.ModelProto
    source: onnx.ModelProto
    divergence: tuple[Divergence, ...]
    in_float: tuple[str, ...]
    kinds: str

    @property
    def noise(self) -> tuple[float, ...]:
        """Decibels of signal over noise of each output."""
        return tuple(each.decibels for each in self.divergence)

    @property
    def cost(self) -> float:
        """Of the output that is furthest off, as a part of what is allowed."""
        return max(each.cost for each in self.divergence)


def quantize(
    model: onnx.ModelProto,
    name: str,
    inputs: NDArray[np.generic],
    held_out: NDArray[np.generic],
    *,
    keep: Callable[[str], bool] = lambda _: False,
    exact: Sequence[str] = (),
    say: Callable[[str], object] = lambda _: None,
) -> Quantized:
    """Quantize a graph of one input.

    Args:
        model: float32 inside.
        name: of its input.
        inputs: for calibration, [N, …] as the graph takes them.
        held_out: on which the noise is measured.
        keep: nodes, by name, that stay in float.
        exact: tensors that are whole numbers -128 … 127, which uint8 with scale 1 holds as they are.
        say: called with a line where something stays in float, and one about each output.
    """
    model = named(model)
    outputs = [each.name for each in model.graph.output]
    part = held_out[:_TRIED]
    wanted = _run(model, name, outputs, part)
    kinds = {node.name: node.op_type for node in model.graph.node}
    with tempfile.TemporaryDirectory(prefix="offramp-quantize-") as folder:
        quantizer = Quantizer(model, name, inputs, Path(folder), keep=keep, exact=exact)

        def tried(in_float: Sequence[str]) -> Quantized:
            made = quantizer.quantized(in_float)
            found = _run(made, name, outputs, part)
            off = tuple(divergence(*each) for each in zip(outputs, wanted, found, strict=True))
            counts = Counter(kinds[each] for each in in_float).most_common()
            return Quantized(
                made, model, off, tuple(in_float), ", ".join(f"{n} {kind}" for kind, n in counts)
            )

        best = tried(())
        if best.cost > 1:
            switched = Switched(model, best.model, name, part[:_RANKED], quantizer.may_be_integer)
            ranked = noisiest(switched)
            count = fewest_in_float(switched, ranked)
            best = tried(ranked[:count])
            while best.cost > 1 and count < len(ranked):
                # The kernels' sums, and more inputs, can be a little further off than the trial.
                count = min(len(ranked), count + 1 + count // 4)
                best = tried(ranked[:count])
    if best.in_float:
        say(f"in float: {best.kinds} of {len(kinds)} operators")
    for each in best.divergence:
        say(each.text())
    return best


def _run(
    model: onnx.ModelProto, name: str, outputs: list[str], inputs: NDArray[np.generic]
) -> list[NDArray[np.float32]]:
    graph = session(model.SerializeToString(), threads=1)
    parts = [
        graph.run(outputs, {name: inputs[start : start + BATCH]}) for start in range(0, len(inputs), BATCH)
    ]
    return [np.concatenate(each) for each in zip(*parts, strict=True)]
