"""Static-table rANS over tokens of runs: the tables, and the reference coder in plain Python.

It codes what Huffman cannot: below one bit a symbol, and long runs of one symbol. docs/reference/codec.md has
the layout; ``common/codec/kernel/rans.c`` is the compiled twin, byte for byte.

Rules this module keeps:
- A channel's table names a *mode*, a number of ``runs`` R, and up to 256 *tokens*. A token is a run of
  0 … R−1 modes and then a symbol; or the same and then an escape, whose symbol follows in 8 bits; or, once
  a table with R > 1, ``FULL``: R modes, or fewer where they end their channel.
- With R = 1 there are no runs: each token is a symbol.
- Every activation can be coded: each run has an escape, unless R = 1 and all 256 symbols have tokens.
- There is one way to write an activation, and a decoder takes no other.
- Frequencies are integers that sum to 4096; nothing here is floating point.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offramp.common.codec.ans import StateReader, StateWriter
from offramp.common.errors import CodebookError, PayloadError

SYMBOLS = 256
BITS = 12
TOTAL = 1 << BITS
MAX_RUNS = 128
LITERAL_FREQUENCY = TOTAL // SYMBOLS

_HEADER = struct.Struct("<BBH")
_TOKEN = struct.Struct("<BBH")


class Kind(IntEnum):
    """What a token says after its run of modes."""

    SYMBOL = 0
    ESCAPE = 1
    FULL = 2


class Token(NamedTuple):
    """One entry of a table. frequency: of 4096. symbol: 0 for an escape, the mode for FULL."""

    kind: Kind
    run: int
    symbol: int
    frequency: int


@dataclass(frozen=True)
class RansTable:
    """The tokens of one table, in the order of their slots. Raises CodebookError if a rule is broken."""

    runs: int
    mode: int
    tokens: tuple[Token, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.runs <= MAX_RUNS or not 1 <= len(self.tokens) <= SYMBOLS:
            raise CodebookError(
                f"a table with {self.runs} runs and {len(self.tokens)} tokens, expected 1 … {MAX_RUNS} and "
                f"1 … {SYMBOLS}"
            )
        total = sum(token.frequency for token in self.tokens)
        if total != TOTAL or min(token.frequency for token in self.tokens) < 1:
            raise CodebookError(f"token frequencies sum to {total}, expected {TOTAL} with each at least 1")
        names = {(token.kind, token.run, token.symbol) for token in self.tokens}
        if len(names) != len(self.tokens):
            raise CodebookError("a token is named twice")
        full = {(Kind.FULL, self.runs - 1, self.mode)} if self.runs > 1 else set()
        if {name for name in names if name[0] is Kind.FULL} != full:
            raise CodebookError(f"the FULL tokens are not those of a table with {self.runs} runs")
        if any(run >= self.runs for _, run, _ in names):
            raise CodebookError(f"a token's run is not below {self.runs}")
        if self.runs > 1 and any(kind is Kind.SYMBOL and s == self.mode for kind, _, s in names):
            raise CodebookError(f"a token's symbol is the mode {self.mode}, which is coded as a run")
        escapes = {run for kind, run, s in names if kind is Kind.ESCAPE and s == 0}
        needs_none = self.runs == 1 and sum(kind is Kind.SYMBOL for kind, _, _ in names) == SYMBOLS
        if escapes != (set() if needs_none else set(range(self.runs))):
            raise CodebookError("a run has no escape, or one that it does not need")
        if any(kind is Kind.ESCAPE and s for kind, _, s in names):
            raise CodebookError("an escape names a symbol")

    @cached_property
    def starts(self) -> list[int]:
        """First slot of each token."""
        starts, start = [], 0
        for token in self.tokens:
            starts.append(start)
            start += token.frequency
        return starts

    @cached_property
    def of_slot(self) -> bytes:
        """Token index of each of the 4096 slots."""
        return b"".join(bytes([i]) * token.frequency for i, token in enumerate(self.tokens))

    @cached_property
    def index(self) -> dict[tuple[Kind, int, int], int]:
        """Token index of (kind, run, symbol)."""
        return {(token.kind, token.run, token.symbol): i for i, token in enumerate(self.tokens)}

    def tokenize(self, symbols: bytes) -> list[tuple[int, int | None]]:
        """One channel as (token index, symbol behind an escape or None)."""
        tokens: list[tuple[int, int | None]] = []
        run = 0
        for symbol in symbols:
            if self.runs > 1 and symbol == self.mode:
                run += 1
                if run == self.runs:
                    tokens.append((self.index[Kind.FULL, self.runs - 1, self.mode], None))
                    run = 0
                continue
            token = self.index.get((Kind.SYMBOL, run, symbol))
            escape = (self.index[Kind.ESCAPE, run, 0], symbol) if token is None else None
            tokens.append(escape or (token or 0, None))
            run = 0
        if run:
            tokens.append((self.index[Kind.FULL, self.runs - 1, self.mode], None))
        return tokens


@dataclass(frozen=True)
class RansTables:
    """All tables of a bundle. table_of_channel: uint16 [C]; the table that codes each channel."""

    tables: tuple[RansTable, ...]
    table_of_channel: NDArray[np.uint16]

    def __post_init__(self) -> None:
        channels = len(self.table_of_channel)
        if not 1 <= len(self.tables) <= channels:
            raise CodebookError(f"{len(self.tables)} tables for {channels} channels, expected 1 … {channels}")
        if self.table_of_channel.dtype != np.uint16 or int(self.table_of_channel.max()) >= len(self.tables):
            raise CodebookError(
                f"a channel names table {int(self.table_of_channel.max())}, there are {len(self.tables)}"
            )

    @property
    def stored_bytes(self) -> int:
        """Bytes that the tables take on the device, without the channel map."""
        return len(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The tables as stored in a bundle; ``from_bytes`` reads them."""
        parts = []
        for table in self.tables:
            parts.append(_HEADER.pack(table.runs, table.mode, len(table.tokens)))
            parts += [_TOKEN.pack(t.run, t.symbol, t.kind << 14 | t.frequency) for t in table.tokens]
        return b"".join(parts)

    @staticmethod
    def from_bytes(data: bytes, table_of_channel: list[int]) -> RansTables:
        """Read what ``to_bytes`` wrote. Raises CodebookError for anything else."""
        tables: list[RansTable] = []
        at = 0
        try:
            while at < len(data):
                if len(tables) == len(table_of_channel):
                    raise CodebookError(f"the codebook has more tables than the {len(tables)} channels")
                runs, mode, count = _HEADER.unpack_from(data, at)
                at += _HEADER.size
                if not 1 <= count <= SYMBOLS:
                    raise CodebookError(f"a table with {count} tokens, expected 1 … {SYMBOLS}")
                tokens = []
                for _ in range(count):
                    run, symbol, packed = _TOKEN.unpack_from(data, at)
                    at += _TOKEN.size
                    tokens.append(Token(Kind(packed >> 14), run, symbol, packed & 0x3FFF))
                tables.append(RansTable(runs, mode, tuple(tokens)))
        except (struct.error, ValueError):
            raise CodebookError(
                "the codebook ends within a table, or names an unknown kind of token"
            ) from None
        if not tables:
            raise CodebookError("the codebook is empty, expected at least one table")
        return RansTables(tuple(tables), np.array(table_of_channel, np.uint16))

    def to_kernel(self) -> bytes:
        """The tables as the compiled coder takes them: of one size, little-endian."""
        token = np.dtype([("frequency", "<u2"), ("run", "u1"), ("symbol", "u1"), ("kind", "u1"), ("", "u1")])
        layout = np.dtype(
            [("tokens", "<u2"), ("runs", "<u2"), ("mode", "u1"), ("", "u1"), ("token", token, SYMBOLS)]
        )
        packed = np.zeros(len(self.tables), layout)
        for row, table in zip(packed, self.tables, strict=True):
            row["tokens"], row["runs"], row["mode"] = len(table.tokens), table.runs, table.mode
            for i, each in enumerate(table.tokens):
                row["token"][i] = (each.frequency, each.run, each.symbol, each.kind, 0)
        return packed.tobytes()


