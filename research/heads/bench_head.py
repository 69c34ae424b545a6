"""``python -m research.heads.bench_head``: is the exported INT8 head the fastest way to run it here?

Figures are processor time. Beside it: the same head in float, as torch exports it, and
that one quantized by ONNX Runtime's own ``quantize_static``. Weights are random: what they are does not
change how long they take.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import warnings
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from tqdm import trange

from offramp.bench.timing import environment, one_core
from offramp.common.arguments import Parser
from offramp.common.part.session import session
from offramp.training.export import export
from offramp.training.models.mobilenet import mobilenet_v2
from offramp.training.models.split_model import SplitModel
from offramp.training.quantize.quantize import quantize
from research.program import run_program

PROGRAM = "python -m research.heads.bench_head"
EPILOG = """\
examples:
  python -m research.heads.bench_head
  python -m research.heads.bench_head --exits 5 --rounds 40 --json
"""
IMAGES = 64


@dataclass(frozen=True)
class Row:
    """One way to run one head, on one core, one image at a time."""

    exit: int
    what: str
    best_ms: float
    """The best round's median."""
    median_ms: float
    """The median of the rounds' medians."""


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        self._left = iter([{"image": image[None]} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)


class _Head(torch.nn.Module):
    """Activation at the split and logits of the early exit."""

    def __init__(self, model: SplitModel) -> None:
        super().__init__()
        self._model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        activation, _ = self._model.head(image)
        return activation, self._model.branch(activation)


def contestants(exit_number: int, images: int) -> dict[str, tuple[onnxruntime.InferenceSession, Any]]:
    """Sessions of one head and the image that each takes."""
    torch.manual_seed(0)
    model = SplitModel(mobilenet_v2(10), exit_number)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(min(images, 32), 3, 32, 32))
    model.eval()
    pixels = np.random.default_rng(0).integers(0, 256, (images, 3, 32, 32), dtype=np.uint8)
    floats = np.asarray((pixels.astype(np.float32) - 128) / 64, np.float32)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        float_path, clean, static = (
            str(Path(folder) / f"{name}.onnx") for name in ("float", "clean", "int8")
        )
        torch.onnx.export(
            _Head(model),
            (torch.from_numpy(floats[:1]),),
            float_path,
            input_names=["image"],
            output_names=["activation", "logits"],
            dynamo=False,
            opset_version=17,
        )
        quant_pre_process(float_path, clean)
        quantize_static(
            clean,
            static,
            _Images(floats),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        return {
            "ours, INT8": (
                session(export(quantize(model, torch.from_numpy(floats))).head, threads=1),
                pixels[:1],
            ),
            "float": (session(float_path, threads=1), floats[:1]),
            "quantize_static, INT8": (session(static, threads=1), floats[:1]),
        }


def measure(exit_number: int, rounds: int, runs: int, images: int) -> list[Row]:
    """All ways to run one head, round by round in turn, so that the machine's drift hits all alike."""
    ways = contestants(exit_number, images)
    medians: dict[str, list[float]] = {name: [] for name in ways}
    for _ in trange(rounds + 1, desc=f"exit {exit_number}", leave=False, disable=None):
        for name, (run, image) in ways.items():
            times = []
            for _ in range(runs):
                start = time.process_time_ns()
                run.run(None, {"image": image})
                times.append(time.process_time_ns() - start)
            medians[name].append(statistics.median(times) / 1e6)
    # The first round warms up.
    return [
        Row(exit_number, name, min(each[1:]), statistics.median(each[1:])) for name, each in medians.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns its exit status."""
    return run_program(PROGRAM, _main, argv)


def _main(argv: Sequence[str] | None) -> int:
    parser = Parser(
        PROGRAM,
        description="Latency of MobileNetV2's head in ONNX Runtime: our INT8 graph, float, quantize_static.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--exits", type=int, nargs="+", default=[5, 12], help="default: 5 12")
    parser.add_argument("--rounds", type=int, default=20, help="default: 20")
    parser.add_argument("--runs", type=int, default=200, help="images a round; default: 200")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"for calibration; default: {IMAGES}")
    parser.add_argument("--json", action="store_true", help="figures and environment as JSON")
    arguments = parser.parse_args(argv)
    with one_core() as core:
        around = environment(["onnxruntime", "torch"], core)
        how = (arguments.rounds, arguments.runs, arguments.images)
        rows = [row for e in arguments.exits for row in measure(e, *how)]
    if arguments.json:
        print(json.dumps({"environment": around, "rows": [asdict(row) for row in rows]}, indent=1))
        return 0
    print(", ".join(f"{name} {value}" for name, value in around.items()) + "\n")
    print("| exit | graph | best ms | median ms | median / ours |")
    print("|---:|---|---:|---:|---:|")
    ours = {row.exit: row.median_ms for row in rows if row.what.startswith("ours")}
    for row in rows:
        ratio = row.median_ms / ours[row.exit]
        print(f"| {row.exit} | {row.what} | {row.best_ms:.4f} | {row.median_ms:.4f} | {ratio:.2f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
