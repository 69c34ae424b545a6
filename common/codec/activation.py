"""Activations to payload bytes and back; pure functions of bytes, no I/O.

Invariants of a payload (docs/reference/codec.md has its layout):
- It codes exactly C·H·W symbols; that number comes from the manifest, never from the payload.
- ``RAW``: one byte a symbol, in C, H, W order.
- ``BUNDLE``: the lanes of ``lanes.py``, each coded with the tables of its channels: Huffman codewords, of
  symbols or of runs (``run_huffman.py``), most significant bit first and zero bits up to the next byte; or
  rANS (``rans.py``). Or one lane of rANS whose frequencies follow the symbols before (``context.py``).
- A payload is used up exactly, and there is one payload for an activation: a decoder takes what the encoder
  writes and nothing else.
- A coded payload is shorter than the raw one. Where coding would not be shorter, ``RAW`` is sent.

Each coder exists twice: in Python, here and in those three, the reference; and compiled, in ``kernel/``. They
write the same bytes. The compiled one is used where it was built; ``OFFRAMP_CODER=reference`` forbids it.
"""

from __future__ import annotations

import importlib
import math
import os
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import islice
from types import ModuleType
from typing import Protocol

import numpy as np
from bitarray import bitarray, decodetree
from bitarray.util import int2ba
from numpy.typing import NDArray

from offramp.common.codec import rans, run_huffman
from offramp.common.codec.context import ContextCoder, ContextModel
from offramp.common.codec.huffman import SYMBOLS, Codebook
from offramp.common.codec.lanes import MAX_LANES, join_lanes, lane_channels, split_lanes
from offramp.common.codec.rans import RansTables
from offramp.common.codec.run_huffman import RunTables
from offramp.common.errors import CodecError, PayloadError

_kernel: ModuleType | None
try:
    _kernel = importlib.import_module("offramp.common.codec._kernel")
except ImportError:  # no compiler where the package was installed
    _kernel = None

Symbols = NDArray[np.uint8]
Shape = tuple[int, int, int]
Tables = Codebook | RunTables | RansTables | ContextModel


class CodecId(IntEnum):
    """How one frame's payload is coded; the values are the wire's (``offramp.v1.Codec``)."""

    BUNDLE = 0
    """The codec that the bundle's manifest names."""
    RAW = 1
    PICTURE = 2
    """No activation but a picture (``picture.py``), for a server that takes them."""


class Coder(Protocol):
    """Codes the C·H·W symbols of one activation, as bytes in C, H, W order; several threads may share one."""

    def encode(self, symbols: bytes, /) -> bytes:
        """The payload of these symbols; it may be longer than they are."""

    def decode(self, payload: bytes, /) -> bytes:
        """The symbols of a payload of at most C·H·W bytes.

        Raises PayloadError for a longer one, and for one that ``encode`` does not write.
        """


def coder_kind() -> str:
    """``compiled`` or ``reference``: which coders this process uses."""
    return "reference" if _kernel is None or os.environ.get("OFFRAMP_CODER") == "reference" else "compiled"


def make_coder(shape: Shape, tables: Tables, lanes: int) -> Coder:
    """The coder for activations of this shape. Raises ValueError where they do not fit together."""
    if isinstance(tables, ContextModel):
        if (tables.shape, lanes) != (shape, 1):
            raise ValueError(
                f"a context model for {tables.shape} and one lane, the activation is {shape} in {lanes} lanes"
            )
    elif len(tables.table_of_channel) != shape[0]:
        raise ValueError(f"tables for {len(tables.table_of_channel)} channels, the activation is {shape}")
    elif not 1 <= lanes <= min(MAX_LANES, shape[0]):
        raise ValueError(f"{lanes} lanes, expected 1 … {min(MAX_LANES, shape[0])} for {shape[0]} channels")
    if coder_kind() == "compiled":
        return CompiledCoder(shape, tables, lanes)
    if isinstance(tables, ContextModel):
        return ContextCoder(tables)
    if isinstance(tables, Codebook):
        return HuffmanCoder(shape, tables, lanes)
    if isinstance(tables, RunTables):
        return RunHuffmanCoder(shape, tables, lanes)
    return RansCoder(shape, tables, lanes)


