"""CSR, LZ4 and zstd beside a record: measured where it lacks them, and only then."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("lz4")
pytest.importorskip("zstandard")

from offramp.common.bundle.load import Bundle
from offramp.common.errors import DataError
from offramp.common.part.engine import Engine
from offramp.training.record import RECORD
from research.codecs import csr
from research.codecs.peers import CSR, LZ4, PEERS, ZSTD, peer_bytes, with_peers
from research.paper.tables import table3
from tests import toy
from tests.records import paper_like, record


def test_nothing_but_csr_is_longer_than_raw() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8), np.uint8)
    found = peer_bytes(noise, zero=0)
    assert found[LZ4] == found[ZSTD] == 256
    assert found[CSR] == np.mean(csr.sizes(noise, 0)) > 256
    still = peer_bytes(np.zeros((2, 4, 8, 8), np.uint8), zero=0)
    assert still[CSR] == 2 * (4 + 1) and still[LZ4] < 32 and still[ZSTD] < 32


def test_a_record_gets_what_it_lacks_from_its_bundle(toy_bundle: Bundle) -> None:
    own = record()
    sizes = {name: size for name, size in own.bytes.items() if name not in PEERS}
    lacking = own.model_copy(update={"bytes": sizes, "digest": toy_bundle.digest.hex()})
    images = toy.images(5, seed=1)
    asked: list[Bundle] = []

    def read(bundle: Bundle) -> NDArray[np.uint8]:
        asked.append(bundle)
        return images

    (found,) = with_peers({toy_bundle.path: lacking}, read)

    symbols, _ = Engine(toy_bundle).head(images)
    expected = peer_bytes(symbols, toy_bundle.manifest.activation.zero_point)
    assert {name: found.bytes[name] for name in PEERS} == expected
    assert {name: found.bytes[name] for name in sizes} == sizes and len(asked) == 1
    # One that has them all is not measured again, nor its bundle looked at.
    assert with_peers({toy_bundle.path: own}, read) == [own] and len(asked) == 1
    with pytest.raises(DataError, match=rf"{RECORD}: is of another bundle"):
        with_peers({toy_bundle.path: lacking.model_copy(update={"digest": "00"})}, read)


def test_a_table_without_them_has_dashes() -> None:
    runs = [
        run.model_copy(update={"bytes": {k: v for k, v in run.bytes.items() if k not in PEERS}})
        for run in paper_like()
    ]
    report = table3(runs)
    assert all(key not in row for row in report.rows for key in ("csr", "lz4", "zstd"))
    assert "| 0 | 24.0 | 24.0 | — | 66.5 | 14.5 | 14.5 |" in report.to_markdown()
