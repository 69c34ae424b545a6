"""Activations to payload bytes and back; pure functions of bytes, no I/O.

Invariants of a payload:
- It codes exactly C·H·W symbols; that number comes from the manifest, never from the payload.
- ``RAW``: one byte a symbol, in C, H, W order.
- ``BUNDLE`` (Huffman): the codewords in C, H, W order, each most significant bit first, channel c coded
  with its own table; then zero bits up to the next byte. No header, no length, no end mark.
- A payload is used up exactly: bytes left over, or a padding bit that is set, are an error.
- A coded payload is shorter than the raw one. Where coding would not be shorter, ``RAW`` is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import groupby, islice

import numpy as np
from bitarray import bitarray, decodetree
from bitarray.util import int2ba
from numpy.typing import NDArray

from offramp.common.codebook import SYMBOLS, Codebook
from offramp.common.errors import CodecError, PayloadError

Symbols = NDArray[np.uint8]


class CodecId(IntEnum):
    """How one frame's payload is coded; the values are the wire's (``offramp.v1.Codec``)."""

    BUNDLE = 0
    """The codec that the bundle's manifest names."""
    RAW = 1


@dataclass(frozen=True)
class HuffmanCodec:
    """Static canonical Huffman code, written with ``bitarray``: readable, and byte for byte the format.

    shape: (C, H, W) of the activation. codebook: a table for each of the C channels.
    """

    shape: tuple[int, int, int]
    codebook: Codebook

    def __post_init__(self) -> None:
        if self.codebook.channels != self.shape[0]:
            raise ValueError(
                f"the codebook has {self.codebook.channels} channels, the activation {self.shape}"
            )

    @cached_property
    def _runs(self) -> list[tuple[int, int, int]]:
        """(table, first symbol, number of symbols) of each run of channels that share a table."""
        plane = self.shape[1] * self.shape[2]
        runs, start = [], 0
        for table, channels in groupby(self.codebook.table_of_channel.tolist()):
            size = len(list(channels)) * plane
            runs.append((table, start, size))
            start += size
        return runs

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

    def encode(self, symbols: Symbols) -> bytes:
        """Payload of one activation, uint8 [C, H, W]. Any symbol values; the length is what they need."""
        flat = symbols.reshape(-1)
        bits = bitarray()
        for table, start, size in self._runs:
            bits.encode(self._codes[table], flat[start : start + size].tobytes())
        return bits.tobytes()

    def decode(self, payload: bytes) -> Symbols:
        """Activation, uint8 [C, H, W], of a payload. Raises PayloadError unless it codes exactly one."""
        bits = bitarray()
        bits.frombytes(payload)
        flat = np.empty(self.shape, np.uint8).reshape(-1)
        position = 0
        for table, start, size in self._runs:
            # No farther than this run can reach: to copy all that is left for each run takes quadratic time.
            reach = position + size * int(self.codebook.lengths[table].max())
            try:
                decoded = bytes(islice(bits[position:reach].decode(self._trees[table]), size))
            except ValueError:  # the bits end within a codeword
                decoded = b""
            if len(decoded) < size:
                raise PayloadError(
                    f"the payload of {len(payload)} bytes ends before symbol {start + size} of {len(flat)}"
                )
            run = flat[start : start + size]
            run[:] = np.frombuffer(decoded, np.uint8)
            position += int(self.codebook.lengths[table][run].sum(dtype=np.int64))
        if len(bits) - position >= 8:
            raise PayloadError(
                f"the payload has {len(payload)} bytes, its symbols end in byte {-(-position // 8)}"
            )
        if bits[position:].any():
            raise PayloadError("the payload's padding bits are not zero")
        return flat.reshape(self.shape)


@dataclass(frozen=True)
class ActivationCodec:
    """What both sides call: the bundle's codec, with the escape to raw.

    shape: (C, H, W) of the activation. coder: the codec that the bundle names; None for a bundle that
    sends raw symbols.
    """

    shape: tuple[int, int, int]
    coder: HuffmanCodec | None

    @property
    def raw_bytes(self) -> int:
        """Size of one activation at one byte a symbol: C·H·W."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    def encode(self, symbols: Symbols) -> tuple[CodecId, bytes]:
        """The shorter of coded and raw payload of one activation, uint8 [C, H, W], and which it is."""
        if symbols.shape != self.shape or symbols.dtype != np.uint8:
            raise ValueError(
                f"symbols are {symbols.dtype} {symbols.shape}, the codec is for uint8 {self.shape}"
            )
        if self.coder is not None:
            payload = self.coder.encode(symbols)
            if len(payload) < self.raw_bytes:
                return CodecId.BUNDLE, payload
        return CodecId.RAW, symbols.tobytes()

    def decode(self, codec: int, payload: bytes) -> Symbols:
        """Activation, uint8 [C, H, W], of one frame.

        Raises CodecError for an unknown codec id, PayloadError for bytes that are not one activation.
        """
        if codec == CodecId.RAW:
            if len(payload) != self.raw_bytes:
                raise PayloadError(f"a raw payload has {len(payload)} bytes, expected {self.raw_bytes}")
            return np.frombuffer(payload, np.uint8).reshape(self.shape)
        if codec != CodecId.BUNDLE:
            raise CodecError(f"codec id {codec} is unknown, expected one of {[int(c) for c in CodecId]}")
        if self.coder is None:
            raise CodecError("the bundle names no coder, expected raw frames only")
        if len(payload) >= self.raw_bytes:
            raise PayloadError(
                f"a coded payload has {len(payload)} bytes, expected fewer than the raw {self.raw_bytes}"
            )
        return self.coder.decode(payload)
