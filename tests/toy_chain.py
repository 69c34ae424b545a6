"""A toy bundle of three parts or more, for pictures: every part but the last has an exit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from offramp.common.bundle.document import parse_manifest
from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import CODEBOOK, HEAD, TAIL
from offramp.common.bundle.write import file_entries, write_bundle
from offramp.common.codec.huffman import build_codebook
from tests import toy
from tests.toy import CLASSES, SCALE, SHAPE

CHANNELS = (SHAPE[0], 6, 5, 3)
"""Of the first crossing, the second, …"""


def later(number: int, parts: int) -> onnx.ModelProto:
    """Part 2, 3, …: ``symbols`` → ``next_symbols`` where a part follows, and ``logits`` float [N, 3]."""
    taken, last = CHANNELS[number - 2], number == parts
    given = 6 if last else CHANNELS[number - 1]
    rng = np.random.default_rng(40 + number)
    kernel, kernel_tensors = toy._weights("kernel", rng.normal(0, 0.3, (given, taken, 3, 3)))
    dense, dense_tensors = toy._weights("dense", rng.normal(0, 1.2, (16 * given, len(CLASSES))))
    inner = "inner" if last else "next_symbols"
    nodes = [
        helper.make_node("DequantizeLinear", ["symbols", "split_scale", "split_zero"], ["activation"]),
        *kernel,
        helper.make_node("Conv", ["activation", "kernel"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["features"], ["positive"]),
        helper.make_node("QuantizeLinear", ["positive", "inner_scale", "inner_zero"], [inner]),
        helper.make_node("DequantizeLinear", [inner, "inner_scale", "inner_zero"], ["outer"]),
        helper.make_node("Flatten", ["outer"], ["flat"]),
        *dense,
        helper.make_node("MatMul", ["flat", "dense"], ["logits"]),
    ]
    outputs = [] if last else [toy.port(inner, TensorProto.UINT8, given, *SHAPE[1:])]
    return toy.model(
        nodes,
        [toy.port("symbols", TensorProto.UINT8, taken, *SHAPE[1:])],
        [*outputs, toy.port("logits", TensorProto.FLOAT, len(CLASSES))],
        [*kernel_tensors, *dense_tensors, *toy._activation("split"), *toy._activation("inner")],
    )


def write(directory: Path, parts: int = 3, *, sent_answer: str = "server", thresholds: float = 0.8) -> Bundle:
    """Write a chain of 3 or 4 parts: the first crossing coded with a table for each channel, others raw."""
    graphs = [HEAD, *(f"part{number}.onnx" for number in range(2, parts)), TAIL]
    files = {HEAD: toy.head().SerializeToString()}
    files |= {
        graph: later(number, parts).SerializeToString() for number, graph in enumerate(graphs[1:], start=2)
    }
    files[CODEBOOK] = build_codebook(toy.channel_counts(files[HEAD]), "channel").to_bytes()
    codecs: list[dict[str, Any]] = [
        {"kind": "huffman", "lanes": 1, "table_of_channel": list(range(SHAPE[0]))},
        *({"kind": "raw"} for _ in range(parts - 2)),
    ]
    crossings = [
        {
            "shape": [channels, *SHAPE[1:]],
            "scale": SCALE,
            "zero_point": 0,
            "codec": codec,
            "tables": CODEBOOK if codec["kind"] != "raw" else None,
        }
        for channels, codec in zip(CHANNELS, codecs, strict=False)
    ]
    described = [
        {
            "graph": graph,
            "cut": {"name": f"stage{number}", "number": number},
            "exit": {"threshold": thresholds, "temperature": 1.0 + number / 10},
        }
        for number, graph in enumerate(graphs[:-1], start=1)
    ]
    first = parse_manifest(json.dumps(toy.manifest({HEAD: b"0", TAIL: b"0"})).encode())
    document = {
        "format_version": 2,
        "name": f"toy-chain-{parts}",
        "model": "toy",
        "input": first.input.model_dump(),
        "classes": list(CLASSES),
        "files": {name: entry.model_dump() for name, entry in file_entries(files).items()},
        "parts": [*described, {"graph": TAIL}],
        "crossings": crossings,
        "answers": "all" if sent_answer == "both" else "last",
        "provenance": first.provenance.model_dump(),
        "figures": first.figures.model_dump(),
    }
    return write_bundle(directory, parse_manifest(json.dumps(document).encode()), files)
