"""What one run measured, for the record beside its bundle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offramp.common.bundle.load import Bundle
from offramp.common.codec.activation import Tables
from offramp.common.codec.rans import RansTables
from offramp.training import record
from offramp.training.calibrate.card import CARD_THRESHOLDS
from offramp.training.calibrate.codebook import (
    Candidate,
    huffman_tables,
    payload_bytes,
    rans_tables,
    share_symbols,
)
from offramp.training.calibrate.confidence import ece
from offramp.training.calibrate.frontier import THRESHOLDS
from offramp.training.calibrate.measure import Answers
from offramp.training.loop import Trained
from offramp.training.recipe import Recipe
from offramp.training.record import Record
from offramp.training.stages.rate import price
from offramp.training.stages.schedule import STAGES


def bytes_by_codec(
    calibration: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    shipped: Candidate,
    payloads: NDArray[np.int64],
) -> dict[str, NDArray[np.int64]]:
    """Bytes of each test activation, int64 [N], by codec; each is sent raw where that is shorter.

    Args:
        calibration: symbols that tables are counted on, uint8 [M, C, H, W].
        symbols: of the test images, uint8 [N, C, H, W].
        shipped: the bundle's codec.
        payloads: what it makes of the test images, int64 [N].
    """
    channels = symbols.shape[1]
    tables: dict[str, Tables] = {
        record.ONE_TABLE: huffman_tables(calibration, [0] * channels),
        record.TABLE_A_CHANNEL: huffman_tables(calibration, list(range(channels))),
    }
    # What is shipped was counted on the same symbols; the slower tables need not be made twice.
    rans = isinstance(shipped.tables, RansTables)
    tables[record.RANS] = shipped.tables if rans else rans_tables(calibration)
    tables[record.SHARED_TABLES] = huffman_tables(calibration, share_symbols(calibration))
    found = {record.RAW: np.full(len(symbols), symbols[0].size, np.int64)}
    found |= {name: payload_bytes(table, 1, symbols) for name, table in tables.items()}
    found[record.SHIPPED] = payloads
    return found


def make_record(
    recipe: Recipe,
    bundle: Bundle,
    step: float,
    trained: Trained,
    answers: Answers,
    in_float: Answers,
    by_codec: dict[str, NDArray[np.int64]],
) -> Record:
    """The record of a run.

    Args:
        recipe: what was trained by.
        bundle: what came of it.
        step: of the transmitted activation, as a multiple of the finest one that holds its range.
        trained: the float32 model and its history.
        answers: of the bundle's graphs, on test images.
        in_float: of the float32 model, on the same images.
        by_codec: see `bytes_by_codec`.
    """
    manifest, settings, narrow = bundle.manifest, recipe.train, recipe.model.bottleneck
    grid = sorted({*THRESHOLDS, *CARD_THRESHOLDS, manifest.threshold})
    own = manifest.figures
    return Record(
        name=recipe.name,
        digest=bundle.digest.hex(),
        commit=manifest.provenance.commit,
        backbone=recipe.model.backbone,
        exit=recipe.model.exit,
        layer=manifest.cut.name,
        shape=manifest.activation.coded_shape,
        entropy_weight=settings.regularised.entropy,
        sparsity_weight=settings.regularised.sparsity,
        divergence=recipe.quantize.divergence,
        step=step,
        rate_weight=0.0 if narrow is None else price(settings.stages),
        bottleneck="" if narrow is None else f"{narrow.channels}x{narrow.stride}",
        epochs={
            stage.name: 0 if narrow is None and stage.of_code else settings.stages[stage.name].epochs
            for stage in STAGES
        },
        images={name: stage.images for name, stage in settings.stages.items() if stage.images is not None},
        sides=settings.base.sides,
        batch_size=settings.batch_size,
        seed=recipe.seed,
        dataset=manifest.provenance.dataset,
        machine=record.Machine(
            device=trained.machine["device"],
            precision=trained.machine["precision"],
            libraries=manifest.provenance.libraries | {"torch": trained.machine["torch"]},
        ),
        cost=record.measure_cost(trained.model),
        accuracy=record.Accuracy(
            early=own.accuracy_early,
            final=own.accuracy_final,
            early_float=own.accuracy_early_float,
            final_float=own.accuracy_final_float,
        ),
        bytes={name: float(sizes.mean()) for name, sizes in by_codec.items()},
        entropy_bits=own.entropy_bits,
        entropy_bits_channel=own.entropy_bits_channel,
        zeros=float(np.mean([(s == manifest.activation.zero_point).mean() for s in answers.symbols])),
        ece=ece(answers.confidence, answers.early_right),
        threshold=manifest.threshold,
        curve=_curve(grid, answers, in_float, by_codec),
        history=[
            record.StageEpoch(
                stage=epoch.stage,
                number=epoch.number,
                epochs=epoch.epochs,
                loss=epoch.loss,
                figures=epoch.figures,
                best=epoch.best,
            )
            for epoch in trained.epochs
        ],
        entropy_steps=list(trained.entropy),
    )


def _curve(
    grid: list[float], answers: Answers, in_float: Answers, by_codec: dict[str, NDArray[np.int64]]
) -> record.Curve:
    """Figures at each threshold of a grid."""
    exits = [answers.exits(at) for at in grid]
    return record.Curve(
        threshold=grid,
        exit_rate=[float(one.mean()) for one in exits],
        accuracy=[answers.accuracy(at) for at in grid],
        exit_rate_float=[float(in_float.exits(at).mean()) for at in grid],
        accuracy_float=[in_float.accuracy(at) for at in grid],
        bytes={
            name: [float(np.where(one, 0, sizes).mean()) for one in exits] for name, sizes in by_codec.items()
        },
    )
