"""A bundle on the test images: its answers and the payload of each image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from offramp.common.bundle.load import Bundle
from offramp.training.calibrate.codebook import huffman_tables, payload_bytes
from offramp.training.calibrate.measure import run_graphs
from offramp.training.data.datasets import Dataset
from offramp.training.export import Graphs
from research.pareto.points import (
    Coded,
)

_CALIBRATION = 1024
"""Images on which the paper's table is counted."""


def run_split(bundle: Bundle, data: Dataset, *, one_table: bool) -> Coded:
    """A bundle on the test images.

    one_table: payloads in one Huffman table, counted on validation images (the paper's); else as it ships.
    """
    graphs = Graphs(bundle.head, bundle.tail)
    answers = run_graphs(graphs, data.test)
    symbols = answers.symbols
    if one_table:
        counted = run_graphs(graphs, data.validation.take(np.arange(min(_CALIBRATION, len(data.validation)))))
        tables = huffman_tables(counted.symbols, [0] * symbols.shape[1])
        payload = payload_bytes(tables, 1, symbols)
    else:
        payload = np.array([len(bundle.codec.encode(image)[1]) for image in symbols], np.int64)
    manifest = bundle.manifest
    # Several bundles are compared: the symbols of all of them would fill the memory.
    return Coded(
        replace(
            answers,
            symbols=np.empty((len(symbols), 0), np.uint8),
            temperature=manifest.temperature,
            sent_answer=manifest.sent_answer,
        ),
        payload,
    )
