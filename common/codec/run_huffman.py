"""Canonical Huffman code over tokens of runs: the tables, and the reference coder in plain Python.

A token stands for several symbols, so that the one bit that a code takes at least is shared among them.
docs/reference/codec.md has the layout; ``kernel/run_huffman.c`` is the compiled twin, byte for byte.

Rules this module keeps:
- A symbol is coded by its distance from its channel's *mode*, folded: 0, −1, 1, −2, … become 0, 1, 2, 3, …
- Channels of one table, in order, are dealt out to the lanes in turn, as cards are. A lane's channels of one
  table are one *segment*; runs pass from one channel to the next in it.
- A table has R *runs* and a matrix of code lengths, R × columns: row r, column z is the token of r modes and
  then the folded symbol z. Column 0 is the row's escape: the symbol follows as an Exponential-Golomb code.
  Behind the matrix is FULL: R modes, or fewer where they end their segment.
- With R = 1 there are no runs, escapes or FULL: each of 256 columns is a symbol.
- Every activation can be coded, there is one way to write it, and a decoder takes no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from offramp.common.codec.huffman import MAX_CODE_LENGTH, SYMBOLS
from offramp.common.errors import CodebookError, PayloadError

MAX_RUNS = 64
MAX_ORDER = 7
_HEADER_BYTES = 3
_MOST_ZEROS = 16
_LARGEST_LITERAL = SYMBOLS - 2

Code = tuple[int, int]
"""A code and its length in bits."""


def fold(symbols: NDArray[np.uint8], mode: NDArray[np.uint8] | int) -> NDArray[np.uint8]:
    """Distances from the mode, modulo 256, as 0, −1, 1, −2, … → 0, 1, 2, 3, …; any shape."""
    distance = np.asarray(symbols - np.asarray(mode, np.uint8), np.uint8)
    return np.asarray((distance << 1) ^ np.where(distance & 128, 255, 0).astype(np.uint8), np.uint8)


def unfold(folded: NDArray[np.uint8], mode: NDArray[np.uint8] | int) -> NDArray[np.uint8]:
    """What ``fold`` was given."""
    distance = (folded >> 1) ^ np.where(folded & 1, 255, 0).astype(np.uint8)
    return np.asarray(distance + np.asarray(mode, np.uint8), np.uint8)


@dataclass(frozen=True, eq=False)
class RunTable:
    """One table. Raises CodebookError if a rule is broken.

    lengths: uint8 [R, columns], bits; 0 where a run and symbol have no token. full: of FULL; 0 with R = 1.
    order: of the Exponential-Golomb code behind an escape, 0 … 7.
    """

    lengths: NDArray[np.uint8]
    full: int
    order: int

    def __post_init__(self) -> None:
        runs, columns = self.lengths.shape
        if not 1 <= runs <= MAX_RUNS or not 1 <= columns <= SYMBOLS or not 0 <= self.order <= MAX_ORDER:
            raise CodebookError(
                f"a table of {runs} runs, {columns} columns and order {self.order}, expected 1 … {MAX_RUNS}, "
                f"1 … {SYMBOLS} and 0 … {MAX_ORDER}"
            )
        if runs == 1 and (columns != SYMBOLS or self.order or self.full or not self.lengths.all()):
            raise CodebookError("a table without runs has not just a code for each of the 256 symbols")
        if runs > 1 and not (self.lengths[:, 0].all() and self.full):
            raise CodebookError("a table has a run without an escape, or no code for a full run")
        used = self.all_lengths[self.all_lengths > 0].astype(np.int64)
        if used.max() > MAX_CODE_LENGTH:
            raise CodebookError(f"a code has {used.max()} bits, expected at most {MAX_CODE_LENGTH}")
        one = 1 << MAX_CODE_LENGTH
        if (kraft := int((one >> used).sum())) != one:
            raise CodebookError(f"a table has Kraft sum {kraft / one:.6g}, expected exactly 1")

    @property
    def runs(self) -> int:
        """R: modes that a token may have before its symbol, and one more."""
        return len(self.lengths)

    @property
    def columns(self) -> int:
        """Folded symbols below this may have tokens of their own."""
        return int(self.lengths.shape[1])

    @cached_property
    def all_lengths(self) -> NDArray[np.uint8]:
        """Row by row, and then FULL's: uint8 [R · columns + 1], or [256] with R = 1."""
        full = [self.full] if self.runs > 1 else []
        return np.append(self.lengths.reshape(-1), np.array(full, np.uint8)).astype(np.uint8)

    @cached_property
    def codes(self) -> list[Code]:
        """Canonical codes in the order of ``all_lengths``; of length 0 where there is none."""
        lengths = self.all_lengths
        codes = [(0, 0)] * len(lengths)
        code = previous = 0
        for cell in np.lexsort((np.arange(len(lengths)), lengths)).tolist():
            length = int(lengths[cell])
            code <<= length - previous
            if length:
                codes[cell] = (code, length)
                code += 1
            previous = length
        return codes

    @cached_property
    def cells(self) -> dict[Code, int]:
        """Place in ``codes`` of each code."""
        return {code: cell for cell, code in enumerate(self.codes) if code[1]}

    def tokenize(self, folded: bytes) -> list[Code]:
        """The codes of one segment, of folded symbols."""
        codes: list[Code] = []
        if self.runs == 1:
            return [self.codes[symbol] for symbol in folded]
        run = 0
        for symbol in folded:
            if not symbol:
                run += 1
                if run == self.runs:
                    codes.append(self.codes[-1])
                    run = 0
                continue
            row = run * self.columns
            if symbol < self.columns and self.codes[row + symbol][1]:
                codes.append(self.codes[row + symbol])
            else:
                codes += [self.codes[row], literal_code(symbol, self.order)]
            run = 0
        if run:
            codes.append(self.codes[-1])
        return codes


