"""What each bundle asks of a device."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from offramp.bench.report_tables import Column, ReportTable, Value
from offramp.bench.timing import one_core
from offramp.common.bundle.load import Bundle
from offramp.common.part.engine import Engine
from offramp.training.record import RECORD, Record, read_record

_RUNS = 200


def devices(bundles: Sequence[Bundle], whole: Bundle, *, about: str) -> ReportTable:
    """What each bundle asks of a device, and what INT8 costs it.

    Args:
        bundles: of each with its record beside it, the head's share of multiply-accumulates is known too.
        whole: the unsplit model, in the same way; these are 100 %.
        about: where the figures come from.
    """
    records = {one.path: _record(one) for one in (*bundles, whole)}
    unsplit = records[whole.path]
    rows: list[dict[str, Value]] = []
    for bundle in bundles:
        record, figures = records[bundle.path], bundle.manifest.figures
        share = None
        if record is not None and unsplit is not None:
            share = record.cost.device_macs / (unsplit.cost.device_macs + unsplit.cost.server_macs)
        shape = bundle.manifest.activation.shape
        rows.append(
            {
                "bundle": bundle.manifest.name,
                "symbols": "x".join(str(side) for side in shape),
                "payload": figures.payload_bytes_mean,
                "early": 100 * figures.accuracy_early,
                "early_float": 100 * figures.accuracy_early_float,
                "final": 100 * figures.accuracy_final,
                "final_float": 100 * figures.accuracy_final_float,
                "macs": None if share is None else 100 * share,
                "head_kb": len(bundle.head) / 1024,
                "tail_kb": len(bundle.tail) / 1024,
                "head_ms": head_milliseconds(bundle),
            }
        )
    columns = [
        Column("bundle", "bundle"),
        Column("symbols", "symbols"),
        Column("payload", "payload, B an offloaded image"),
        Column("early", "early exit %", 2),
        Column("early_float", "in float %", 2),
        Column("final", "final exit %", 2),
        Column("final_float", "in float %", 2),
        Column("macs", "head, % of the unsplit model's MACs"),
        Column("head_kb", "head.onnx KB"),
        Column("tail_kb", "tail.onnx KB"),
        Column("head_ms", "head ms", 3),
    ]
    notes = [
        "Accuracies over all test images, each bundle's own record. Milliseconds are processor time of one "
        f"image on one thread, the median of {_RUNS} runs.",
        about,
    ]
    return ReportTable("pareto-devices", "What the bundles ask of a device", columns, rows, None, notes)


def _record(bundle: Bundle) -> Record | None:
    path = bundle.path / RECORD
    return read_record(path) if path.exists() else None


def head_milliseconds(bundle: Bundle) -> float:
    """Median processor time of the head for one image, on one thread."""
    engine = Engine(bundle, 1)
    pre = bundle.manifest.preprocessing
    image = np.random.default_rng(0).integers(0, 256, (1, 3, pre.height, pre.width), np.uint8)
    times = []
    with one_core():
        for _ in range(_RUNS):
            start = time.process_time_ns()
            engine.head(image)
            times.append(time.process_time_ns() - start)
    return float(np.median(times)) / 1e6
