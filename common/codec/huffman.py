"""Code lengths: the only part of a Huffman code that is stored, and the tables made from them.

Rules this module keeps:
- A codebook is one or more *tables* of 256 code lengths and a map from channel to table. One table for
  all channels is the paper's scheme (Sec. III-C); a table per channel is ours.
- Every symbol of every table has a code, so that an activation which calibration never saw is coded too.
- A code length is 1 … 15 bits, so that two fit one stored byte: 128 bytes a table.
- A table is complete: its Kraft sum is exactly 1. A file whose table is not complete is refused.
- Codes are canonical: ordered by (length, symbol), each the previous one plus one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offramp.common.errors import CodebookError

SYMBOLS = 256
MAX_CODE_LENGTH = 15
TABLE_BYTES = SYMBOLS // 2
"""Stored bytes of one table. The paper allows 256 bytes for one (Sec. III-C)."""

Layout = Literal["tensor", "channel"]


@dataclass(frozen=True)
class Codebook:
    """Canonical code lengths of one bundle.

    lengths: uint8 [T, 256], bits; each row a complete prefix code of lengths 1 … 15.
    table_of_channel: uint16 [C]; the row of ``lengths`` that codes each channel.

    Raises CodebookError if any of this does not hold.
    """

    lengths: NDArray[np.uint8]
    table_of_channel: NDArray[np.uint16]

    def __post_init__(self) -> None:
        lengths, tables = self.lengths, self.table_of_channel
        if lengths.ndim != 2 or lengths.shape[1] != SYMBOLS or lengths.dtype != np.uint8 or not len(lengths):
            raise CodebookError(
                f"code lengths are {lengths.dtype} {lengths.shape}, expected uint8 [T, {SYMBOLS}]"
            )
        if tables.ndim != 1 or not len(tables) or tables.dtype != np.uint16:
            raise CodebookError(f"the channel map is {tables.dtype} {tables.shape}, expected uint16 [C]")
        if int(tables.max()) >= len(lengths):
            raise CodebookError(f"a channel names table {int(tables.max())}, the codebook has {len(lengths)}")
        if lengths.min() < 1 or lengths.max() > MAX_CODE_LENGTH:
            raise CodebookError(
                f"code lengths span {lengths.min()} … {lengths.max()}, expected 1 … {MAX_CODE_LENGTH}"
            )
        one = 1 << MAX_CODE_LENGTH
        kraft = (one >> lengths.astype(np.int64)).sum(axis=1)
        for table in np.flatnonzero(kraft != one):
            raise CodebookError(f"table {table} has Kraft sum {kraft[table] / one:.6g}, expected exactly 1")

    @property
    def channels(self) -> int:
        """Number of channels C that the codebook codes."""
        return len(self.table_of_channel)

    @property
    def stored_bytes(self) -> int:
        """Bytes that the code lengths take on the device, without the channel map."""
        return len(self.lengths) * TABLE_BYTES

    @cached_property
    def codes(self) -> NDArray[np.uint16]:
        """Canonical codewords, uint16 [T, 256], right-aligned: ``lengths[t, s]`` low bits are the code."""
        return np.stack([canonical_codes(row) for row in self.lengths])

    def to_bytes(self) -> bytes:
        """The tables as stored in a bundle: two code lengths a byte, the even symbol in the low half."""
        return (self.lengths[:, 0::2] | (self.lengths[:, 1::2] << 4)).tobytes()

    @staticmethod
    def from_bytes(data: bytes, table_of_channel: list[int]) -> Codebook:
        """Read what ``to_bytes`` wrote. Raises CodebookError for anything else."""
        if not data or len(data) % TABLE_BYTES:
            raise CodebookError(f"the codebook has {len(data)} bytes, expected a multiple of {TABLE_BYTES}")
        # Before anything is unpacked: a table takes far more memory than its stored bytes.
        if len(data) // TABLE_BYTES > len(table_of_channel):
            raise CodebookError(
                f"the codebook has {len(data) // TABLE_BYTES} tables, expected at most one for each of"
                f" {len(table_of_channel)} channels"
            )
        packed = np.frombuffer(data, np.uint8).reshape(-1, TABLE_BYTES)
        lengths = np.empty((len(packed), SYMBOLS), np.uint8)
        lengths[:, 0::2], lengths[:, 1::2] = packed & 15, packed >> 4
        return Codebook(lengths, np.array(table_of_channel, np.uint16))


def canonical_codes(lengths: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Canonical codewords of one table, uint16 [256], from its code lengths, uint8 [256]."""
    codes = np.zeros(SYMBOLS, np.uint16)
    code = previous = 0
    for symbol in np.lexsort((np.arange(SYMBOLS), lengths)):
        length = int(lengths[symbol])
        code <<= length - previous
        codes[symbol] = code
        code, previous = code + 1, length
    return codes


