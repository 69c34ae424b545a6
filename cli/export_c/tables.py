"""The codec's tables as constants of C, and the memory that its encoder works in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import Context, Huffman, Rans, Raw, RunHuffman
from offramp.common.codec.context import ContextModel
from offramp.common.codec.huffman import Codebook
from offramp.common.codec.rans import Kind, RansTable, RansTables
from offramp.common.codec.run_huffman import RunTables
from offramp.common.errors import BundleError

ESCAPE_FLAG = 1 << 15
RANS_TOTAL = 4096


@dataclass(frozen=True)
class Coder:
    """What a codec adds. files: of the compiled coder, ``main`` of the C form. code: its constants, in C.

    buffers: name and bytes of its scratch memory. payload_bytes: most that it writes. flash_bytes: of the
    constants.
    """

    main: str
    files: tuple[str, ...]
    code: str
    defines: dict[str, int]
    buffers: dict[str, int]
    payload_bytes: int
    flash_bytes: int


def array(kind: str, name: str, values: Iterable[int | float | str], extra: str = "static const") -> str:
    """One array of constants in C, in lines of at most 110 characters."""
    lines, line = [f"{extra} {kind} {name}[] = {{"], "   "
    for value in values:
        text = f" {value},"
        if len(line) + len(text) > 110:
            lines.append(line)
            line = "   "
        line += text
    return "\n".join([*lines, line, "};"]) + "\n"


def make_coder(bundle: Bundle) -> Coder:
    """The coder of what crosses behind the head. Raises BundleError for a crossing that is not C, H, W."""
    crossing = bundle.manifest.crossings[0]
    codec, tables = crossing.codec, bundle.tables
    if crossing.channel_axis != 0 or len(crossing.shape) != 3:
        raise BundleError(f"{bundle.path}: sends an activation of {crossing.shape}, export-c takes C, H, W")
    if isinstance(codec, Raw):
        return _raw(crossing.coded_shape)
    if isinstance(codec, Rans) and isinstance(tables, RansTables):
        return _rans(tables, crossing.coded_shape, codec.lanes)
    if isinstance(codec, Context) and isinstance(tables, ContextModel):
        return _context(tables, crossing.coded_shape)
    if isinstance(codec, Huffman) and isinstance(tables, Codebook):
        return _huffman(tables, crossing.coded_shape, codec.lanes)
    assert isinstance(codec, RunHuffman) and isinstance(tables, RunTables)
    return _run_huffman(tables, crossing.coded_shape, codec.lanes)


def _raw(shape: tuple[int, int, int]) -> Coder:
    return Coder("offramp_raw.c", (), "", {}, {}, shape[0] * shape[1] * shape[2], 0)


def _huffman(tables: Codebook, shape: tuple[int, int, int], lanes: int) -> Coder:
    symbols = shape[0] * shape[1] * shape[2]
    code = "\n".join(
        [
            array("uint16_t", "offramp_codes", tables.codes.ravel().tolist(), "const"),
            array("uint8_t", "offramp_lengths", tables.lengths.ravel().tolist(), "const"),
            array("uint16_t", "offramp_table_of_channel", tables.table_of_channel.tolist(), "const"),
        ]
    )
    return Coder(
        main="offramp_huffman.c",
        files=("coder.h", "bytes.h"),
        code=code,
        defines={"LANES": lanes},
        buffers={},
        payload_bytes=symbols + 4 * (lanes - 1),
        flash_bytes=3 * tables.lengths.size + 2 * shape[0],
    )


def _run_huffman(tables: RunTables, shape: tuple[int, int, int], lanes: int) -> Coder:
    of_channel, symbols = tables.table_of_channel.tolist(), shape[0] * shape[1] * shape[2]
    parts, entries = [], []
    for number, table in enumerate(tables.tables):
        codes = (code for code, _ in table.codes)
        parts.append(array("uint16_t", f"codes_of_{number}", codes))
        parts.append(array("uint8_t", f"lengths_of_{number}", table.all_lengths.tolist()))
        sizes = f"{table.runs}, {table.columns}, {table.order}"
        entries.append(f"{{codes_of_{number}, lengths_of_{number}, {sizes}}}")
    order = sorted(range(shape[0]), key=lambda channel: (of_channel[channel], channel))
    parts += [
        array("offramp_run_table", "offramp_run_tables", entries, "const"),
        array("uint16_t", "offramp_table_of_channel", of_channel, "const"),
        array("uint16_t", "offramp_channel_order", order, "const"),
        array("uint8_t", "offramp_mode_of_channel", tables.mode_of_channel.tolist(), "const"),
    ]
    cells = sum(table.all_lengths.size for table in tables.tables)
    return Coder(
        main="offramp_run_huffman.c",
        files=("coder.h", "bytes.h"),
        code="\n".join(parts),
        defines={"LANES": lanes},
        buffers={},
        payload_bytes=symbols + 4 * (lanes - 1),
        flash_bytes=3 * cells + 16 * len(tables.tables) + 5 * shape[0],
    )


def _rans(tables: RansTables, shape: tuple[int, int, int], lanes: int) -> Coder:
    channels, plane = shape[0], shape[1] * shape[2]
    symbols = channels * plane
    parts, flash = [], 0
    for number, table in enumerate(tables.tables):
        code, size = _rans_table(number, table)
        parts.append(code)
        flash += size
    entries = [f"&table_{int(each)}" for each in tables.table_of_channel]
    parts.append(array("table *const", "offramp_table_of_channel", entries, "const"))
    words = (symbols - 1) // 2 + 2 * plane + 2
    return Coder(
        main="offramp_rans.c",
        files=("rans.c", "rans.h", "ans.h", "bytes.h", "coder.h"),
        code="\n".join(parts),
        defines={"LANES": lanes},
        buffers={"TOKENS": lanes * plane, "LITERALS": lanes * plane, "WORDS": 2 * lanes * words},
        payload_bytes=symbols + 4 * lanes + 4 * (lanes - 1),
        flash_bytes=flash + 4 * channels,
    )


def _rans_table(number: int, table: RansTable) -> tuple[str, int]:
    """One table, as ``rans.h`` has it without a heap, and its bytes."""
    column: dict[int, int] = {}
    modes = 0
    for token in table.tokens:
        modes += token.frequency * token.run
        if token.kind is Kind.SYMBOL:
            column.setdefault(token.symbol, len(column))
    columns = len(column) + 1
    escapes = {token.run: index for index, token in enumerate(table.tokens) if token.kind is Kind.ESCAPE}
    cells = np.zeros((table.runs, columns), np.uint8)
    cells += np.array([escapes.get(run, 0) for run in range(table.runs)], np.uint8)[:, None]
    full, encode = 0, []
    for index, (token, start) in enumerate(zip(table.tokens, table.starts, strict=True)):
        escape = token.kind is Kind.ESCAPE
        encode.append(f"{{{token.frequency}, {start | ESCAPE_FLAG * escape}}}")
        if token.kind is Kind.FULL:
            full = index
        elif not escape:
            cells[token.run, column[token.symbol]] = index
    # 256 columns of symbols need no escape: their last one is never looked up as such.
    columns_of = [min(column.get(symbol, len(column)), 255) for symbol in range(256)]
    code = (
        array("encode_entry", f"encode_{number}", encode)
        + array("uint8_t", f"column_{number}", columns_of)
        + array("uint8_t", f"token_{number}", cells.ravel().tolist())
        + f"static const table table_{number} = {{encode_{number}, column_{number}, token_{number}, "
        f"{columns}, {table.runs}, {table.mode}, {full}, {int(modes >= RANS_TOTAL)}}};\n"
    )
    return code, 4 * len(encode) + 256 + cells.size + 24


def _context(model: ContextModel, shape: tuple[int, int, int]) -> Coder:
    channels, height, width = shape
    inputs, symbols = 10 * channels, channels * height * width
    mode, base, rows, columns, weights = (
        getattr(model, name).ravel().tolist() for name in ("mode", "base", "rows", "columns", "weights")
    )
    code = "\n".join(
        [
            array("uint8_t", "offramp_mode", mode, "const"),
            array("int16_t", "offramp_base", base, "const"),
            array("int8_t", "offramp_rows", rows, "const"),
            array("int8_t", "offramp_columns", columns, "const"),
            array("int16_t", "offramp_weights", weights, "const"),
        ]
    )
    return Coder(
        main="offramp_context.c",
        files=("context.c", "context.h", "ans.h", "bytes.h", "coder.h"),
        code=code,
        defines={"REACH": model.reach},
        buffers={
            "NEAR": 2 * (height + 1) * (width + 2) * channels,
            "AROUND": 2 * inputs,
            "CODED_STEPS": 2 * symbols * 6,
            "WORDS": 2 * (2 * symbols + 1),
        },
        payload_bytes=4 * symbols + 8,
        flash_bytes=len(mode) + 2 * len(base) + len(rows) + len(columns) + 2 * len(weights),
    )
