"""What a bundle's manifest says of it: figures, measured on test images, and provenance."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from offramp.common.bundle.drift import EDGES, EarlyExitFigures
from offramp.common.bundle.manifest import (
    AgreementFigures,
    DatasetEntry,
    Figures,
    PartFigures,
    Provenance,
    ThresholdFigures,
)
from offramp.common.codec.huffman import entropy_bits
from offramp.training.calibrate.codebook import symbol_counts
from offramp.training.calibrate.measure import Answers

if TYPE_CHECKING:
    # It imports torch.
    from offramp.training.data.datasets import Dataset

CARD_THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_LIBRARIES = ("numpy", "onnx", "onnxruntime", "torch")
# Counting takes eight bytes for each symbol.
_SYMBOLS_AT_A_TIME = 1 << 23


def figures(
    answers: Answers,
    in_float: tuple[float, float],
    payloads: NDArray[np.int64],
    threshold: float,
    parts: list[PartFigures] | None = None,
) -> Figures:
    """The figures of a bundle's manifest.

    Args:
        answers: of the graphs, on test images.
        in_float: accuracy of the float32 model's early and final exit, on the same images.
        payloads: bytes of each image's payload, int64 [N].
        threshold: the default T_c, which gets a row.
        parts: of a chain of more than two, of which answers are the first part's and those behind it.
    """
    counts = symbol_counts_in_parts(answers.symbols)
    total = int(counts.sum())
    early_float, final_float = in_float
    # What is behind the first part answers as a chain at its thresholds; the last part alone is better known.
    final = float(answers.final_right.mean()) if parts is None else parts[-1].accuracy
    return Figures(
        images=len(payloads),
        accuracy_early=float(answers.early_right.mean()),
        accuracy_final=final,
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
            for value in sorted({*CARD_THRESHOLDS, threshold})
        ],
        agreement=[
            AgreementFigures(
                threshold=value,
                exits=int(answers.exits(value).sum()),
                agree=int((answers.exits(value) & answers.agree).sum()),
            )
            for value in sorted({*CARD_THRESHOLDS, threshold})
        ],
        drift=early_exit_figures(answers),
        parts=parts,
    )


def early_exit_figures(answers: Answers) -> EarlyExitFigures:
    """Images by what the early exit says of them."""
    bins = np.searchsorted(EDGES, answers.confidence)
    return EarlyExitFigures(
        edges=list(EDGES),
        confidence=np.bincount(bins, minlength=len(EDGES) + 1).tolist(),
        classes=np.bincount(answers.early.argmax(axis=1), minlength=answers.early.shape[1]).tolist(),
    )


def symbol_counts_in_parts(symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
    """`symbol_counts` of uint8 [N, C, H, W], int64 [C, 256], without its eight bytes for each symbol."""
    step = max(1, _SYMBOLS_AT_A_TIME // symbols[0].size)
    parts = (symbol_counts(symbols[start : start + step]) for start in range(0, len(symbols), step))
    return np.asarray(np.sum(list(parts), axis=0), np.int64)


def provenance(data: Dataset, recipe: str, seed: int) -> Provenance:
    """Where a bundle comes from: its data, the text of its recipe, and what it was made with."""
    return Provenance(
        commit=_commit(),
        dataset=DatasetEntry(
            name=data.name,
            sha256=data.sha256,
            train=len(data.train),
            validation=len(data.validation),
            test=len(data.test),
        ),
        recipe=recipe,
        seed=seed,
        libraries={name: version(name) for name in _LIBRARIES},
    )


def _commit() -> str:
    """The commit of the source tree that this module lies in, or "unknown" outside of one."""
    root = Path(__file__).resolve().parents[2]
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
