"""The files of a program in C: what is written for a bundle, and what is the same for all."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.cli.export_c.network import Kind, Layer
from offramp.cli.export_c.program import HEADER_ROOM, Program
from offramp.cli.export_c.tables import array

FIXED = (
    "offramp.h", "offramp.c", "offramp_layers.h", "offramp_layers.c", "offramp_seal.h", "offramp_seal.c",
    "main.c", "port.h", "port_linux.c", "port_mps2.c", "mps2.ld",
)  # fmt: skip
PLAIN = frozenset(string.ascii_letters + string.digits + " .,_-+/")
CRC_START, CRC_POLYNOMIAL = 0xB704CE, 0x864CFB


DECLARED = {
    "offramp_rans.c": ['#include "rans.h"', "extern const table *const offramp_table_of_channel[];"],
    "offramp_context.c": [
        '#include "context.h"',
        "extern const uint8_t offramp_mode[];",
        "extern const int8_t offramp_rows[], offramp_columns[];",
        "extern const int16_t offramp_base[], offramp_weights[];",
    ],
    "offramp_run_huffman.c": [
        "#include <stdint.h>",
        "typedef struct {",
        "    const uint16_t *codes; /* of runs x columns cells, and then of a full run */",
        "    const uint8_t *lengths; /* 0: no such token, the row's escape is at its first column */",
        "    uint16_t runs, columns, order;",
        "} offramp_run_table;",
        "extern const offramp_run_table offramp_run_tables[];",
        "extern const uint16_t offramp_table_of_channel[], offramp_channel_order[];",
        "extern const uint8_t offramp_mode_of_channel[];",
    ],
    "offramp_huffman.c": [
        "#include <stdint.h>",
        "extern const uint16_t offramp_codes[], offramp_table_of_channel[];",
        "extern const uint8_t offramp_lengths[];",
    ],
}
"""Tables of each coder, in C."""


def write_files(program: Program) -> dict[str, bytes]:
    """Every file of the program, by name."""
    sources = files("offramp.cli.export_c") / "c"
    kernel = files("offramp.common.codec") / "kernel"
    found = {name: (sources / name).read_bytes() for name in (*FIXED, program.coder.main)}
    found |= {name: (kernel / name).read_bytes() for name in program.coder.files}
    found["offramp_model.h"] = _header(program).encode()
    found["offramp_model.c"] = _model(program).encode()
    if program.coder.files:
        found["offramp_tables.h"] = _tables_header(program).encode()
    compiled = sorted(
        name for name in found if name.endswith(".c") and not name.startswith(("port_", "main"))
    )
    makefile = (sources / "Makefile").read_text().replace("@SOURCES@", " ".join(compiled))
    found["Makefile"] = makefile.encode()
    found["size.json"] = (json.dumps(program.report(), indent=1) + "\n").encode()
    return found


def literal(text: str) -> str:
    """Any text as a C string: a manifest's names are a stranger's."""
    data = text.encode()
    return '"' + "".join(chr(b) if chr(b) in PLAIN else f"\\{b:03o}" for b in data) + '"'


def floats(values: NDArray[np.float32]) -> Iterable[str]:
    """float32 values in C, exactly."""
    return (f"{float(value).hex()}f" for value in values)


def digest_crc(digest: bytes) -> int:
    """CRC-24 of RFC 9580 of the digest: what a datagram's checksum begins with."""
    crc = CRC_START
    for byte in digest:
        crc ^= byte << 16
        for _ in range(8):
            crc = crc << 1 ^ (CRC_POLYNOMIAL | 1 << 24 if crc & 0x800000 else 0)
    return crc & 0xFFFFFF


def _defines(program: Program) -> dict[str, Any]:
    network, manifest, places = program.network, program.bundle.manifest, program.arena.places
    image, symbols = network.tensors[network.image], network.tensors[network.symbols]
    taps = [layer.kernel[0] * layer.kernel[1] for layer in network.layers if "DEPTHWISE" in layer.kind.value]
    unknown = manifest.unknown
    threshold, temperature = floats(np.array([manifest.threshold, manifest.temperature], np.float32))
    return {
        "IMAGE_HEIGHT": image.height,
        "IMAGE_WIDTH": image.width,
        "IMAGE_BYTES": image.whole_bytes,
        "CLASSES": network.classes,
        "THRESHOLD": threshold,
        "TEMPERATURE": temperature,
        "BOTH_EXITS": int(manifest.sent_answer == "both"),
        "PARTS": len(manifest.parts),
        "CENTRES": 0 if unknown is None else len(unknown.centres),
        "UNKNOWN_THRESHOLD": "0.0f"
        if unknown is None
        else next(iter(floats(np.array([unknown.threshold], np.float32)))),
        "DIGEST": "{" + ", ".join(map(str, program.bundle.digest)) + "}",
        "DIGEST_CRC": f"{digest_crc(program.bundle.digest):#x}u",
        "ARENA_BYTES": program.arena.bytes,
        "LAYERS": len(network.layers),
        "STEPS": len(program.schedule.steps),
        "MOST_TAPS": max(taps, default=1),
        "SYMBOLS": symbols.whole_bytes,
        "CODED_CHANNELS": symbols.channels,
        "CODED_HEIGHT": symbols.height,
        "CODED_WIDTH": symbols.width,
        "SYMBOLS_AT": places[network.symbols],
        "PATCH_AT": places.get("PATCH", 0),
        "PAYLOAD_AT": places["DATAGRAM"] + HEADER_ROOM,
        **{f"{name}_AT": places[name] for name in program.coder.buffers},
        **program.coder.defines,
    }


