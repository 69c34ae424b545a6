"""Toy bundles of format version 2: for sounds or tensors, of two parts or more, activations of any rank."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from offramp.common.bundle.document import parse_manifest
from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import HEAD, TAIL
from offramp.common.bundle.write import file_entries, write_bundle
from tests import toy
from tests.toy import CLASSES, SCALE, SHAPE, SIDE

RATE = 8000
TRANSFORM = {
    "kind": "log-mel", "window": 128, "hop": 96, "mels": SIDE, "fmin": 50.0, "fmax": 4000.0, "floor": -80.0
}  # fmt: skip
WAV = {"kind": "wav", "rate": RATE, "seconds": 0.1, "transform": TRANSFORM}
SOUNDS = {"kind": "tensor", "shape": [1, SIDE, SIDE], "dtype": "uint8", "range": [-80.0, 0.0], "file": WAV}
ARRAYS = {**SOUNDS, "range": [-1.0, 1.0], "file": {"kind": "array"}}
TOKENS = (16, 4)


def head(dtype: int = TensorProto.UINT8, tokens: bool = False) -> onnx.ModelProto:
    """``tensor`` [N, 1, 8, 8] → ``symbols`` uint8 [N, 4, 4, 4] or [N, 16, 4], ``logits`` float [N, 3]."""
    rng = np.random.default_rng(5)
    crossing = TOKENS if tokens else SHAPE
    nodes = [
        helper.make_node("Cast", ["tensor"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "unit"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "kernel"], ["features"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["features"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["last", "tokens"], ["map"]),
        helper.make_node("QuantizeLinear", ["map" if tokens else "features", "scale", "zero"], ["symbols"]),
        helper.make_node("Flatten", ["features"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["logits"]),
    ]
    values: dict[str, NDArray[Any]] = {
        "unit": np.array(1 / 255 if dtype == TensorProto.UINT8 else 1, np.float32),
        "kernel": rng.normal(0, 0.6, (SHAPE[0], 1, 3, 3)).astype(np.float32),
        "tokens": np.array([-1, *TOKENS], np.int64),
        "dense": rng.normal(0, 0.6, (64, len(CLASSES))).astype(np.float32),
        "scale": np.array(SCALE, np.float32),
        "zero": np.array(0, np.uint8),
    }
    return toy.model(
        nodes,
        [toy.port("tensor", dtype, 1, SIDE, SIDE)],
        [
            toy.port("symbols", TensorProto.UINT8, *crossing),
            toy.port("logits", TensorProto.FLOAT, len(CLASSES)),
        ],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )


def tail(tokens: bool = False) -> onnx.ModelProto:
    """``symbols`` → ``logits`` float [N, 3]."""
    rng = np.random.default_rng(6)
    dense = rng.normal(0, 0.6, (64, len(CLASSES))).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["symbols", "scale", "zero"], ["activation"]),
        helper.make_node("Flatten", ["activation"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["logits"]),
    ]
    values: dict[str, NDArray[Any]] = {
        "dense": dense,
        "scale": np.array(SCALE, np.float32),
        "zero": np.array(0, np.uint8),
    }
    return toy.model(
        nodes,
        [toy.port("symbols", TensorProto.UINT8, *(TOKENS if tokens else SHAPE))],
        [toy.port("logits", TensorProto.FLOAT, len(CLASSES))],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )


def middle() -> onnx.ModelProto:
    """``symbols`` → ``next_symbols``, the same: a part without an exit."""
    ports = (toy.port(name, TensorProto.UINT8, *SHAPE) for name in ("symbols", "next_symbols"))
    taken, given = ports
    return toy.model([helper.make_node("Identity", ["symbols"], ["next_symbols"])], [taken], [given])


def document(files: dict[str, bytes], taken: dict[str, Any] = SOUNDS, tokens: bool = False) -> dict[str, Any]:
    """A valid manifest of version 2 for a head, a tail and any parts between, as JSON values."""
    crossing: dict[str, Any] = {
        "shape": list(TOKENS if tokens else SHAPE),
        "channel_axis": 1 if tokens else 0,
        "scale": SCALE,
        "zero_point": 0,
        "codec": {"kind": "raw"},
    }
    between = [name for name in files if name not in (HEAD, TAIL)]
    parts = [{"graph": HEAD, "cut": {"name": "features", "number": 1}, "macs": 9216, "weights": 228,
              "exit": {"threshold": 0.8, "temperature": 1.0}}]  # fmt: skip
    parts += [{"graph": name, "cut": {"name": name, "number": 2}} for name in between]
    first = toy.manifest(files)
    return {
        "format_version": 2,
        "name": "toy-tensor",
        "model": "toy",
        "input": taken,
        "classes": list(CLASSES),
        "files": {name: entry.model_dump() for name, entry in file_entries(files).items()},
        "parts": [*parts, {"graph": TAIL}],
        "crossings": [crossing] * (1 + len(between)),
        "answers": "last",
        "provenance": first["provenance"],
        "figures": first["figures"],
    }


def write(directory: Path, taken: dict[str, Any] = SOUNDS, *, tokens: bool = False, parts: int = 2) -> Bundle:
    """Write a toy bundle that takes sounds or tensors."""
    dtype = TensorProto.FLOAT if taken["dtype"] == "float32" else TensorProto.UINT8
    files = {HEAD: head(dtype, tokens).SerializeToString(), TAIL: tail(tokens).SerializeToString()}
    files |= {f"part-{number}.onnx": middle().SerializeToString() for number in range(2, parts)}
    return write_bundle(directory, parse_manifest(json.dumps(document(files, taken, tokens)).encode()), files)


def wav(
    samples: NDArray[np.floating] | None = None,
    rate: int = RATE,
    bits: int = 16,
    channels: int = 1,
    seed: int = 0,
) -> bytes:
    """A WAV file of float64 samples [N] of -1 … 1, in each channel; None: 0.1 s of a tone and noise."""
    if samples is None:
        rng = np.random.default_rng(seed)
        time = np.arange(round(0.1 * rate)) / rate
        samples = 0.4 * np.sin(2 * np.pi * (300 + 500 * seed) * time) + 0.05 * rng.normal(size=len(time))
    frames = np.repeat(np.asarray(samples, np.float64)[:, None], channels, axis=1)
    if bits < 0:
        data, kind, bits = frames.astype(f"<f{-bits // 8}").tobytes(), 3, -bits
    else:
        kind = 1
        top = 1 << (bits - 1)
        whole = np.rint(frames * top).clip(-top, top - 1).astype(np.int64)
        whole = whole + 128 if bits == 8 else whole
        data = whole.astype("<i8").reshape(-1, 1).view(np.uint8)[:, : bits // 8].tobytes()
    header = struct.pack(
        "<HHIIHH", kind, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits
    )
    return riff(chunk(b"fmt ", header) + chunk(b"data", data))


def chunk(name: bytes, data: bytes, size: int | None = None) -> bytes:
    """One chunk of a RIFF file; ``size`` in place of its own."""
    return name + struct.pack("<I", len(data) if size is None else size) + data + bytes(len(data) % 2)


def riff(chunks: bytes, kind: bytes = b"RIFF") -> bytes:
    """A whole WAV file of these chunks."""
    return kind + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def npy(array: NDArray[Any]) -> bytes:
    """An ``.npy`` file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
