"""Small integer heads with what is awkward in them: odd sides, uneven borders, channels not a
multiple of four. And a program around an exported one."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from offramp.cli.export_c.emit import write_files
from offramp.cli.export_c.program import Program
from offramp.common.bundle.document import parse_manifest
from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import CODEBOOK, HEAD, TAIL
from offramp.common.bundle.write import write_bundle
from offramp.common.codec.context import ContextModel
from offramp.common.codec.huffman import build_codebook
from tests import toy

HEIGHT, WIDTH = 11, 7
SHAPE = (4, 6, 4)
SCALE, ZERO = 0.03125, 16
CLASSES = 3
FLAGS = (
    *("-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-pedantic", "-Werror"),
    "-DOFFRAMP_NO_HEAP",
)
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


class Head:
    """A graph of quantized layers, built in the order of calls; each returns its output's name."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self.scales: dict[str, tuple[str, str]] = {"image": self._scale("image", 1 / 64, 128)}

    def _put(self, name: str, values: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def _scale(self, name: str, scale: float, zero: int) -> tuple[str, str]:
        return self._put(f"{name}.s", np.float32(scale)), self._put(f"{name}.z", np.uint8(zero))

    def _node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _numbers(self, name: str, user: str) -> str:
        return self._node("DequantizeLinear", [name, *self.scales[name]], f"{name}.for.{user}")

    def _quantized(self, numbers: str, name: str, scale: float, zero: int) -> str:
        self.scales[name] = self._scale(name, scale, zero)
        return self._node("QuantizeLinear", [numbers, *self.scales[name]], name)

    def _weights(self, name: str, shape: Sequence[int]) -> list[str]:
        outputs = shape[0]
        values = self.rng.integers(-127, 128, shape).astype(np.int8)
        scale = self.rng.uniform(0.5, 1.5, outputs).astype(np.float32) / np.float32(
            127 * np.prod(shape[1:]) ** 0.5
        )
        bias = self.rng.integers(-2000, 2000, outputs).astype(np.int32)
        found = []
        for part, numbers, zero, factor in (
            ("weight", values, np.zeros(outputs, np.int8), np.float32(1)),
            ("bias", bias, np.zeros(outputs, np.int32), np.float32(0.02)),
        ):
            names = (
                self._put(f"{name}.{part}", numbers),
                self._put(f"{name}.{part}.s", scale * factor),
                self._put(f"{name}.{part}.z", zero),
            )
            found.append(self._node("DequantizeLinear", names, f"{name}.{part}.f", axis=0))
        return found

    def conv(
        self, data: str, name: str, shape: Sequence[int], *, scale: float = 0.03, zero: int = 0, **at: Any
    ) -> str:
        """shape: O, I / groups, kernel height and width; at: the attributes of Conv."""
        numbers = self._numbers(data, name)
        result = self._node(
            "Conv", [numbers, *self._weights(name, shape)], f"{name}.f", kernel_shape=shape[2:], **at
        )
        # ONNX says the scale of a bias: the input's times the weights'.
        self._bias_scale(name, data)
        return self._quantized(result, name, scale, zero)

    def _bias_scale(self, name: str, data: str) -> None:
        by_name = {each.name: each for each in self.constants}
        weights = numpy_helper.to_array(by_name[f"{name}.weight.s"])
        scale = numpy_helper.to_array(by_name[self.scales[data][0]])
        by_name[f"{name}.bias.s"].CopyFrom(numpy_helper.from_array(weights * scale, f"{name}.bias.s"))

    def add(self, first: str, second: str, name: str, *, scale: float = 0.05, zero: int = 90) -> str:
        """The sum of two."""
        numbers = [self._numbers(first, name), self._numbers(second, f"{name}.2")]
        return self._quantized(self._node("Add", numbers, f"{name}.f"), name, scale, zero)

    def logits(self, data: str, inputs: int) -> None:
        """The last product."""
        flat = self._node("Flatten", [data], "flat", axis=1)
        self.scales["flat"] = self.scales[data]
        self._node(
            "Gemm",
            [self._numbers(flat, "logits"), *self._weights("dense", (CLASSES, inputs))],
            "logits",
            transB=1,
        )
        self._bias_scale("dense", "flat")

    def bytes(self) -> bytes:
        """The graph."""
        inputs = [toy.port("image", TensorProto.UINT8, 3, HEIGHT, WIDTH)]
        outputs = [
            toy.port("symbols", TensorProto.UINT8, *SHAPE),
            toy.port("logits", TensorProto.FLOAT, CLASSES),
        ]
        return bytes(toy.model(self.nodes, inputs, outputs, self.constants).SerializeToString())


def head(seed: int = 0) -> Head:
    """Stem, a residual block, a depthwise kernel of 5×5 at stride 2 with uneven borders, and an exit."""
    made = Head(seed)
    stem = made.conv("image", "stem", (6, 3, 3, 3), zero=3, pads=[1, 1, 1, 1])
    wide = made.conv(stem, "wide", (9, 6, 1, 1))
    deep = made.conv(wide, "deep", (9, 1, 3, 3), group=9, pads=[1, 1, 1, 1])
    narrow = made.conv(deep, "narrow", (6, 9, 1, 1), zero=128)
    block = made.add(narrow, stem, "block")
    down = made.conv(block, "down", (6, 1, 5, 5), zero=100, group=6, strides=[2, 2], pads=[2, 2, 2, 2])
    symbols = made.conv(down, "symbols", (4, 6, 1, 3), scale=SCALE, zero=ZERO, pads=[0, 1, 0, 1])
    pool = made.conv(symbols, "pool", (4, 1, 3, 3), scale=0.05, zero=110, group=4, strides=[2, 1])
    made.logits(pool, 4 * 2 * 2)
    return made


def tail() -> bytes:
    """Any tail: nobody runs it here."""
    nodes = [
        helper.make_node("DequantizeLinear", ["symbols", "s", "z"], ["numbers"]),
        helper.make_node("Flatten", ["numbers"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(1, np.float32), "s"),
        numpy_helper.from_array(np.array(0, np.uint8), "z"),
        numpy_helper.from_array(np.ones((int(np.prod(SHAPE)), CLASSES), np.float32), "w"),
    ]
    ports = [toy.port("symbols", TensorProto.UINT8, *SHAPE)], [toy.port("logits", TensorProto.FLOAT, CLASSES)]
    return bytes(toy.model(nodes, *ports, constants).SerializeToString())


def write(directory: Path, codec: str = "rans", graph: bytes | None = None, **changes: Any) -> Bundle:
    """A bundle with such a head; codec: rans, context, raw, huffman or run-huffman."""
    files = {HEAD: head().bytes() if graph is None else graph, TAIL: tail()}
    described: dict[str, Any] = {"kind": codec}
    if codec == "rans":
        tables = toy.rans_tables()
        files[CODEBOOK] = tables.to_bytes()
        described |= {"lanes": 2, "table_of_channel": tables.table_of_channel.tolist()}
    elif codec == "huffman":
        rng = np.random.default_rng(9)
        # Narrow around the symbols that are likely, so that codes are shorter than the symbols.
        counts = np.exp(-np.abs(np.arange(256) - ZERO) / rng.uniform(0.7, 2, (SHAPE[0], 1))) * 1e6
        book = build_codebook(counts.astype(np.int64), "channel")
        files[CODEBOOK] = book.to_bytes()
        described |= {"lanes": 2, "table_of_channel": book.table_of_channel.tolist()}
    elif codec == "run-huffman":
        runs = toy.run_huffman_tables()
        files[CODEBOOK] = runs.to_bytes()
        of_channel, modes = runs.table_of_channel.tolist(), [ZERO - 1, ZERO, ZERO, ZERO + 1]
        described |= {"lanes": 2, "table_of_channel": of_channel, "mode_of_channel": modes}
    elif codec == "context":
        files[CODEBOOK] = context_model().to_bytes()
    document = toy.manifest({name: data for name, data in files.items() if name != CODEBOOK})
    document |= {
        "files": toy.manifest(files)["files"],
        "classes": ["left", "right", "över"],
        "preprocessing": {"color": "RGB", "height": HEIGHT, "width": WIDTH, "resize": "bilinear"},
        "activation": {"shape": list(SHAPE), "scale": SCALE, "zero_point": ZERO},
        "codec": described,
        **changes,
    }
    return write_bundle(directory, parse_manifest(json.dumps(document).encode()), files)


def context_model() -> ContextModel:
    """One with random weights, and escapes."""
    rng, (channels, height, width), reach = np.random.default_rng(3), SHAPE, 3
    weights = rng.integers(-9, 10, (channels, 2, 2, 5 * channels)).astype(np.int8)
    for channel in range(channels):
        weights[channel, :, :, 4 * channels + channel :] = 0
    return ContextModel(
        SHAPE,
        np.full(channels, ZERO, np.uint8),
        rng.integers(-60, 60, (channels, 2 * reach + 2)).astype(np.int16),
        rng.integers(-9, 10, (channels, height, 2)).astype(np.int8),
        rng.integers(-9, 10, (channels, width, 2)).astype(np.int8),
        weights,
    )


def images(count: int, seed: int = 0, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> NDArray[np.uint8]:
    """Noise around a level, uint8 [N, 3, H, W]."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, (count, 3, 1, 1))
    return (levels + rng.normal(0, 40, (count, 3, *shape))).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Line:
    """What a program says of one image."""

    best: int
    confidence: float
    datagram: bytes


def build(program: Program, folder: Path, *flags: str) -> Path:
    """Compile an exported program for this machine, all warnings errors; returns the executable."""
    compiler = shutil.which("gcc")
    assert compiler is not None, "CONTRIBUTING.md: a C compiler is needed"
    folder.mkdir(parents=True)
    for name, data in write_files(program).items():
        (folder / name).write_bytes(data)
    sources = [each.name for each in sorted(folder.glob("*.c")) if each.name != "port_mps2.c"]
    command = [compiler, *FLAGS, *(flags or ("-O2",)), *sources, "-o", "head", "-lm"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "head"


def threshold_record(threshold: float) -> bytes:
    """Start again with this threshold."""
    return struct.pack("<cf", b"T", threshold)


def image_record(image: NDArray[np.uint8]) -> bytes:
    """One image, [3, H, W]."""
    return b"I" + np.ascontiguousarray(image.transpose(1, 2, 0)).tobytes()


def reply_record(reply: bytes) -> bytes:
    """One reply."""
    return b"R" + struct.pack("<H", len(reply)) + reply


def run(program: Path, records: Iterable[bytes]) -> list[str]:
    """The lines that it prints for these records."""
    done = subprocess.run([program], input=b"".join(records), capture_output=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


def parsed(line: str) -> Line:
    """A line of an image."""
    word, best, confidence, size, datagram = line.split()[:5]
    assert word == "image"
    data = b"" if datagram == "-" else bytes.fromhex(datagram)
    assert len(data) == int(size)
    (number,) = struct.unpack(">f", bytes.fromhex(confidence))
    return Line(int(best), number, data)