def _header(program: Program) -> str:
    lines = [
        f"/* Made by `offramp export-c` from the bundle with digest {program.bundle.digest.hex()[:16]}. */",
        "#ifndef OFFRAMP_MODEL_H",
        "#define OFFRAMP_MODEL_H",
        "",
        *(f"#define OFFRAMP_{name} {value}" for name, value in _defines(program).items()),
        "",
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _tables_header(program: Program) -> str:
    declared = DECLARED[program.coder.main]
    return (
        "\n".join(["#ifndef OFFRAMP_TABLES_H", "#define OFFRAMP_TABLES_H", "", *declared, "", "#endif"])
        + "\n"
    )


def _model(program: Program) -> str:
    network, places, rows = program.network, program.arena.places, program.schedule.rows
    index = {name: number for number, name in enumerate(network.tensors)}
    parts = ['#include "offramp.h"\n#include "offramp_layers.h"\n']
    if program.coder.files:
        parts.append('#include "offramp_tables.h"\n')
    entries = []
    for number, layer in enumerate(network.layers):
        parts.append(_constants(number, layer))
        entries.append(_entry(program, number, layer, index))
    tensors = [
        f"{{{places.get(name, 0)}, {max(rows[name], 1)}, {each.height}, {each.width}, {each.channels}, "
        f"{4 if each.real else 1}}}"
        for name, each in network.tensors.items()
    ]
    names = map(literal, program.bundle.manifest.classes)
    return "\n".join(
        [
            *parts,
            array("offramp_tensor", "offramp_tensors", tensors, "const"),
            array("offramp_layer", "offramp_layers", entries, "const"),
            array("uint8_t", "offramp_steps", program.schedule.steps, "const"),
            array("char *const", "offramp_class_names", names, "const"),
            *_of_unknown(program),
            program.coder.code,
        ]
    )


def _of_unknown(program: Program) -> list[str]:
    unknown = program.bundle.manifest.unknown
    if unknown is None:
        return []
    values = {"offramp_centres": unknown.centres, "offramp_deviations": unknown.deviations}
    return [
        array("float", name, floats(np.array(each, np.float32).ravel()), "const")
        for name, each in values.items()
    ]


def _constants(number: int, layer: Layer) -> str:
    text = ""
    if layer.weights.size:
        real = layer.weights.dtype == np.float32
        values = floats(layer.weights.ravel()) if real else layer.weights.ravel().tolist()
        text += array("float" if real else "int8_t", f"weights_{number}", values)
    if layer.bias.size:
        # The least int32 has no literal of its own; `_bias` of the reader keeps it out.
        text += array("int32_t", f"bias_{number}", layer.bias.tolist())
    if layer.scale.size:
        text += array("float", f"scale_{number}", floats(layer.scale.ravel()))
    if layer.levels.size:
        text += array("float", f"levels_{number}", floats(layer.levels.ravel()))
    return text


def _columns(layer: Layer) -> int:
    """How many tables a look-up has: one for all channels, or one for each."""
    tables = {Kind.LOOKUP: layer.weights, Kind.REAL: layer.scale}.get(layer.kind)
    return 0 if tables is None else int(tables.shape[1])


def _entry(program: Program, number: int, layer: Layer, index: dict[str, int]) -> str:
    tensors = program.network.tensors
    output = tensors.get(layer.output)
    real = layer.weights.size > 0 and layer.weights.dtype == np.float32
    fields = [
        f"OFFRAMP_{layer.kind.value}",
        index[layer.inputs[0]],
        index[layer.inputs[-1]],
        index.get(layer.output, 0),
        *layer.kernel,
        *layer.stride,
        *layer.pad,
        tensors[layer.inputs[0]].zero,
        0 if output is None else output.zero,
        layer.chunk or _columns(layer),
        layer.levels.shape[1] if layer.levels.size else 0,
        f"weights_{number}" if layer.weights.size and not real else 0,
        f"weights_{number}" if real else 0,
        f"bias_{number}" if layer.bias.size else 0,
        f"scale_{number}" if layer.scale.size else 0,
        f"levels_{number}" if layer.levels.size else 0,
    ]
    return "{" + ", ".join(map(str, fields)) + "}"
