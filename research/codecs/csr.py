"""Compressed Sparse Row coding of activations (Sec. III-C): the paper's baseline, at exactly its size.

A tensor is a matrix of P rows, its channels, and Q columns, H·W. Zero is the symbol that stands for the real
number 0. R symbols that are not zero take 2(P + 1) + 3R bytes:

    row pointers   P + 1 times 2 bytes, little-endian: how many non-zero symbols come before each row
    columns        R times 2 bytes, little-endian
    values         R times 1 byte

Two bytes hold a row pointer modulo 65,536 only. That is enough: a row has at most Q < 65,536 non-zero
symbols, so differences of neighbouring pointers, modulo 65,536, are the rows' own numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offramp.common.codec.activation import Shape, Symbols
from offramp.common.errors import ConfigError, PayloadError

_MODULUS = 1 << 16


def size(rows: int, nonzero: int | NDArray[np.int64]) -> int | NDArray[np.int64]:
    """Bytes of a matrix with P ``rows`` and R ``nonzero`` elements: 2(P + 1) + 3R."""
    return 2 * (rows + 1) + 3 * nonzero


def encode(symbols: Symbols, zero: int) -> bytes:
    """One activation, uint8 [C, H, W], in CSR.

    Raises ConfigError where a column does not fit 2 bytes.
    """
    channels, height, width = symbols.shape
    _check_plane(height * width)
    rows = symbols.reshape(channels, -1)
    row, column = np.nonzero(rows != zero)
    pointers = np.concatenate([[0], np.bincount(row, minlength=channels).cumsum()]) % _MODULUS
    values = rows[row, column]
    return pointers.astype("<u2").tobytes() + column.astype("<u2").tobytes() + values.tobytes()


def decode(payload: bytes, shape: Shape, zero: int) -> Symbols:
    """The activation, uint8 of this shape, that ``encode`` wrote. Raises PayloadError for anything else."""
    channels, height, width = shape
    plane = height * width
    _check_plane(plane)
    head = 2 * (channels + 1)
    if len(payload) < head or (len(payload) - head) % 3:
        raise PayloadError(f"{len(payload)} bytes are not a CSR matrix of {channels} rows")
    nonzero = (len(payload) - head) // 3
    pointers = np.frombuffer(payload, "<u2", channels + 1).astype(np.int64)
    column = np.frombuffer(payload, "<u2", nonzero, head).astype(np.int64)
    values = np.frombuffer(payload, np.uint8, nonzero, head + 2 * nonzero)
    counts = np.diff(pointers) % _MODULUS
    if pointers[0] or counts.sum() != nonzero or (counts > plane).any():
        raise PayloadError(f"row pointers do not add up to {nonzero} symbols in {channels} rows of {plane}")
    row = np.repeat(np.arange(channels), counts)
    position = row * plane + column
    if (column >= plane).any() or (np.diff(position) <= 0).any() or (values == zero).any():
        raise PayloadError("columns out of order, or a symbol that is zero")
    symbols = np.full(channels * plane, zero, np.uint8)
    symbols[position] = values
    return symbols.reshape(shape)


def sizes(symbols: Symbols, zero: int) -> NDArray[np.int64]:
    """Bytes of each activation of uint8 [N, C, H, W] in CSR, int64 [N], without writing any."""
    _, channels, height, width = symbols.shape
    _check_plane(height * width)
    nonzero = np.array([np.count_nonzero(image != zero) for image in symbols], np.int64)
    return np.asarray(size(channels, nonzero))


def _check_plane(plane: int) -> None:
    if plane >= _MODULUS:
        raise ConfigError(f"a channel of {plane} symbols is too long for CSR columns of 2 bytes")