class CompiledCoder:
    """Any of the coders, in C.

    One in C has scratch memory, so each call has one for itself: an idle one, or a new one where all are
    busy. A lock would be held for ever in a process that is forked meanwhile.
    """

    def __init__(self, shape: Shape, tables: Tables, lanes: int) -> None:
        self._arguments = shape, tables, lanes
        self._idle = deque([self._make(shape, tables, lanes)])

    @staticmethod
    def _make(shape: Shape, tables: Tables, lanes: int) -> Coder:
        assert _kernel is not None
        coder: Coder
        if isinstance(tables, ContextModel):
            coder = _kernel.Context(*shape, tables.to_bytes())
            return coder
        channels, plane = shape[0], shape[1] * shape[2]
        of_channel = np.ascontiguousarray(tables.table_of_channel, np.uint16).tobytes()
        if isinstance(tables, Codebook):
            coder = _kernel.Huffman(channels, plane, lanes, tables.lengths.tobytes(), of_channel)
        elif isinstance(tables, RunTables):
            modes = np.ascontiguousarray(tables.mode_of_channel).tobytes()
            coder = _kernel.RunHuffman(channels, plane, lanes, tables.to_kernel(), of_channel, modes)
        else:
            coder = _kernel.Rans(channels, plane, lanes, tables.to_kernel(), of_channel)
        return coder

    def encode(self, symbols: bytes, /) -> bytes:
        """See ``Coder``."""
        coder = self._take()
        try:
            return coder.encode(symbols)
        finally:
            self._idle.append(coder)

    def decode(self, payload: bytes, /) -> bytes:
        """See ``Coder``."""
        coder = self._take()
        try:
            return coder.decode(payload)
        except ValueError as error:
            raise PayloadError(str(error)) from None
        finally:
            self._idle.append(coder)

    def _take(self) -> Coder:
        try:
            return self._idle.pop()
        except IndexError:
            return self._make(*self._arguments)


@dataclass(frozen=True)
class HuffmanCoder:
    """Static canonical Huffman code, written with ``bitarray``: the reference."""

    shape: Shape
    codebook: Codebook
    lanes: int

    @cached_property
    def _codes(self) -> list[dict[int, bitarray]]:
        book = self.codebook
        return [
            {s: int2ba(int(codes[s]), length=int(lengths[s])) for s in range(SYMBOLS)}
            for codes, lengths in zip(book.codes, book.lengths, strict=True)
        ]

    @cached_property
    def _trees(self) -> list[decodetree]:
        return [decodetree(codes) for codes in self._codes]

    @property
    def _plane(self) -> int:
        return self.shape[1] * self.shape[2]

    def encode(self, symbols: bytes, /) -> bytes:
        """See ``Coder``."""
        lanes = []
        for channels in lane_channels(self.shape[0], self.lanes):
            bits = bitarray()
            for c in channels:
                plane = symbols[c * self._plane : (c + 1) * self._plane]
                bits.encode(self._codes[self.codebook.table_of_channel[c]], plane)
            lanes.append(bits.tobytes())
        return join_lanes(lanes, len(symbols))

    def decode(self, payload: bytes, /) -> bytes:
        """See ``Coder``."""
        symbols = self.shape[0] * self._plane
        lanes = split_lanes(payload, self.lanes, symbols)
        spans = lane_channels(self.shape[0], self.lanes)
        return b"".join(self._lane(lane, span) for lane, span in zip(lanes, spans, strict=True))

    def _lane(self, lane: bytes, channels: range) -> bytes:
        bits = bitarray()
        bits.frombytes(lane)
        planes = []
        position = 0
        for c in channels:
            table = self.codebook.table_of_channel[c]
            # No farther than a channel can reach: to copy all that is left for each takes quadratic time.
            reach = position + self._plane * int(self.codebook.lengths[table].max())
            try:
                plane = bytes(islice(bits[position:reach].decode(self._trees[table]), self._plane))
            except ValueError:  # the bits end within a codeword
                plane = b""
            if len(plane) < self._plane:
                raise PayloadError(
                    f"the payload has a lane of {len(lane)} bytes that ends within channel {c}"
                )
            used = self.codebook.lengths[table][np.frombuffer(plane, np.uint8)]
            position += int(used.sum(dtype=np.int64))
            planes.append(plane)
        if len(bits) - position >= 8:
            raise PayloadError(
                f"the payload has a lane of {len(lane)} bytes whose symbols end in byte {-(-position // 8)}"
            )
        if bits[position:].any():
            raise PayloadError("the payload's padding bits are not zero")
        return b"".join(planes)


@dataclass(frozen=True)
class RunHuffmanCoder:
    """Canonical Huffman code over tokens of runs, in Python: the reference."""

    shape: Shape
    tables: RunTables
    lanes: int

    @cached_property
    def _lanes(self) -> list[list[run_huffman.Segment]]:
        return run_huffman.lane_segments(self.tables.table_of_channel.tolist(), self.lanes)

    @property
    def _modes(self) -> NDArray[np.uint8]:
        return self.tables.mode_of_channel[:, None]

    def encode(self, symbols: bytes, /) -> bytes:
        """See ``Coder``."""
        planes = np.frombuffer(symbols, np.uint8).reshape(self.shape[0], -1)
        folded = run_huffman.fold(planes, self._modes)
        tables = self.tables.tables
        lanes = [
            run_huffman.encode_lane([(tables[s.table], folded[list(s.channels)].tobytes()) for s in segments])
            for segments in self._lanes
        ]
        return join_lanes(lanes, len(symbols))

    def decode(self, payload: bytes, /) -> bytes:
        """See ``Coder``."""
        plane = self.shape[1] * self.shape[2]
        folded = np.empty((self.shape[0], plane), np.uint8)
        lanes = split_lanes(payload, self.lanes, folded.size)
        for lane, segments in zip(lanes, self._lanes, strict=True):
            decoder = run_huffman.LaneDecoder(lane)
            for each in segments:
                found = decoder.segment(self.tables.tables[each.table], len(each.channels) * plane)
                folded[list(each.channels)] = np.frombuffer(found, np.uint8).reshape(-1, plane)
            decoder.finish()
        return run_huffman.unfold(folded, self._modes).tobytes()


