"""``offramp train``: from a recipe to a bundle."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from offramp.common.bundle import (
    CODEBOOK,
    HEAD,
    TAIL,
    Activation,
    Bundle,
    Figures,
    Manifest,
    Preprocessing,
    Provenance,
    Raw,
    SplitPoint,
    ThresholdFigures,
    file_entries,
    write_bundle,
)
from offramp.common.bundle import Dataset as DatasetEntry
from offramp.common.codebook import entropy_bits
from offramp.common.config import Parser
from offramp.common.errors import ExitCode, OfframpError
from offramp.training import recipe as recipes
from offramp.training.codebook import choose_codec, payload_bytes, symbol_counts
from offramp.training.data import Dataset, load, to_float, write_images
from offramp.training.export import export
from offramp.training.measure import Answers, choose_threshold, run_float, run_graphs
from offramp.training.models import SplitModel
from offramp.training.quantize import quantize
from offramp.training.recipe import Recipe
from offramp.training.train import Epoch, Progress, train

_LIBRARIES = ("numpy", "onnx", "onnxruntime", "scikit-learn", "torch")
_THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

_DESCRIPTION = """\
Train a split classifier with an early exit, quantize it to INT8 and write it as a bundle.

A recipe names the data, the model, the exit at which it is split, the schedule and the weight of the entropy
regulariser. Training runs in three stages (base, exit, regularised) and keeps the best epoch of each. After
every epoch it writes a checkpoint; --resume goes on from there and ends with the same bundle as a run without
a break.
"""

_EXAMPLES = """\
examples:
  offramp train runs/digits.toml --out models/digits-mobilenetv2-exit12
  offramp train runs/digits.toml --out /tmp/digits --resume          go on after a kill
  offramp train runs/digits.toml --out /tmp/digits --json | jq .figures.payload_bytes_mean

