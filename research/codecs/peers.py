"""What the paper and others would code an activation with: CSR, LZ4 and zstd, on a bundle's test images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offramp.bench.answers import head_answers
from offramp.common import cpus
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.codec.activation import Symbols
from offramp.common.errors import DataError
from offramp.common.part.engine import Engine
from offramp.training.record import RECORD, Record
from research.codecs import csr

CSR, LZ4, ZSTD = PEERS = ("CSR", "LZ4", "zstd 3")
"""Their names in records."""


def peer_bytes(symbols: Symbols, zero: int) -> dict[str, float]:
    """Mean bytes of an activation by peer.

    LZ4 and zstd count as raw bytes where those are fewer; CSR does not: the paper states its size as it is.

    Args:
        symbols: uint8 [N, C, H, W].
        zero: the symbol that stands for the real number 0.
    """
    # Here: a report that has no use for them needs neither.
    import lz4.block
    import zstandard

    raw = symbols[0].size
    zstd = zstandard.ZstdCompressor(level=3)
    images = [image.tobytes() for image in symbols]
    return {
        CSR: float(csr.sizes(symbols, zero).mean()),
        LZ4: float(np.mean([min(raw, len(lz4.block.compress(one, store_size=False))) for one in images])),
        ZSTD: float(np.mean([min(raw, len(zstd.compress(one))) for one in images])),
    }


def with_peers(records: Mapping[Path, Record], images: Callable[[Bundle], NDArray[np.uint8]]) -> list[Record]:
    """Records with the peers' bytes in them; those that have all of them stay as they are.

    Args:
        records: by the folder of their bundle.
        images: reads a bundle's test images, uint8 [N, 3, H, W]; once for all bundles of the same data.

    Raises:
        DataError: a record that is of another bundle than the one that it lies beside.
    """
    found: list[Record] = []
    known: tuple[str, NDArray[np.uint8]] | None = None
    for folder, record in records.items():
        if not set(PEERS) <= record.bytes.keys():
            bundle = load_bundle(folder)
            if bundle.digest.hex() != record.digest:
                raise DataError(f"{folder / RECORD}: is of another bundle than lies there")
            data = bundle.manifest.provenance.dataset.sha256
            if known is None or known[0] != data:
                known = (data, images(bundle))
            symbols, _ = head_answers(Engine(bundle, cpus.available()), known[1])
            own = peer_bytes(symbols, bundle.manifest.activation.zero_point)
            record = record.model_copy(update={"bytes": own | record.bytes})
        found.append(record)
    return found
