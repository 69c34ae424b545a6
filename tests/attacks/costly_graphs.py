"""Valid graphs that cost far more than their bytes: each a tail of the toy bundle, and what is said of it.

Unlike ``bundles.py`` nothing in them is malformed. They are either refused by how much they take, or, where
a machine bears them, they run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests import toy

LONG = r"takes over 6 s to load and try"
LARGE = r"takes over 512 MB to load and try"
FAILS = r"(does not run|ONNX Runtime refuses it): .*"
Node = onnx.NodeProto

GRAPHS: dict[str, tuple[Callable[[], onnx.ModelProto | bytes], str]] = {}
"""Name → the tail, and a regular expression for what the message has after the file's name."""


def costly(name: str, expected: str) -> Callable[[Callable[[], onnx.ModelProto | bytes]], None]:
    """List a graph."""

    def listed(make: Callable[[], onnx.ModelProto | bytes]) -> None:
        GRAPHS[name] = make, expected

    return listed


def tail(nodes: Sequence[Node], **constants: NDArray[Any]) -> onnx.ModelProto:
    """Nodes from ``x``, float [N, 4, 4, 4], to ``y``, of any shape [N, C, …] with C ≥ 3."""
    last = [
        helper.make_node("GlobalAveragePool", ["y"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Slice", ["flat", "start", "stop", "axis"], ["logits"]),
    ]
    ends = {"start": np.array([0]), "stop": np.array([3]), "axis": np.array([1])}
    return toy.model(
        [helper.make_node("Cast", ["symbols"], ["x"], to=TensorProto.FLOAT), *nodes, *last],
        [toy.port("symbols", TensorProto.UINT8, *toy.SHAPE)],
        [toy.port("logits", TensorProto.FLOAT, len(toy.CLASSES))],
        [numpy_helper.from_array(value, name) for name, value in {**ends, **constants}.items()],
    )


def noise(*shape: int) -> NDArray[np.float32]:
    """Numbers that no optimizer takes for zeros; quickly made, since some are 50 MB."""
    return np.resize(np.linspace(-0.01, 0.01, 9973, dtype=np.float32), shape)


# ---- rewrites that copy constants: what is stored once is copied for each use ------------------------


@costly("conv-and-norm-of-one-weight-40-times", LARGE)
def _() -> onnx.ModelProto:
    return norms(40)


@costly("conv-and-norm-of-one-weight-150-times", LARGE)
def _() -> onnx.ModelProto:
    return norms(150)


def norms(pairs: int) -> onnx.ModelProto:
    """So many Conv + BatchNormalization, all of one weight of 52 MB: fusion makes one of each.

    Its bytes are in the kernel, most of which lies on padding: the layers themselves are cheap.
    """
    nodes = []
    for i in range(pairs):
        nodes.append(helper.make_node("Conv", ["x", "w"], [f"c{i}"], pads=[900] * 4, strides=[900, 900]))
        norm = ["ones", "ones", "ones", "ones"]
        nodes.append(helper.make_node("BatchNormalization", [f"c{i}", *norm], [f"b{i}"]))
    nodes.append(helper.make_node("Concat", [f"b{i}" for i in range(pairs)], ["y"], axis=1))
    return tail(nodes, w=noise(4, 4, 901, 901), ones=np.ones(4, np.float32))


@costly("conv-and-mul-of-one-weight-60-times", LARGE)
def _() -> onnx.ModelProto:
    nodes = []
    for i in range(60):
        nodes.append(helper.make_node("Conv", ["x", "w"], [f"c{i}"], pads=[900] * 4, strides=[900, 900]))
        nodes.append(helper.make_node("Mul", [f"c{i}", "half"], [f"b{i}"]))
    nodes.append(helper.make_node("Concat", [f"b{i}" for i in range(60)], ["y"], axis=1))
    return tail(nodes, w=noise(4, 4, 901, 901), half=np.full((4, 1, 1), 0.5, np.float32))


@costly("dequantized-weight-100-times", rf"({LARGE}|{FAILS})")
def _() -> onnx.ModelProto:
    nodes, width = [helper.make_node("Reshape", ["x", "flat64"], ["v"])], 800_000
    for i in range(100):
        nodes.append(helper.make_node("DequantizeLinear", ["w", "s", "z"], [f"w{i}"]))
        nodes.append(helper.make_node("MatMul", ["v", f"w{i}"], [f"m{i}"]))
    nodes.append(helper.make_node("Concat", [f"m{i}" for i in range(100)], ["row"], axis=1))
    nodes.append(helper.make_node("Reshape", ["row", "image"], ["y"]))
    weight = np.resize(np.arange(-127, 128, dtype=np.int8), (64, width))
    scale, zero = np.array(0.01, np.float32), np.array(0, np.int8)
    shapes = {"flat64": np.array([-1, 64]), "image": np.array([-1, 100, width, 1])}
    return tail(nodes, w=weight, s=scale, z=zero, **shapes)


# ---- work that no tensor's size shows -----------------------------------------------------------------


def large(name: str, copies: int = 256) -> list[Node]:
    """``x`` so many times beside and below itself, as ``name``: float [N, 4, 4 · copies, 4 · copies]."""
    return [
        helper.make_node("Concat", ["x"] * copies, ["wide"], axis=3),
        helper.make_node("Concat", ["wide"] * copies, [name], axis=2),
    ]


def pooled(operator: str, side: int, padding: int, **attributes: Any) -> onnx.ModelProto:
    """A pool of side² values for each of a million places: a file of a few hundred bytes."""
    window = {"kernel_shape": [side, side], "pads": [padding] * 4, **attributes}
    return tail([*large("s"), helper.make_node(operator, ["s"], ["y"], **window)])


@costly("average-pool-of-3003", LONG)
def _() -> onnx.ModelProto:
    return pooled("AveragePool", 3003, 1501, count_include_pad=1)


@costly("max-pool-of-2003", LONG)
def _() -> onnx.ModelProto:
    return pooled("MaxPool", 2003, 1001)


@costly("max-pool-of-501-dilated", LONG)
def _() -> onnx.ModelProto:
    return pooled("MaxPool", 501, 500, dilations=[2, 2])


@costly("conv-of-a-large-kernel", rf"({LONG}|{LARGE}|{FAILS})")
def _() -> onnx.ModelProto:
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[900] * 4)
    return tail([node], w=noise(4, 4, 901, 901))


@costly("conv-of-a-small-file", LONG)
def _() -> onnx.ModelProto:
    """A weight of 16 MB at a million places."""
    node = helper.make_node("Conv", ["s", "w"], ["y"], pads=[128] * 4, group=4)
    return tail([*large("s"), node], w=noise(4, 1, 257, 257))


@costly("conv-of-much-padding", rf"({LARGE}|{FAILS})")
def _() -> onnx.ModelProto:
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[20_000] * 4, dilations=[9000, 9000])
    return tail([node], w=noise(4, 4, 3, 3))


