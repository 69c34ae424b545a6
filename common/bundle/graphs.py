"""Which ONNX graphs a bundle may have, by their bytes alone; ``part/trial.py`` bounds what they cost."""

from __future__ import annotations

from functools import cache

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from offramp.common.errors import BundleError, printable
from offramp.v1 import onnx_subset_pb2

OPSETS = range(13, 24)
NODES = 10_000

# Operators of a classifier's inference graph. No control flow, nothing that reads files or draws numbers,
# and nothing whose output size is a value inside the graph rather than a shape (Expand, Tile, Range, …).
OPERATORS = frozenset(
    [
        "Add",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Clip",
        "Concat",
        "Constant",
        "Conv",
        "DepthToSpace",
        "DequantizeLinear",
        "Div",
        "Flatten",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LayerNormalization",
        "LeakyRelu",
        "MatMul",
        "MaxPool",
        "Mul",
        "PRelu",
        "QuantizeLinear",
        "ReduceL2",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "SpaceToDepth",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tanh",
        "Transpose",
        "Unsqueeze",
    ]
)

PARTS = 1_000_000
"""Fields that a file may consist of: a network of 10,000 nodes has half of that. A parser makes up to 32
times its size of a file of nothing else."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf."""


def check_graph(name: str, data: bytes) -> None:
    """Refuse an ONNX file that could reach outside itself or run anything but a plain graph.

    Raises BundleError. It does not check types and shapes; ``engine.Engine`` does.
    """
    try:
        if _parts(data) > PARTS:
            raise BundleError(f"{name}: has over {PARTS:,} parts, expected a classifier's graph")
        model = onnx_subset_pb2.OnnxModel.FromString(data)
    except (DecodeError, IndexError):
        raise BundleError(f"{name}: is not an ONNX file") from None
    graph = model.graph
    if not 0 < len(graph.node) <= NODES:
        raise BundleError(f"{name}: has {len(graph.node)} nodes, expected an ONNX graph of 1 … {NODES}")
    if model.functions or model.training_info or graph.sparse_initializer:
        raise BundleError(f"{name}: has functions, training data or sparse tensors, expected a plain graph")
    if not model.opset_import:
        raise BundleError(f"{name}: names no opset, expected {OPSETS[0]} … {OPSETS[-1]}")
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            raise BundleError(
                f"{name}: needs operators of '{printable(opset.domain)}', expected the standard ones only"
            )
        if opset.version not in OPSETS:
            raise BundleError(f"{name}: needs opset {opset.version}, expected {OPSETS[0]} … {OPSETS[-1]}")
    for tensor in graph.initializer:
        _check_tensor(name, tensor)
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            operator = printable(f"{node.domain}:{node.op_type}" if node.domain else node.op_type)
            raise BundleError(f"{name}: has the operator '{operator}', expected a classifier's only")
        for attribute in node.attribute:
            nested = ("g", "sparse_tensor")
            if any(map(attribute.HasField, nested)) or attribute.graphs or attribute.sparse_tensors:
                raise BundleError(
                    f"{name}: '{node.op_type}' has a nested graph or a sparse tensor, expected plain values"
                )
            for tensor in (attribute.t, *attribute.tensors):
                _check_tensor(name, tensor)


def _check_tensor(name: str, tensor: onnx_subset_pb2.OnnxTensor) -> None:
    if tensor.external_data or tensor.data_location:
        raise BundleError(
            f"{name}: tensor '{printable(tensor.name)}' lies in another file, expected it inside"
        )


@cache
def _children(message: Descriptor) -> dict[int, Descriptor]:
    return {f.number: f.message_type for f in message.fields if f.message_type is not None}


def _parts(data: bytes) -> int:
    """A file's fields, counted without making objects of them, to one more than ``PARTS``.

    Raises DecodeError or IndexError where it is not ONNX.
    """
    parts = 0
    regions = [(onnx_subset_pb2.OnnxModel.DESCRIPTOR, 0, len(data))]
    while regions:
        message, at, end = regions.pop()
        children = _children(message)
        while at < end:
            parts += 1
            if parts > PARTS:
                return parts
            tag, at = _varint(data, at)
            kind = tag & 7
            if kind == BYTES:
                size, at = _varint(data, at)
                if (child := children.get(tag >> 3)) is not None:
                    regions.append((child, at, at + size))
                at += size
            elif kind == VARINT:
                _, at = _varint(data, at)
            elif kind in (FIXED64, FIXED32):
                at += 8 if kind == FIXED64 else 4
            else:
                raise DecodeError("a group")  # ONNX has none
        if at > end:
            raise DecodeError("a field that ends after its message")
    return parts


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends."""
    value = data[at]
    at += 1
    if value < 128:
        return value, at
    value &= 127
    for shift in range(7, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value, at