def literal_code(symbol: int, order: int) -> Code:
    """The Exponential-Golomb code of a folded symbol, 1 … 255: at most 16 bits."""
    value = symbol - 1 + (1 << order)
    return value, 2 * value.bit_length() - order - 1


@dataclass(frozen=True, eq=False)
class RunTables:
    """All tables of a bundle. table_of_channel: uint16 [C]; mode_of_channel: uint8 [C]."""

    tables: tuple[RunTable, ...]
    table_of_channel: NDArray[np.uint16]
    mode_of_channel: NDArray[np.uint8]

    def __post_init__(self) -> None:
        channels = len(self.table_of_channel)
        if not 1 <= len(self.tables) <= channels:
            raise CodebookError(f"{len(self.tables)} tables for {channels} channels, expected 1 … {channels}")
        if self.table_of_channel.dtype != np.uint16 or int(self.table_of_channel.max()) >= len(self.tables):
            raise CodebookError(
                f"a channel names table {int(self.table_of_channel.max())}, there are {len(self.tables)}"
            )
        if self.mode_of_channel.shape != (channels,) or self.mode_of_channel.dtype != np.uint8:
            raise CodebookError(
                f"{len(self.mode_of_channel)} modes for {channels} channels, expected one for each"
            )

    @property
    def stored_bytes(self) -> int:
        """Bytes that the tables take on the device, without the channels' tables and modes."""
        return len(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The tables as stored in a bundle; ``from_bytes`` reads them."""
        parts = []
        for table in self.tables:
            parts.append(bytes([table.runs, table.columns - 1, table.order]))
            parts.append(_pack_lengths(table.all_lengths))
        return b"".join(parts)

    @staticmethod
    def from_bytes(data: bytes, table_of_channel: list[int], mode_of_channel: list[int]) -> RunTables:
        """Read what ``to_bytes`` wrote. Raises CodebookError for anything else."""
        tables: list[RunTable] = []
        at = 0
        while at < len(data):
            if len(tables) == len(table_of_channel):
                raise CodebookError(f"the codebook has more tables than the {len(tables)} channels")
            header = data[at : at + _HEADER_BYTES]
            if len(header) < _HEADER_BYTES or not 1 <= header[0] <= MAX_RUNS:
                raise CodebookError(f"the codebook has {header.hex()} where a table should start")
            runs, columns, order = header[0], header[1] + 1, header[2]
            cells = runs * columns
            lengths, size = _unpack_lengths(data[at + _HEADER_BYTES :], cells + (runs > 1))
            full = int(lengths[cells]) if runs > 1 else 0
            tables.append(RunTable(lengths[:cells].reshape(runs, columns), full, order))
            at += _HEADER_BYTES + size
        if not tables:
            raise CodebookError("the codebook is empty, expected at least one table")
        return RunTables(
            tuple(tables), np.array(table_of_channel, np.uint16), np.array(mode_of_channel, np.uint8)
        )

    def to_kernel(self) -> bytes:
        """The tables as the compiled coder takes them: a length in each byte."""
        parts = [
            bytes([table.runs, table.columns - 1, table.order]) + table.all_lengths.tobytes()
            for table in self.tables
        ]
        return b"".join(parts)


def _pack_lengths(lengths: NDArray[np.uint8]) -> bytes:
    """Half bytes, the low one first: a length; or 0, and how many zeros more there are, up to 15."""
    halves: list[int] = []
    for is_zero, group in groupby(lengths.tolist(), lambda length: length == 0):
        if not is_zero:
            halves += group
            continue
        count = len(list(group))
        halves += [0, _MOST_ZEROS - 1] * (count // _MOST_ZEROS)
        halves += [0, count % _MOST_ZEROS - 1] if count % _MOST_ZEROS else []
    halves += [0] * (len(halves) % 2)
    return bytes(low | high << 4 for low, high in zip(halves[0::2], halves[1::2], strict=True))


def _unpack_lengths(data: bytes, count: int) -> tuple[NDArray[np.uint8], int]:
    """This many lengths, and the bytes that they took. Raises CodebookError."""
    lengths = np.zeros(count, np.uint8)
    halves = (half for byte in data for half in (byte & 15, byte >> 4))
    cell = used = 0
    for half in halves:
        used += 1
        if half:
            lengths[cell] = half
            cell += 1
        else:
            more = next(halves, None)
            if more is None:
                break
            cell += 1 + more
            used += 1
        if cell >= count:
            break
    if cell != count:
        raise CodebookError(f"a table of the codebook has {cell} code lengths, expected {count}")
    if used % 2 and next(halves):
        raise CodebookError("a table of the codebook is not padded with zeros")
    return lengths, -(-used // 2)


@dataclass(frozen=True)
class Segment:
    """Channels of one lane that have one table, in the order in which they are coded."""

    table: int
    channels: tuple[int, ...]


def lane_segments(table_of_channel: Sequence[int], lanes: int) -> list[list[Segment]]:
    """Each lane's segments: channels in the order of their tables, dealt out in turn."""
    order = sorted(range(len(table_of_channel)), key=lambda channel: (table_of_channel[channel], channel))
    found = []
    for lane in range(lanes):
        by_table: dict[int, list[int]] = {}
        for channel in order[lane::lanes]:
            by_table.setdefault(int(table_of_channel[channel]), []).append(channel)
        found.append([Segment(table, tuple(channels)) for table, channels in by_table.items()])
    return found


def encode_lane(segments: list[tuple[RunTable, bytes]]) -> bytes:
    """One lane: its segments' folded symbols, the most significant bit first, and zeros to a whole byte."""
    bits, count = 0, 0
    out = bytearray()
    for table, folded in segments:
        for code, length in table.tokenize(folded):
            bits, count = bits << length | code, count + length
            while count >= 8:
                count -= 8
                out.append(bits >> count)
                bits &= (1 << count) - 1
    if count:
        out.append(bits << (8 - count))
    return bytes(out)


class LaneDecoder:
    """Reads one lane's folded symbols, by segment. Raises PayloadError for what no encoder writes."""

    def __init__(self, lane: bytes) -> None:
        self._lane = lane
        self._at = 0

    def segment(self, table: RunTable, symbols: int) -> bytes:
        """The next segment's folded symbols."""
        out = bytearray()
        while len(out) < symbols:
            cell = self._cell(table)
            run, symbol = divmod(cell, table.columns)
            left = symbols - len(out)
            if table.runs == 1:
                out.append(symbol)
                continue
            if cell == table.runs * table.columns:
                out += bytes(min(left, table.runs))
                continue
            if run >= left:
                raise PayloadError("the payload has a run past the end of its segment")
            if not symbol:
                symbol = self._literal(table.order)
                if symbol < table.columns and table.lengths[run, symbol]:
                    raise PayloadError(f"the payload escapes symbol {symbol}, which needs no escape")
            out += bytes(run)
            out.append(symbol)
        return bytes(out)

    def finish(self) -> None:
        """Call it after the last segment."""
        if left := len(self._lane) - -(-self._at // 8):
            raise PayloadError(f"a lane of the payload has {left} bytes left over")
        if self._at % 8 and self._lane[-1] << (self._at % 8) & 255:
            raise PayloadError("the payload's padding bits are not zero")

    def _bit(self) -> int:
        byte, place = divmod(self._at, 8)
        if byte >= len(self._lane):
            raise PayloadError(
                f"the payload has a lane of {len(self._lane)} bytes that ends within a segment"
            )
        self._at += 1
        return self._lane[byte] >> (7 - place) & 1

    def _cell(self, table: RunTable) -> int:
        code = length = 0
        while (cell := table.cells.get((code, length))) is None:
            code, length = code << 1 | self._bit(), length + 1
        return cell

    def _literal(self, order: int) -> int:
        zeros = 0
        while not self._bit():
            zeros += 1
            if zeros + order + 1 > 9:
                raise PayloadError("the payload has an escaped symbol above 255")
        value = 1
        for _ in range(zeros + order):
            value = value << 1 | self._bit()
        value -= 1 << order
        if value > _LARGEST_LITERAL:
            raise PayloadError("the payload has an escaped symbol above 255")
        return value + 1