@costly("matmuls-of-a-broadcast-square", LONG)
def _() -> onnx.ModelProto:
    """Column times row is a square; squares are multiplied, again and again."""
    nodes = [
        helper.make_node("Slice", ["x", "start", "one", "axis"], ["single"]),
        helper.make_node("Reshape", ["single", "flat16"], ["short"]),
        helper.make_node("Concat", ["short"] * 128, ["left"], axis=1),
        helper.make_node("Mul", ["left", "row"], ["s0"]),
        *[helper.make_node("MatMul", [f"s{i}", f"s{i}"], [f"s{i + 1}"]) for i in range(2000)],
        helper.make_node("Concat", ["q"] * 3, ["y"], axis=1),
    ]
    nodes.insert(-1, helper.make_node("Unsqueeze", ["s2000", "axis"], ["q"]))
    return tail(nodes, row=noise(1, 1, 2048), one=np.array([1]), flat16=np.array([-1, 16, 1]))


@costly("pools-in-a-row", LONG)
def _() -> onnx.ModelProto:
    """Each is cheap enough alone."""
    window: dict[str, Any] = {"kernel_shape": [257, 257], "pads": [128] * 4}
    nodes = [helper.make_node("Concat", ["x"] * 64, ["s0"], axis=2)]
    nodes += [helper.make_node("MaxPool", [f"s{i}"], [f"s{i + 1}"], **window) for i in range(3000)]
    nodes.append(helper.make_node("Identity", ["s3000"], ["y"]))
    return tail(nodes)