def encode_lane(channels: list[tuple[RansTable, bytes]]) -> bytes:
    """One lane: its channels' symbols, coded back to front so that they are read front to back."""
    writer = StateWriter()
    for table, symbols in reversed(channels):
        for token, literal in reversed(table.tokenize(symbols)):
            if literal is not None:
                writer.put(LITERAL_FREQUENCY, literal * LITERAL_FREQUENCY, BITS)
            writer.put(table.tokens[token].frequency, table.starts[token], BITS)
    return writer.to_bytes()


class LaneDecoder:
    """Reads one lane's symbols, channel by channel. Raises PayloadError for what no encoder writes."""

    def __init__(self, lane: bytes) -> None:
        self._reader = StateReader(lane)
        self.finish = self._reader.finish

    def channel(self, table: RansTable, plane: int) -> bytes:
        """The next channel's symbols."""
        reader, out = self._reader, bytearray()
        while len(out) < plane:
            slot = reader.slot(BITS)
            index = table.of_slot[slot]
            kind, run, symbol, frequency = table.tokens[index]
            reader.advance(frequency, slot - table.starts[index], BITS)
            left = plane - len(out)
            if kind is Kind.FULL:
                out += bytes([table.mode]) * min(left, run + 1)
                continue
            if run >= left:
                raise PayloadError("the payload has a run past the end of its channel")
            if kind is Kind.ESCAPE:
                symbol, offset = divmod(reader.slot(BITS), LITERAL_FREQUENCY)
                reader.advance(LITERAL_FREQUENCY, offset, BITS)
                if (Kind.SYMBOL, run, symbol) in table.index or (table.runs > 1 and symbol == table.mode):
                    raise PayloadError(f"the payload escapes symbol {symbol}, which needs no escape")
            out += bytes([table.mode]) * run
            out.append(symbol)
        return bytes(out)
