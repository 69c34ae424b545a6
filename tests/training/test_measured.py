import numpy as np

from offramp.training.calibrate.codebook import Candidate, huffman_tables, payload_bytes
from offramp.training.measured import bytes_by_codec
from offramp.training.record import CODECS, RAW, SHIPPED


def test_every_codec_that_a_run_measures_has_a_size_for_each_image() -> None:
    symbols = np.random.default_rng(0).binomial(6, 0.2, (8, 3, 4, 4)).astype(np.uint8)
    shipped = Candidate("one", huffman_tables(symbols, [0, 0, 0]), 1, 10.0)
    payloads = payload_bytes(shipped.tables, 1, symbols)
    found = bytes_by_codec(symbols, symbols, shipped, payloads)
    assert set(found) == set(CODECS)
    assert all(sizes.shape == (8,) and (sizes <= 48).all() for sizes in found.values())
    assert (found[RAW] == 48).all() and np.array_equal(found[SHIPPED], payloads)