# ---- sizes that double with each node -----------------------------------------------------------------


@costly("concat-of-itself", rf"({LARGE}|{FAILS})")
def _() -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", ["x"], ["s0"])]
    nodes += [helper.make_node("Concat", [f"s{i}"] * 2, [f"s{i + 1}"], axis=2) for i in range(40)]
    return tail([*nodes, helper.make_node("Identity", ["s40"], ["y"])])


@costly("split-and-concat", FAILS)
def _() -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", ["x"], ["s0"])]
    for i in range(40):
        nodes.append(helper.make_node("Split", [f"s{i}"], [f"l{i}", f"r{i}"], axis=1))
        parts = [f"l{i}", f"r{i}"] * 2
        nodes.append(helper.make_node("Concat", parts, [f"s{i + 1}"], axis=1))
    return tail([*nodes, helper.make_node("Identity", ["s40"], ["y"])])


@costly("padding-by-a-pool", rf"({LARGE}|{FAILS})")
def _() -> onnx.ModelProto:
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[20_000] * 2, pads=[19_999] * 4)
    return tail([node])


@costly("constants-that-double", rf"({LARGE}|{FAILS})")
def _() -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", ["w"], ["s0"])]
    nodes += [helper.make_node("Concat", [f"s{i}"] * 2, [f"s{i + 1}"], axis=2) for i in range(30)]
    nodes += [
        helper.make_node("GlobalAveragePool", ["s30"], ["mean"]),
        helper.make_node("Add", ["x", "mean"], ["y"]),
    ]
    return tail(nodes, w=noise(1, 4, 4, 4))


@costly("outer-products-of-the-batch", rf"({LARGE}|{FAILS})")
def _() -> onnx.ModelProto:
    """A tensor that has the batch as each of 40 sides: two inputs are 2^40 values."""
    nodes = [
        helper.make_node("Slice", ["x", "start", "one", "axis"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["g"]),
        helper.make_node("Reshape", ["g", "row"], ["s0"]),
    ]
    for i in range(40):
        nodes.append(helper.make_node("Reshape", [f"s{i}", "column"], [f"t{i}"]))
        nodes.append(helper.make_node("Mul", [f"t{i}", "r"], [f"m{i}"]))
        nodes.append(helper.make_node("Reshape", [f"m{i}", "row"], [f"s{i + 1}"]))
    nodes += [
        helper.make_node("Reshape", ["g", "row"], ["r"]),
        helper.make_node("ReduceMean", ["s40"], ["mean"], keepdims=1),
        helper.make_node("Add", ["x", "mean"], ["y"]),
    ]
    nodes.insert(3, nodes.pop(-3))
    shapes = {"row": np.array([1, -1]), "column": np.array([-1, 1]), "one": np.array([1])}
    return tail(nodes, **shapes)


# ---- files that a parser makes much of ----------------------------------------------------------------

PARTS = r"has over 1,000,000 parts, expected a classifier's graph"


def long(field: int, *inside: bytes) -> bytes:
    """A protobuf field of these bytes."""
    data = b"".join(inside)
    size, coded = len(data), bytearray()
    while size > 127:
        coded.append(size & 127 | 128)
        size >>= 7
    return bytes([field << 3 | 2, *coded, size]) + data


costly("nodes-of-2-bytes", PARTS)(lambda: long(7, b"\x0a\0" * 20_000_000))
costly("attributes-of-2-bytes", PARTS)(lambda: long(7, long(1, b"\x2a\0" * 20_000_000)))
costly("identical-initializers", PARTS)(lambda: long(7, b"\x2a\0" * 20_000_000))
costly("opsets-of-2-bytes", PARTS)(lambda: b"\x42\0" * 20_000_000)
costly("dimensions-of-1-byte", rf"({LARGE}|{FAILS})")(
    lambda: tail([]).SerializeToString() + long(7, long(5, long(1, b"\1" * 60_000_000)))
)
