"""What the exported graphs do to labelled images: the figures in a bundle's manifest, and its default
threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from offramp.common.engine import softmax
from offramp.training.data import Labelled, to_float
from offramp.training.export import Graphs
from offramp.training.models import SplitModel

_BATCH = 64
_GRID = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Answers:
    """Both exits' answers for N images.

    ``symbols`` uint8 [N, C, H, W] (empty [N, 0] for a float model), ``confidence`` float32 [N] of the early
    exit, ``early_right`` and ``final_right`` bool [N].
    """

    symbols: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    early_right: NDArray[np.bool_]
    final_right: NDArray[np.bool_]

    def exits(self, threshold: float) -> NDArray[np.bool_]:
        """Which images exit early: those whose confidence exceeds T_c (Sec. III-B); at 1, none."""
        return self.confidence > threshold

    def accuracy(self, threshold: float) -> float:
        """Top-1 accuracy of the two exits together at a confidence threshold T_c."""
        return float(np.where(self.exits(threshold), self.early_right, self.final_right).mean())


def run_graphs(graphs: Graphs, data: Labelled) -> Answers:
    """Answers of the exported graphs, as ONNX Runtime computes them on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # x86 CPUs without VNNI would saturate sums of uint8 times int8; elsewhere this changes nothing.
    options.add_session_config_entry("session.x64quantprecision", "1")
    head, tail = (
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for graph in (graphs.head, graphs.tail)
    )
    parts = []
    for start in range(0, len(data), _BATCH):
        symbols, early = head.run(["symbols", "logits"], {"image": data.images[start : start + _BATCH]})
        (final,) = tail.run(["logits"], {"symbols": symbols})
        parts.append((symbols, early, final))
    symbols, early, final = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _answers(symbols, early, final, data)


@torch.no_grad()
def run_float(model: SplitModel, data: Labelled) -> Answers:
    """Answers of the float32 model, without symbols."""
    model.eval()
    parts = [model(to_float(images)) for images in torch.split(torch.from_numpy(data.images), _BATCH)]
    early, final = (torch.cat([getattr(part, name) for part in parts]).numpy() for name in ("early", "final"))
    return _answers(np.empty((len(data), 0), np.uint8), early, final, data)


def choose_threshold(answers: Answers, drop: float) -> float:
    """The lowest T_c on a grid of hundredths whose accuracy is at most ``drop`` below the final exit's.

    Choose on validation images: on test images the figures at it would be too good.
    """
    floor = float(answers.final_right.mean()) - drop
    # T_c = 1 sends every image to the final exit, so one always fits; the slack is for the means' last bit.
    return next(float(t) for t in _GRID if answers.accuracy(t) >= floor - 1e-12)


def _answers(
    symbols: NDArray[np.uint8], early: NDArray[np.float32], final: NDArray[np.float32], data: Labelled
) -> Answers:
    return Answers(
        symbols,
        softmax(early).max(axis=1),
        early.argmax(axis=1) == data.labels,
        final.argmax(axis=1) == data.labels,
    )
