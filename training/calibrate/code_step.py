"""The step of a rate-trained split's code, in its exported graphs; nothing is trained.

A code is whole numbers because it was trained so. Its values are rounded to multiples of another step
instead: a finer one sends more bytes and leaves the tail less to guess, a coarser one the other way round.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from offramp.common.errors import DataError
from offramp.training.export import Graphs


def with_step(graphs: Graphs, step: float) -> Graphs:
    """The same network with another step of the transmitted code.

    Raises:
        DataError: what is sent is not a rate-trained split's code, which nothing but the decoder reads.
    """
    head, tail = onnx.load_from_string(graphs.head), onnx.load_from_string(graphs.tail)
    rounds = _only([node for node in head.graph.node if "symbols" in node.output])
    if rounds.op_type != "QuantizeLinear" or _readers(head, "symbols"):
        raise _not_a_code()
    reads = _only(_readers(tail, "symbols"))
    decoder = _only(_readers(tail, reads.output[0]))
    if (reads.op_type, decoder.op_type) != ("DequantizeLinear", "Conv") or len(decoder.input) != 3:
        raise _not_a_code()
    bias = _only([node for node in tail.graph.node if decoder.input[2] in node.output])
    values = {one.name: one for one in tail.graph.initializer}
    if bias.op_type != "DequantizeLinear" or not {reads.input[1], *bias.input[:2]} <= values.keys():
        raise _not_a_code()
    scale, units, unit = (numpy_helper.to_array(values[name]) for name in (reads.input[1], *bias.input[:2]))
    if scale.shape != () or not 0 < float(scale) < np.inf or units.dtype != np.int32:
        raise _not_a_code()
    # A runtime takes the bias to be in units of both scales, so it has to follow.
    new = np.float32(step)
    change = float(new) / float(scale)
    for name, value in (
        (bias.input[0], np.clip(np.rint(units / change), -(1 << 31), (1 << 31) - 1).astype(np.int32)),
        (bias.input[1], (unit * change).astype(np.float32)),
    ):
        values[name].CopyFrom(numpy_helper.from_array(value, name))
    for model, node in ((head, rounds), (tail, reads)):
        before, name = node.input[1], f"scale_{float(new)!r}"
        node.input[1] = name
        if all(one.name != name for one in model.graph.initializer):
            model.graph.initializer.append(numpy_helper.from_array(np.array(new), name))
        if not _readers(model, before):
            kept = [one for one in model.graph.initializer if one.name != before]
            del model.graph.initializer[:]
            model.graph.initializer.extend(kept)
    return Graphs(*(bytes(one.SerializeToString(deterministic=True)) for one in (head, tail)))


def _readers(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if name in node.input]


def _only(nodes: list[onnx.NodeProto]) -> onnx.NodeProto:
    if len(nodes) != 1:
        raise _not_a_code()
    return nodes[0]


def _not_a_code() -> DataError:
    return DataError(
        "what this bundle sends has no step of its own: expected a rate-trained split, whose code only the"
        " server's decoder reads"
    )
