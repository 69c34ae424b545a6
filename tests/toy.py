"""A toy bundle: both halves of a network that takes 8x8 images, made in milliseconds and without torch.

Its weights are seeded, so that images get different classes and confidences, and head and tail disagree on
some of them. ``BundleFolder`` is a copy of it on disk that a test may damage.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from offramp.common.bundle.document import parse_manifest
from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import CODEBOOK, HEAD, MANIFEST, TAIL
from offramp.common.bundle.write import file_entries, write_bundle
from offramp.common.codec.huffman import build_codebook, package_merge
from offramp.common.codec.rans import TOTAL, Kind, RansTable, RansTables, Token
from offramp.common.codec.run_huffman import RunTable, RunTables

SIDE = 8
SHAPE = (4, 4, 4)
CLASSES = ("circle", "square", "triangle")
SCALE = 0.05
OPSET = 17
IR_VERSION = 8


def images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Blurry coloured images, uint8 [N, 3, 8, 8]."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (count, 3, 2, 2)).repeat(SIDE // 2, 2).repeat(SIDE // 2, 3)
    return (patches + rng.integers(-40, 41, patches.shape)).clip(0, 255).astype(np.uint8)


def _weights(name: str, values: NDArray[np.float64]) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """A symmetric INT8 initializer and the node that makes floats of it, ``name``."""
    scale = np.float32(np.abs(values).max() / 127)
    initializers = [
        numpy_helper.from_array(np.rint(values / scale).astype(np.int8), f"{name}_int8"),
        numpy_helper.from_array(np.array(scale), f"{name}_scale"),
        numpy_helper.from_array(np.array(0, np.int8), f"{name}_zero"),
    ]
    return [helper.make_node("DequantizeLinear", [t.name for t in initializers], [name])], initializers


def _activation(name: str) -> list[TensorProto]:
    return [
        numpy_helper.from_array(np.array(SCALE, np.float32), f"{name}_scale"),
        numpy_helper.from_array(np.array(0, np.uint8), f"{name}_zero"),
    ]


def port(name: str, kind: int, *shape: int) -> onnx.ValueInfoProto:
    """An input or output with a free batch dimension."""
    return helper.make_tensor_value_info(name, kind, ["N", *shape])


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[TensorProto] = (),
) -> onnx.ModelProto:
    """A model of one graph in the standard operator domain."""
    graph = helper.make_graph(nodes, "toy", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def head(seed: int = 61) -> onnx.ModelProto:
    """``image`` uint8 [N, 3, 8, 8] → ``symbols`` uint8 [N, 4, 4, 4] and ``logits`` float [N, 3]."""
    rng = np.random.default_rng(seed)
    kernel, kernel_tensors = _weights("kernel", rng.normal(0, 0.3, (SHAPE[0], 3, 3, 3)))
    dense, dense_tensors = _weights("dense", rng.normal(0, 0.6, (64, len(CLASSES))))
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "unit"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "half"], ["centred"]),
        *kernel,
        helper.make_node("Conv", ["centred", "kernel"], ["features"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["features", "split_scale", "split_zero"], ["symbols"]),
        helper.make_node("DequantizeLinear", ["symbols", "split_scale", "split_zero"], ["activation"]),
        helper.make_node("Flatten", ["activation"], ["flat"]),
        *dense,
        helper.make_node("MatMul", ["flat", "dense"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(1 / 255, np.float32), "unit"),
        numpy_helper.from_array(np.array(0.5, np.float32), "half"),
    ]
    return model(
        nodes,
        [port("image", TensorProto.UINT8, 3, SIDE, SIDE)],
        [port("symbols", TensorProto.UINT8, *SHAPE), port("logits", TensorProto.FLOAT, len(CLASSES))],
        [*constants, *kernel_tensors, *dense_tensors, *_activation("split")],
    )


def tail(seed: int = 47) -> onnx.ModelProto:
    """``symbols`` uint8 [N, 4, 4, 4] → ``logits`` float [N, 3]."""
    rng = np.random.default_rng(seed)
    kernel, kernel_tensors = _weights("kernel", rng.normal(0, 0.3, (6, SHAPE[0], 3, 3)))
    dense, dense_tensors = _weights("dense", rng.normal(0, 0.6, (96, len(CLASSES))))
    nodes = [
        helper.make_node("DequantizeLinear", ["symbols", "split_scale", "split_zero"], ["activation"]),
        *kernel,
        helper.make_node("Conv", ["activation", "kernel"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["features"], ["positive"]),
        helper.make_node("QuantizeLinear", ["positive", "inner_scale", "inner_zero"], ["inner"]),
        helper.make_node("DequantizeLinear", ["inner", "inner_scale", "inner_zero"], ["outer"]),
        helper.make_node("Flatten", ["outer"], ["flat"]),
        *dense,
        helper.make_node("MatMul", ["flat", "dense"], ["logits"]),
    ]
    return model(
        nodes,
        [port("symbols", TensorProto.UINT8, *SHAPE)],
        [port("logits", TensorProto.FLOAT, len(CLASSES))],
        [*kernel_tensors, *dense_tensors, *_activation("split"), *_activation("inner")],
    )


def channel_counts(head_model: bytes) -> NDArray[np.int64]:
    """How often each symbol occurs in each channel over 256 images, int64 [C, 256]."""
    session = onnxruntime.InferenceSession(head_model, providers=["CPUExecutionProvider"])
    symbols = np.asarray(session.run(["symbols"], {"image": images(256, seed=1)})[0])
    return np.stack([np.bincount(symbols[:, c].ravel(), minlength=256) for c in range(SHAPE[0])])


def manifest(files: dict[str, bytes]) -> dict[str, Any]:
    """A valid manifest for these files, as JSON values. With a codebook: Huffman, one table a channel."""
    coded = {"kind": "huffman", "lanes": 1, "table_of_channel": list(range(SHAPE[0]))}
    return {
        "format_version": 1,
        "name": "toy",
        "files": {name: entry.model_dump() for name, entry in file_entries(files).items()},
        "classes": list(CLASSES),
        "preprocessing": {"color": "RGB", "height": SIDE, "width": SIDE, "resize": "bilinear"},
        "split": {"model": "toy", "exit": 1, "layer": "features"},
        "activation": {"shape": list(SHAPE), "scale": SCALE, "zero_point": 0},
        "codec": coded if CODEBOOK in files else {"kind": "raw"},
        "threshold": 0.8,
        "temperature": 1.0,
        "provenance": {
            "commit": "unknown",
            "dataset": {"name": "noise", "sha256": "0" * 64, "train": 0, "validation": 0, "test": 0},
            "recipe": "",
            "seed": 0,
            "libraries": {"onnx": onnx.__version__},
        },
        "figures": {
            "images": 0,
            "accuracy_early": 0.5,
            "accuracy_final": 0.75,
            "accuracy_early_float": 0.5,
            "accuracy_final_float": 0.75,
            "payload_bytes_mean": 32.0,
            "entropy_bits": 4.0,
            "entropy_bits_channel": 3.5,
            "thresholds": [
                {"threshold": 0.8, "accuracy": 0.7, "exit_rate": 0.4, "payload_bytes_mean": 20.0},
            ],
        },
    }


def write(
    directory: Path, *, coded: bool = True, sent_answer: str = "server", seeds: tuple[int, int] = (61, 47)
) -> Bundle:
    """Write the toy bundle, with a codebook for each channel or with raw symbols only.

    seeds: of the weights of its head and its tail.
    """
    files = {HEAD: head(seeds[0]).SerializeToString(), TAIL: tail(seeds[1]).SerializeToString()}
    if coded:
        files[CODEBOOK] = build_codebook(channel_counts(files[HEAD]), "channel").to_bytes()
    valid = parse_manifest(json.dumps({**manifest(files), "sent_answer": sent_answer}).encode())
    return write_bundle(directory, valid, files)


def rans_tables() -> RansTables:
    """Two tables for the toy's channels: one without runs, one with runs of up to 3 and its escapes."""
    plain = [Token(Kind.SYMBOL, 0, s, 80 - 2 * s) for s in range(24)]
    plain.append(Token(Kind.ESCAPE, 0, 0, TOTAL - sum(token.frequency for token in plain)))
    runs = [Token(Kind.SYMBOL, run, s, 40) for run in range(4) for s in range(1, 17)]
    runs += [Token(Kind.ESCAPE, run, 0, 200) for run in range(4)]
    runs.append(Token(Kind.FULL, 3, 0, TOTAL - sum(token.frequency for token in runs)))
    tables = RansTable(1, 0, tuple(plain)), RansTable(4, 0, tuple(runs))
    return RansTables(tables, np.array([0, 1, 0, 1], np.uint16))