exit status: 0 done, 2 bad flag, recipe or checkpoint, 5 bad data, 130 interrupted
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status. Progress goes to stderr, the figures to stdout."""
    try:
        arguments = _parser().parse_args(argv)
        bundle = _run(arguments)
    except OfframpError as error:
        print(f"offramp train: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("offramp train: interrupted; --resume goes on after the last whole epoch", file=sys.stderr)
        return ExitCode.INTERRUPTED
    if arguments.json:
        manifest = bundle.manifest
        report = {
            "bundle": str(bundle.path),
            "digest": bundle.digest.hex(),
            "threshold": manifest.threshold,
            "codec": manifest.codec.model_dump(mode="json", exclude={"table_of_channel"}),
            "figures": manifest.figures.model_dump(mode="json"),
        }
        print(json.dumps(report))
    else:
        print(_table(bundle))
    return ExitCode.OK


def _parser() -> Parser:
    parser = Parser(
        prog="offramp train",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, help="TOML file, see runs/")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the bundle")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints of this recipe")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        metavar="DIR",
        help="folder for checkpoints (default: checkpoints/<recipe name>)",
    )
    parser.add_argument(
        "--export-test",
        type=Path,
        metavar="DIR",
        help="also write the test images as PNG files with labels.csv",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")
    return parser


def _run(arguments: argparse.Namespace) -> Bundle:
    recipe, text = recipes.read(arguments.recipe)
    data = load(
        recipe.data.source, validation=recipe.data.validation, test=recipe.data.test, seed=recipe.seed
    )
    checkpoints = arguments.checkpoints or Path("checkpoints") / recipe.name
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    display = _Display()
    model = train(
        recipe, data, checkpoints, resume=arguments.resume, device=device, progress=display.progress()
    )
    display.line("quantizing, exporting and measuring")
    bundle = make_bundle(arguments.out, recipe, text, data, model)
    if arguments.export_test is not None:
        write_images(data.test, data.classes, arguments.export_test)
    return bundle


def make_bundle(out: Path, recipe: Recipe, text: str, data: Dataset, model: SplitModel) -> Bundle:
    """Quantize, export, choose codebook and threshold on validation images, measure on test images, write.

    Args:
        out: folder of the bundle.
        recipe: what ``model`` was trained by.
        text: the recipe's own text, kept as provenance.
        data: all three parts.
        model: trained float32 model.
    """
    order = np.random.default_rng(recipe.seed).permutation(len(data.validation))
    # At least one image, however small the share.
    count = int(np.ceil(len(order) * recipe.quantize.calibration))
    calibration, others = order[:count], order[count:]
    quantized = quantize(model, to_float(torch.from_numpy(data.validation.images[calibration])))
    graphs = export(quantized)

    seen = run_graphs(graphs, data.validation)
    codec = choose_codec(seen.symbols[calibration], seen.symbols[others])
    threshold = choose_threshold(seen, recipe.threshold.drop)

    answers, in_float = run_graphs(graphs, data.test), run_float(model, data.test)
    payloads = payload_bytes(codec.tables, codec.lanes, answers.symbols)
    files = {HEAD: graphs.head, TAIL: graphs.tail, CODEBOOK: codec.tables.to_bytes()}
    entries = file_entries(files)
    _, height, width = quantized.input_shape
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
        provenance=Provenance(
            commit=_commit(),
            dataset=DatasetEntry(
                name=data.name,
                sha256=data.sha256,
                train=len(data.train),
                validation=len(data.validation),
                test=len(data.test),
            ),
            recipe=text,
            seed=recipe.seed,
            libraries={name: version(name) for name in _LIBRARIES},
        ),
        figures=_figures(answers, in_float, payloads, threshold),
    )
    return write_bundle(out, manifest, files)


def _figures(answers: Answers, in_float: Answers, payloads: NDArray[np.int64], threshold: float) -> Figures:
    counts = symbol_counts(answers.symbols)
    total = int(counts.sum())
    return Figures(
        images=len(payloads),
        accuracy_early=float(answers.early_right.mean()),
        accuracy_final=float(answers.final_right.mean()),
        accuracy_early_float=float(in_float.early_right.mean()),
        accuracy_final_float=float(in_float.final_right.mean()),
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
            for value in sorted({*_THRESHOLDS, threshold})
        ],
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


def _table(bundle: Bundle) -> str:
    manifest = bundle.manifest
    figures = manifest.figures
    channels, height, width = manifest.activation.shape
    raw, coded = channels * height * width, figures.payload_bytes_mean
    at = next(at for at in figures.thresholds if at.threshold == manifest.threshold)
    size = sum(entry.size for entry in manifest.files.values())
    codec = manifest.codec
    tables = 0 if isinstance(codec, Raw) else len(set(codec.table_of_channel))
    rows = [
        ("early exit", f"{figures.accuracy_early:.2%} (float {figures.accuracy_early_float:.2%})"),
        ("final exit", f"{figures.accuracy_final:.2%} (float {figures.accuracy_final_float:.2%})"),
        ("activation", f"{raw:,} B raw, {coded:,.1f} B coded, {coded / raw:.1%}"),
        ("  coded by", f"{codec.kind}, {tables} tables"),
        ("bits per symbol", f"{coded * 8 / raw:.3f} coded"),
        (
            "  entropy",
            f"{figures.entropy_bits:.3f} over the tensor, {figures.entropy_bits_channel:.3f} in channels",
        ),
        (f"at T_c = {at.threshold:.2f}", f"{at.exit_rate:.1%} exit early, accuracy {at.accuracy:.2%}"),
        ("  bytes per image", f"{at.payload_bytes_mean:,.1f}, images that exit early counted as 0"),
    ]
    return "\n".join(
        [
            f"{bundle.path}  {size:,} bytes  digest {bundle.digest.hex()[:16]}",
            f"measured on {figures.images} test images:",
            *(f"  {name:<18}{text}" for name, text in rows),
        ]
    )


class _Display:
    """A bar on a terminal, one line per epoch elsewhere; all of it on stderr."""

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] | None = None

    def progress(self) -> Progress:
        if sys.stderr.isatty():
            return Progress(batch=self._batch, epoch=self._epoch)
        return Progress(epoch=self._epoch)

    def line(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    def _batch(self, stage: str, epoch: int, step: int, steps: int) -> None:
        bar = self._bar
        if bar is None:
            bar = tqdm(total=steps, desc=f"{stage} {epoch}", unit="step", leave=False, file=sys.stderr)
        bar.update(step - bar.n)
        if step == steps:
            bar.close()
        self._bar = None if step == steps else bar

    def _epoch(self, epoch: Epoch) -> None:
        figures = "  ".join(
            f"{name} {value:.3f}" if name == "entropy_bits" else f"{name} {value:.2%}"
            for name, value in epoch.figures.items()
        )
        best = "  best" if epoch.best else ""
        self.line(f"{epoch.stage} {epoch.number}/{epoch.epochs}  loss {epoch.loss:.4f}  {figures}{best}")