@dataclass(frozen=True)
class RansCoder:
    """Static-table rANS, in Python: the reference."""

    shape: Shape
    tables: RansTables
    lanes: int

    def encode(self, symbols: bytes, /) -> bytes:
        """See ``Coder``."""
        plane = self.shape[1] * self.shape[2]
        lanes = [
            rans.encode_lane([(self._table(c), symbols[c * plane : (c + 1) * plane]) for c in channels])
            for channels in lane_channels(self.shape[0], self.lanes)
        ]
        return join_lanes(lanes, len(symbols))

    def decode(self, payload: bytes, /) -> bytes:
        """See ``Coder``."""
        plane = self.shape[1] * self.shape[2]
        planes = []
        lanes = split_lanes(payload, self.lanes, self.shape[0] * plane)
        for lane, channels in zip(lanes, lane_channels(self.shape[0], self.lanes), strict=True):
            decoder = rans.LaneDecoder(lane)
            planes += [decoder.channel(self._table(c), plane) for c in channels]
            decoder.finish()
        return b"".join(planes)

    def _table(self, channel: int) -> rans.RansTable:
        return self.tables.tables[int(self.tables.table_of_channel[channel])]


@dataclass(frozen=True)
class ActivationCodec:
    """What both sides call: the bundle's codec, with the escape to raw.

    shape: of the activation, (C, H, W) or any other. coder: the codec that the bundle names; None for a
    bundle that sends raw symbols. channel_axis: which axis is coded as C; the others keep their order.
    Several threads may use one codec at once.
    """

    shape: tuple[int, ...]
    coder: Coder | None
    channel_axis: int = 0

    @cached_property
    def raw_bytes(self) -> int:
        """Size of one activation at one byte a symbol."""
        return math.prod(self.shape)

    def encode(self, symbols: Symbols) -> tuple[CodecId, bytes]:
        """The shorter of coded and raw payload of one activation, uint8, and which it is."""
        if symbols.shape != self.shape or symbols.dtype != np.uint8:
            raise ValueError(
                f"symbols are {symbols.dtype} {symbols.shape}, the codec is for uint8 {self.shape}"
            )
        if self.channel_axis:
            symbols = np.moveaxis(symbols, self.channel_axis, 0)
        raw = symbols.tobytes()
        if self.coder is not None:
            payload = self.coder.encode(raw)
            if len(payload) < len(raw):
                return CodecId.BUNDLE, payload
        return CodecId.RAW, raw

    def decode(self, codec: int, payload: bytes) -> Symbols:
        """Activation, uint8 of its own shape, of one frame.

        Raises CodecError for an unknown codec id, PayloadError for bytes that are not one activation.
        """
        if codec == CodecId.RAW:
            if len(payload) != self.raw_bytes:
                raise PayloadError(f"a raw payload has {len(payload)} bytes, expected {self.raw_bytes}")
            return self._shaped(payload)
        if codec == CodecId.PICTURE:
            raise CodecError(f"codec id {codec} is a picture, expected an activation: none are answered here")
        if codec != CodecId.BUNDLE:
            raise CodecError(
                f"codec id {codec} is unknown, expected one of {[int(CodecId.BUNDLE), int(CodecId.RAW)]}"
            )
        if self.coder is None:
            raise CodecError("the bundle names no coder, expected raw frames only")
        if len(payload) >= self.raw_bytes:
            raise PayloadError(
                f"a coded payload has {len(payload)} bytes, expected fewer than the raw {self.raw_bytes}"
            )
        return self._shaped(self.coder.decode(payload))

    def _shaped(self, symbols: bytes) -> Symbols:
        found = np.frombuffer(symbols, np.uint8)
        if not self.channel_axis:
            return found.reshape(self.shape)
        channels = self.shape[self.channel_axis]
        others = self.shape[: self.channel_axis] + self.shape[self.channel_axis + 1 :]
        first = found.reshape(channels, *others)
        return np.ascontiguousarray(np.moveaxis(first, 0, self.channel_axis))
