"""One recipe from data to a bundle and its record: train, quantize, export, calibrate, measure, write."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import lz4.block
import numpy as np
import zstandard
from numpy.typing import NDArray

from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import (
    CODEBOOK,
    HEAD,
    TAIL,
    Activation,
    DatasetEntry,
    Figures,
    Manifest,
    Preprocessing,
    Provenance,
    SplitPoint,
    ThresholdFigures,
)
from offramp.common.bundle.write import file_entries, write_bundle
from offramp.common.codec.activation import Tables
from offramp.common.codec.huffman import entropy_bits
from offramp.common.codec.rans import RansTables
from offramp.training import csr, record
from offramp.training.calibrate.calibration import ece
from offramp.training.calibrate.codebook import (
    Candidate,
    choose_codec,
    huffman_tables,
    payload_bytes,
    rans_tables,
    share_symbols,
    symbol_counts,
)
from offramp.training.calibrate.frontier import THRESHOLDS
from offramp.training.calibrate.measure import (
    Answers,
    choose_threshold,
    run_float,
    run_graphs,
    with_better_answer,
)
from offramp.training.data.datasets import Dataset
from offramp.training.export import export
from offramp.training.quantize.quantize import calibration_part, quantize_calibrated
from offramp.training.quantize.quantized import QuantModel
from offramp.training.recipe import STAGES_OF_A_CODE, Recipe
from offramp.training.record import Record
from offramp.training.train import Clock, Hardware, Progress, Trained, train

_LIBRARIES = ("numpy", "onnx", "onnxruntime", "torch")
_CARD_THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
# Tables are settled long before this many symbols, and counting them takes ten times their memory.
_CODEC_SYMBOLS = 1 << 23


@dataclass(frozen=True)
class Job:
    """Everything that one run needs; ``say`` is told what it is about to do."""

    recipe: Recipe
    text: str
    data: Dataset
    checkpoints: Path
    out: Path
    resume: bool
    hardware: Hardware
    clock: Clock
    progress: Progress
    say: Callable[[str], None]


def run(job: Job) -> tuple[Bundle, Record]:
    """Train and write the bundle with its record. Raises what `train` does."""
    trained = train(
        job.recipe,
        job.data,
        job.checkpoints,
        resume=job.resume,
        hardware=job.hardware,
        clock=job.clock,
        progress=job.progress,
    )
    job.clock.require()
    job.say("quantizing, exporting and measuring")
    return make_bundle(job.out, job.recipe, job.text, job.data, trained, job.hardware)


def make_bundle(
    out: Path, recipe: Recipe, text: str, data: Dataset, trained: Trained, hardware: Hardware
) -> tuple[Bundle, Record]:
    """Quantize, export, choose on validation images, measure on test images, write.

    Chosen are the codebook, who answers what is sent, and the threshold.

    Args:
        out: folder of the bundle.
        recipe: what ``trained`` was trained by.
        text: the recipe's own text, kept as provenance.
        data: all three parts.
        trained: the float32 model and its history.
        hardware: what measures the float32 model.
    """
    model = trained.model
    quantized = quantize_calibrated(model, data.validation, recipe)
    graphs = export(quantized)

    seen = run_graphs(graphs, data.validation)
    everything = np.concatenate(_calibrating(seen.symbols, recipe))
    codec, seen, threshold = choose(seen, recipe)
    sent_answer = seen.sent_answer
    del seen

    answers = replace(run_graphs(graphs, data.test), sent_answer=sent_answer)
    in_float = replace(run_float(model, data.test, hardware.device), sent_answer=sent_answer)
    payloads = payload_bytes(codec.tables, codec.lanes, answers.symbols)
    files = {HEAD: graphs.head, TAIL: graphs.tail, CODEBOOK: codec.tables.to_bytes()}
    entries = file_entries(files)
    _, height, width = quantized.input_shape
    dataset = DatasetEntry(
        name=data.name,
        sha256=data.sha256,
        train=len(data.train),
        validation=len(data.validation),
        test=len(data.test),
    )
    manifest = Manifest(
        format_version=1,
        name=recipe.name,
        files={"head.onnx": entries[HEAD], "tail.onnx": entries[TAIL], "codebook.bin": entries[CODEBOOK]},
        classes=list(data.classes),
        preprocessing=Preprocessing(color="RGB", height=height, width=width, resize="bilinear"),
        split=SplitPoint(
            model=recipe.model.backbone,
            exit=recipe.model.exit,
            layer=quantized.blocks[recipe.model.exit].name,
        ),
        activation=Activation(
            shape=quantized.split_shape,
            scale=quantized.symbols.scale,
            zero_point=quantized.symbols.zero_point,
        ),
        codec=codec.entry,
        threshold=threshold,
        temperature=1.0,
        sent_answer=sent_answer,
        provenance=Provenance(
            commit=_commit(),
            dataset=dataset,
            recipe=text,
            seed=recipe.seed,
            libraries={name: version(name) for name in _LIBRARIES},
        ),
        figures=figures(
            answers,
            (float(in_float.early_right.mean()), float(in_float.final_right.mean())),
            payloads,
            threshold,
        ),
    )
    by_codec = _bytes_by_codec(everything, answers.symbols, quantized, codec, payloads)
    bundle = write_bundle(out, manifest, files)
    measured = _record(recipe, bundle, quantized.step, trained, answers, in_float, by_codec)
    path = out / record.RECORD
    partial = path.with_name(f"{path.name}.new")
    partial.write_text(measured.model_dump_json(indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return bundle, measured


def choose(seen: Answers, recipe: Recipe) -> tuple[Candidate, Answers, float]:
    """What validation images decide: the codec, who answers what is sent (in ``seen`` again), and T_c."""
    codec = choose_codec(*_calibrating(seen.symbols, recipe))
    seen = with_better_answer(seen)
    return codec, seen, choose_threshold(seen, recipe.threshold.drop)


def _calibrating(symbols: NDArray[np.uint8], recipe: Recipe) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Of the validation images' symbols, uint8 [N, C, H, W]: what tables are counted on, and compete on."""
    parts = calibration_part(len(symbols), share=recipe.quantize.calibration, seed=recipe.seed)
    most = max(1, _CODEC_SYMBOLS // symbols[0].size)
    counted, competing = (symbols[part[:most]] for part in parts)
    return counted, competing


def figures(
    answers: Answers, in_float: tuple[float, float], payloads: NDArray[np.int64], threshold: float
) -> Figures:
    """The figures of a bundle's manifest.

    Args:
        answers: of the graphs, on test images.
        in_float: accuracy of the float32 model's early and final exit, on the same images.
        payloads: bytes of each image's payload, int64 [N].
        threshold: the default T_c, which gets a row.
    """
    counts = symbol_counts_in_parts(answers.symbols)
    total = int(counts.sum())
    early_float, final_float = in_float
    return Figures(
        images=len(payloads),
        accuracy_early=float(answers.early_right.mean()),
        accuracy_final=float(answers.final_right.mean()),
        accuracy_early_float=early_float,
        accuracy_final_float=final_float,
        payload_bytes_mean=float(payloads.mean()),
        entropy_bits=entropy_bits(counts.sum(axis=0)) / total,
        entropy_bits_channel=entropy_bits(counts) / total,
        thresholds=[
            ThresholdFigures(
                threshold=value,
                accuracy=answers.accuracy(value),
                exit_rate=float(answers.exits(value).mean()),
                payload_bytes_mean=float(np.where(answers.exits(value), 0, payloads).mean()),
            )
            for value in sorted({*_CARD_THRESHOLDS, threshold})
        ],
    )


def symbol_counts_in_parts(symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
    """`symbol_counts` of uint8 [N, C, H, W], int64 [C, 256], without its eight bytes for each symbol."""
    step = max(1, _CODEC_SYMBOLS // symbols[0].size)
    parts = (symbol_counts(symbols[start : start + step]) for start in range(0, len(symbols), step))
    return np.asarray(np.sum(list(parts), axis=0), np.int64)


def _bytes_by_codec(
    calibration: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    quantized: QuantModel,
    shipped: Candidate,
    payloads: NDArray[np.int64],
) -> dict[str, NDArray[np.int64]]:
    """Bytes of each test activation, int64 [N], by codec.

    All are sent raw where that is shorter, but CSR, whose size the paper states as it is.
    """
    channels = symbols.shape[1]
    raw = symbols[0].size
    tables: dict[str, Tables] = {
        record.ONE_TABLE: huffman_tables(calibration, [0] * channels),
        record.TABLE_A_CHANNEL: huffman_tables(calibration, list(range(channels))),
    }
    # What is shipped was counted on the same symbols; the slower tables need not be made twice.
    rans = isinstance(shipped.tables, RansTables)
    tables[record.RANS] = shipped.tables if rans else rans_tables(calibration)
    tables[record.SHARED_TABLES] = huffman_tables(calibration, share_symbols(calibration))
    zstd = zstandard.ZstdCompressor(level=3)
    peers: dict[str, Callable[[bytes], bytes]] = {
        record.LZ4: lambda data: bytes(lz4.block.compress(data, store_size=False)),
        record.ZSTD: zstd.compress,
    }
    found = {
        record.RAW: np.full(len(symbols), raw, np.int64),
        record.CSR: csr.sizes(symbols, quantized.symbols.zero_point),
    }
    found |= {name: payload_bytes(table, 1, symbols) for name, table in tables.items()}
    for name, compress in peers.items():
        sizes = [min(raw, len(compress(image.tobytes()))) for image in symbols]
        found[name] = np.array(sizes, np.int64)
    found[record.SHIPPED] = payloads
    return found


def _record(
    recipe: Recipe,
    bundle: Bundle,
    step: float,
    trained: Trained,
    answers: Answers,
    in_float: Answers,
    by_codec: dict[str, NDArray[np.int64]],
) -> Record:
    manifest, settings, narrow = bundle.manifest, recipe.train, recipe.model.bottleneck
    grid = sorted({*THRESHOLDS, *_CARD_THRESHOLDS, manifest.threshold})
    exits = [answers.exits(at) for at in grid]
    own = manifest.figures
    return Record(
        name=recipe.name,
        digest=bundle.digest.hex(),
        commit=manifest.provenance.commit,
        backbone=recipe.model.backbone,
        exit=recipe.model.exit,
        layer=manifest.split.layer,
        shape=manifest.activation.shape,
        entropy_weight=settings.regularised.entropy,
        sparsity_weight=settings.regularised.sparsity,
        divergence=recipe.quantize.divergence,
        step=step,
        rate_weight=0.0 if narrow is None else settings.last_joint.rate,
        bottleneck="" if narrow is None else f"{narrow.channels}x{narrow.stride}",
        epochs={
            name: 0 if narrow is None and name in STAGES_OF_A_CODE else stage.epochs
            for name, stage in settings.stages.items()
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
        curve=record.Curve(
            threshold=grid,
            exit_rate=[float(one.mean()) for one in exits],
            accuracy=[answers.accuracy(at) for at in grid],
            exit_rate_float=[float(in_float.exits(at).mean()) for at in grid],
            accuracy_float=[in_float.accuracy(at) for at in grid],
            bytes={
                name: [float(np.where(one, 0, sizes).mean()) for one in exits]
                for name, sizes in by_codec.items()
            },
        ),
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


def _commit() -> str:
    """The commit of the source tree that this module lies in, or "unknown" where there is none."""
    root = Path(__file__).resolve().parent.parent
    try:
        head, changed = (
            subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for arguments in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "-uno", "--", "training", "common"],
            )
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{head}-dirty" if changed else head