def code_lengths(counts: NDArray[np.int64], limit: int = MAX_CODE_LENGTH) -> NDArray[np.uint8]:
    """Optimal length-limited code lengths, uint8 [256], for symbol counts, int64 [256].

    Package-merge (Larmore and Hirschberg, 1990). Counts of zero are raised so far that an unseen symbol
    still gets a code of at most ``limit`` bits, and no farther: real counts weigh 256 times as much.
    """
    if counts.shape != (SYMBOLS,) or counts.min() < 0:
        raise CodebookError(
            f"symbol counts have shape {counts.shape}, expected {SYMBOLS} counts of at least 0"
        )
    return package_merge([max(int(count) * SYMBOLS, 1) for count in counts], limit)


def package_merge(weights: Sequence[int], limit: int = MAX_CODE_LENGTH) -> NDArray[np.uint8]:
    """Optimal code lengths of at most ``limit`` bits, uint8 [n], for 2 … 2^limit weights.

    Larmore and Hirschberg, 1990: the cheapest 2n − 2 of the last round's leaves and packages are taken; those
    of them that are packages take twice as many of the round before. A leaf adds a bit wherever it is taken.
    """
    order = sorted(range(len(weights)), key=lambda i: weights[i])
    leaves = [(weights[i], 0) for i in order]
    rounds: list[list[tuple[int, int]]] = [leaves]
    for _ in range(limit - 1):
        last = rounds[-1]
        packages = [(last[i][0] + last[i + 1][0], 1) for i in range(0, len(last) - 1, 2)]
        rounds.append(sorted(leaves + packages))
    lengths = np.zeros(len(weights), np.uint8)
    taken = 2 * len(weights) - 2
    for merged in reversed(rounds):
        packed = sum(is_package for _, is_package in merged[:taken])
        lengths[order[: taken - packed]] += 1
        taken = 2 * packed
    return lengths


def build_codebook(counts: NDArray[np.int64], layout: Layout) -> Codebook:
    """A codebook for calibration counts, int64 [C, 256]: one table, or one for each channel."""
    if counts.ndim != 2 or counts.shape[1] != SYMBOLS:
        raise CodebookError(f"calibration counts have shape {counts.shape}, expected [C, {SYMBOLS}]")
    channels = len(counts)
    if layout == "tensor":
        return Codebook(code_lengths(counts.sum(axis=0))[None], np.zeros(channels, np.uint16))
    lengths = np.stack([code_lengths(row) for row in counts])
    return Codebook(lengths, np.arange(channels, dtype=np.uint16))


def coded_bits(codebook: Codebook, counts: NDArray[np.int64]) -> int:
    """Bits that symbols with these counts, int64 [C, 256], take in this codebook, padding aside."""
    return int((codebook.lengths[codebook.table_of_channel].astype(np.int64) * counts).sum())


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """Empirical entropy, bits in all, of counts [..., 256]: each leading index is a source of its own."""
    total = counts.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.where(counts > 0, counts * np.log2(total / counts), 0.0)
    return float(bits.sum())
