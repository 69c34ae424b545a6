"""Every coder that the benchmark holds side by side, each as two functions of bytes.

Ours code with tables that were counted on other activations. Of the peers, zlib, zstd and LZ4 bring no
tables and find them in each frame again, as they would in use; constriction gets the same counts as ours.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import constriction
import lz4.block
import numpy as np
import zstandard
from numpy.typing import NDArray

from offramp.common.codec.activation import HuffmanCoder, RansCoder, Shape, Symbols, Tables, make_coder
from offramp.common.codec.huffman import Codebook, build_codebook
from offramp.common.codec.rans import RansTables
from offramp.common.errors import OfframpError
from offramp.training.calibrate.codebook import choose_codec, compare, symbol_counts

PACKAGES = ("numpy", "bitarray", "zstandard", "lz4", "constriction")
BITARRAY = "bitarray, one table"
MEMCPY = "memcpy"
ZSTD_FAST, ZSTD_SMALL = "zstd 1", "zstd 19"
DICTIONARY_BYTES = 16_384


@dataclass(frozen=True)
class Coding:
    """One way to code activations: C·H·W symbols, bytes, to a payload, bytes, and back."""

    name: str
    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes], bytes]
    lanes: int | None = None
    tables: Tables | None = None
    """Ours only."""
    shipped: bool = False
    """Whether it is what calibration chose, or what the bundle names."""
    frames: int | None = None
    """How many frames it codes at most, being slow; its payloads are another's, byte for byte."""

    @property
    def table_bytes(self) -> int | None:
        """Bytes that its tables take in a bundle; None for a peer."""
        return None if self.tables is None else self.tables.stored_bytes


def our_codings(shape: Shape, calibration: Symbols) -> list[Coding]:
    """All of ours for these activations, uint8 [N, C, H, W]; what calibration would ship is marked."""
    # As `offramp train` does: tables are counted on some images, and compete on others.
    some = max(1, len(calibration) * 2 // 3)
    counted, others = calibration[:some], calibration[some:]
    chosen = choose_codec(counted, others)
    codings = []
    for candidate in compare(counted, others):
        shipped = candidate.name == chosen.name
        best = chosen if shipped else replace(candidate, lanes=candidate.lanes_in_use)
        codings.append(our_coding(best.name, shape, best.tables, best.lanes, shipped))
        if isinstance(best.tables, RansTables):
            slow = RansCoder(shape, best.tables, best.lanes)
            codings.append(Coding("rans, in Python", slow.encode, slow.decode, best.lanes, frames=2))
    return codings


def our_coding(name: str, shape: Shape, tables: Tables, lanes: int, shipped: bool) -> Coding:
    """One of ours, compiled where it can be."""
    coder = make_coder(shape, tables, lanes)
    return Coding(name, coder.encode, coder.decode, lanes, tables, shipped)


def peer_codings(shape: Shape, calibration: Symbols) -> list[Coding]:
    """The others. bitarray and constriction get tables of these activations, uint8 [N, C, H, W]."""
    size = shape[0] * shape[1] * shape[2]
    counts = symbol_counts(calibration)
    return [
        _bitarray(size, build_codebook(counts, "tensor")),
        _zlib("zlib, Huffman only", 6, zlib.Z_HUFFMAN_ONLY),
        _zlib("zlib 6", 6, zlib.Z_DEFAULT_STRATEGY),
        _zstd(ZSTD_FAST, 1),
        _zstd(ZSTD_SMALL, 19),
        *_zstd_with_dictionary(calibration),
        Coding(
            "LZ4",
            lambda symbols: lz4.block.compress(symbols, store_size=False),
            lambda payload: lz4.block.decompress(payload, uncompressed_size=size),
        ),
        _constriction("constriction ANS, one table", counts.sum(axis=0, keepdims=True), size),
        _constriction("constriction ANS, a table a channel", counts, shape[1] * shape[2]),
        Coding(MEMCPY, _copy, _copy),
    ]


def _copy(data: bytes) -> bytes:
    # `bytes(data)` would return the same object.
    return bytes(memoryview(data))


def _bitarray(size: int, codebook: Codebook) -> Coding:
    """The reference coder with all symbols in one channel: a call of bitarray, and little around it."""
    whole = Codebook(codebook.lengths, np.zeros(1, np.uint16))
    coder = HuffmanCoder((1, 1, size), whole, 1)
    return Coding(BITARRAY, coder.encode, coder.decode, 1, whole)


def _zlib(name: str, level: int, strategy: int) -> Coding:
    def encode(symbols: bytes) -> bytes:
        stream = zlib.compressobj(level, zlib.DEFLATED, -15, 8, strategy)
        return stream.compress(symbols) + stream.flush()

    return Coding(name, encode, lambda payload: zlib.decompress(payload, -15))


def _zstd(name: str, level: int) -> Coding:
    compressor, decompressor = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
    return Coding(name, compressor.compress, decompressor.decompress)


def _zstd_with_dictionary(calibration: Symbols) -> list[Coding]:
    """zstd's own way to learn tables beforehand; none where there are too few samples to train it on."""
    samples = [image.tobytes() for image in calibration]
    try:
        dictionary = zstandard.train_dictionary(DICTIONARY_BYTES, samples, level=1)
    except zstandard.ZstdError:
        return []
    dictionary.precompute_compress(level=1)
    compressor = zstandard.ZstdCompressor(level=1, dict_data=dictionary)
    decompressor = zstandard.ZstdDecompressor(dict_data=dictionary)
    return [Coding("zstd 1, trained dictionary", compressor.compress, decompressor.decompress)]


def _constriction(name: str, counts: NDArray[np.int64], plane: int) -> Coding:
    """Its ANS with one call for each table, models built beforehand: its fastest use of static tables."""
    # Every symbol must stay possible: a share of a count for each.
    models = [
        constriction.stream.model.Categorical((row + 1 / 256) / (row.sum() + 1), perfect=False)
        for row in counts.astype(np.float64)
    ]

    def encode(symbols: bytes) -> bytes:
        planes = np.frombuffer(symbols, np.uint8).astype(np.int32).reshape(len(models), plane)
        coder = constriction.stream.stack.AnsCoder()
        for model, row in zip(reversed(models), planes[::-1], strict=True):
            coder.encode_reverse(row, model)
        return bytes(coder.get_compressed().tobytes())

    def decode(payload: bytes) -> bytes:
        coder = constriction.stream.stack.AnsCoder(np.frombuffer(payload, np.uint32))
        planes = [coder.decode(model, plane) for model in models]
        return b"".join([row.astype(np.uint8).tobytes() for row in planes])

    return Coding(name, encode, decode)


def payloads(coding: Coding, frames: Sequence[bytes]) -> list[bytes]:
    """The payload of each frame, checked: it decodes to what went in. Raises OfframpError if one does not.

    One that is longer than its frame is not decoded: the frame is sent raw then.
    """
    coded = [coding.encode(frame) for frame in frames]
    for frame, payload in zip(frames, coded, strict=True):
        if len(payload) < len(frame) and coding.decode(payload) != frame:
            raise OfframpError(f"{coding.name}: {len(payload)} bytes decode to other symbols")
    return coded