def write_rans(directory: Path, *, lanes: int = 1) -> Bundle:
    """Write the toy bundle with rANS tables."""
    tables = rans_tables()
    files = {HEAD: head().SerializeToString(), TAIL: tail().SerializeToString(), CODEBOOK: tables.to_bytes()}
    of_channel = tables.table_of_channel.tolist()
    document = {**manifest(files), "codec": {"kind": "rans", "lanes": lanes, "table_of_channel": of_channel}}
    return write_bundle(directory, parse_manifest(json.dumps(document).encode()), files)


def run_huffman_tables() -> RunTables:
    """Two tables for the toy's channels: one without runs, one with runs of up to 3 and its escapes."""
    plain = package_merge([10**6 // (1 + s * s) + 1 for s in range(256)])
    cells = [(10**5 if s else 10**4) // (1 + run + s) for run in range(4) for s in range(17)]
    runs = package_merge([*cells, 10**5])
    tables = RunTable(plain[None], 0, 0), RunTable(runs[:-1].reshape(4, 17), int(runs[-1]), 3)
    return RunTables(tables, np.array([0, 1, 0, 1], np.uint16), np.zeros(4, np.uint8))


def write_run_huffman(directory: Path, *, lanes: int = 1) -> Bundle:
    """Write the toy bundle with run-Huffman tables."""
    tables = run_huffman_tables()
    files = {HEAD: head().SerializeToString(), TAIL: tail().SerializeToString(), CODEBOOK: tables.to_bytes()}
    entry = {
        "kind": "run-huffman",
        "lanes": lanes,
        "table_of_channel": tables.table_of_channel.tolist(),
        "mode_of_channel": tables.mode_of_channel.tolist(),
    }
    document = {**manifest(files), "codec": entry}
    return write_bundle(directory, parse_manifest(json.dumps(document).encode()), files)


class BundleFolder:
    """A bundle's directory that a test may damage.

    ``put`` keeps the manifest's size and hash right, so that the file's content is what is wrong, and not
    its hash; writing to ``path / name`` leaves them as they are.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it is stored, as JSON values."""
        value: dict[str, Any] = json.loads((self.path / MANIFEST).read_bytes())
        return value

    def write_manifest(self, value: dict[str, Any] | bytes) -> None:
        """Replace the manifest by JSON values, or by bytes as they are."""
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        (self.path / MANIFEST).write_bytes(text)

    def edit(self, *keys: str | int, value: object) -> None:
        """Set one value of the manifest: ``edit("files", "head.onnx", "size", value=3)``."""
        document = self.manifest
        place: Any = document
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        self.write_manifest(document)

    def put(self, name: str, data: bytes | onnx.ModelProto) -> None:
        """Replace a file, and what the manifest says of it."""
        contents = data if isinstance(data, bytes) else data.SerializeToString()
        (self.path / name).write_bytes(contents)
        entry = file_entries({name: contents or b"\0"})[name].model_dump()
        self.edit("files", name, value={**entry, "size": len(contents)})
