"""``offramp train``: from a recipe to a bundle."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from offramp.common.arguments import Parser
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import Context, Raw
from offramp.common.errors import BundleError, ConfigError, ExitCode, OfframpError
from offramp.common.part.answer import ANSWERED_BY
from offramp.training.display import Bar, Screen

# What needs torch is imported once there is something to train: --help answers at once.
if TYPE_CHECKING:
    from offramp.training.data.datasets import Dataset
    from offramp.training.hardware import Hardware, Precision
    from offramp.training.progress import Epoch, Progress
    from offramp.training.recipe import Recipe

_DESCRIPTION = """\
Train a split classifier with an early exit, quantize it to INT8 and write it as a bundle.

A recipe names the data, the model, the exit at which it is split, the schedule and the weight of the entropy
regulariser, or a bottleneck and the price of its code. Training runs in stages (base, exit, regularised; with
a bottleneck code before the last, restart and tail after it; with or without one, branch right after it) and
keeps the best epoch of each. After every epoch it writes a checkpoint; --resume goes on from there and ends
with the same bundle as a run without a break. A recipe with variants makes a bundle of each; stages that they
have in common are trained once.

your own pictures:
  1. Put them in one folder a class, train/cat/1.jpg … and test/cat/9.jpg …; or in Parquet files with a
     picture column (struct of bytes and path) and a label column (integers 0 … K-1).
  2. Copy runs/cifar10-mobilenetv2.toml, give it a name, remove its variants, and say where they are:

       [data]                                 [data]
       source = "imagefolder"                 source = "parquet"
       train = "train"                        train = ["train-0.parquet", "train-1.parquet"]
       test = "test"                          test = "test.parquet"
       size = 32                              image = "img"       # its columns' names
       validation = 0.1                       label = "label"
       flip = true                            classes = ["cat", "dog"]
                                              size = 32
       [model]                                validation = 0.1
       backbone = "mobilenet-v2"
       exit = 12

     validation is the share of train that chooses epochs, ranges, code tables and the threshold. The test
     part is for the figures that are reported, and for nothing else.
  3. offramp train my.toml --out my-bundle
  4. offramp inspect my-bundle; offramp threshold my-bundle --accuracy 0.9; edge-device --bundle my-bundle …
"""

_EXAMPLES = """\
examples:
  offramp train runs/digits.toml --out models/digits-mobilenetv2-exit12
  offramp train runs/digits.toml --out /tmp/digits --resume          go on after a kill
  offramp train runs/digits.toml --out /tmp/digits --json | jq .figures.payload_bytes_mean
  offramp train runs/cifar10-mobilenetv2.toml --out cifar10 --only exit12-entropy1
  offramp train runs/cifar10-mobilenetv2.toml --out cifar10 --resume --seconds 540   in slices of 9 minutes
  torchrun --nproc_per_node 4 -m offramp.training.app runs/imagenette.toml --out imagenette   on four GPUs
  offramp train runs/cifar10-mobilenetv2.toml --out cifar10 \\
    --train-data train.parquet --test-data test.parquet              files in place of the hub

exit status: 0 done, 2 bad flag, recipe or checkpoint, 5 bad data, 130 interrupted or out of --seconds
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status. Progress goes to stderr, the figures to stdout."""
    try:
        arguments = _parser().parse_args(argv)
        with Screen() as screen:
            for bundle in _bundles(arguments, screen):
                print(json.dumps(_report(bundle)) if arguments.json else _table(bundle), flush=True)
    except _Stopped as stop:
        print(f"offramp train: {stop}; --resume goes on", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except OfframpError as error:
        print(f"offramp train: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("offramp train: interrupted; --resume goes on after the last whole epoch", file=sys.stderr)
        return ExitCode.INTERRUPTED
    return ExitCode.OK


class _Stopped(Exception):
    """``--seconds`` are over."""


def _parser() -> Parser:
    parser = Parser(
        prog="offramp train",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, help="TOML file, see runs/")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for the bundle; for a folder of each variant's, where a recipe has variants",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these variants, in this order")
    parser.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="replace fields of the recipe, such as train.base.epochs=30; a variant's own stay",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoints of this recipe; leave bundles that are done alone",
    )
    parser.add_argument(
        "--checkpoints",
        type=Path,
        metavar="DIR",
        help="folder for checkpoints (default: checkpoints/<the file's name>)",
    )
    parser.add_argument(
        "--train-data",
        nargs="+",
        metavar="PATH",
        help="Parquet files, or a folder of class folders, in place of the recipe's train part",
    )
    parser.add_argument(
        "--test-data",
        nargs="+",
        metavar="PATH",
        help="Parquet files, or a folder of class folders, in place of the recipe's test part",
    )
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out pictures that cannot be used, and name them, in place of ending with an error",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to train")
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16", "float16"],
        help="of convolutions in training (default: bfloat16 on a GPU, float32 on the CPU)",
    )
    parser.add_argument("--compile", action="store_true", help="let torch.compile fuse the training step")
    parser.add_argument(
        "--seconds",
        type=_positive,
        metavar="S",
        help="stop at a checkpoint before this time is over, with exit status 130",
    )
    parser.add_argument(
        "--export-test",
        type=Path,
        metavar="DIR",
        help="also write the test images as PNG files with labels.csv",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, a line a bundle")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}, expected a number above 0")
    return value


def _bundles(arguments: argparse.Namespace, screen: Screen) -> Iterator[Bundle]:
    """Make each bundle in turn, or leave it as it is where that is asked for and right.

    Of several processes that train together, the main one alone has them."""
    from offramp.training.data.datasets import write_images
    from offramp.training.data.held_out import write_beside
    from offramp.training.progress import Clock, OutOfTime
    from offramp.training.recipe_file import has_variants, read
    from offramp.training.run import Job, run

    clock = Clock(arguments.seconds)
    found = read(arguments.recipe, settings=arguments.settings, only=arguments.only)
    hardware = choose_hardware(arguments.device, arguments.precision, arguments.compile)
    display = _Display(hardware.is_main, screen)
    datasets = _Datasets(arguments.train_data, arguments.test_data, arguments.skip_bad, display)
    nested = has_variants(arguments.recipe)
    for recipe, text in found:
        out = arguments.out / recipe.name if nested else arguments.out
        data = datasets.of(recipe)
        done = _finished(out, text, data) if arguments.resume and hardware.is_main else None
        if hardware.any(done is not None):
            display.line(f"{out} is done")
            if done is not None:
                yield done
            continue
        if nested:
            display.line(f"{recipe.name}:")
        job = Job(
            recipe=recipe,
            text=text,
            data=data,
            checkpoints=arguments.checkpoints or Path("checkpoints") / arguments.recipe.stem,
            out=out,
            # Variants share what they have in common, whether or not an earlier call began it.
            resume=arguments.resume or recipe is not found[0][0],
            hardware=hardware,
            clock=clock,
            progress=display.progress(),
            say=display.line,
        )
        try:
            bundle = run(job)
        except OutOfTime:
            raise _Stopped(f"{arguments.seconds:g} s are over in {recipe.name}") from None
        if bundle is not None:
            write_beside(bundle.path, text, datasets.recipe_of(recipe))
            yield bundle
            if arguments.export_test is not None:
                write_images(data.test, data.classes, arguments.export_test)


def choose_hardware(device: str, precision: Precision | None, compiled: bool) -> Hardware:
    """Where to train. Raises ConfigError for a GPU that is not there."""
    import torch

    from offramp.training.hardware import Hardware, keep_freed_memory

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ConfigError("--device cuda: torch finds no GPU here")
    gpu = there and device != "cpu"
    if gpu:
        torch.backends.cudnn.benchmark = True
    else:
        keep_freed_memory()
    return Hardware(
        "cuda" if gpu else "cpu", precision or ("bfloat16" if gpu else "float32"), compiled=compiled
    )


class _Datasets:
    """Each data set once, however many recipes learn from it."""

    def __init__(
        self, train: list[str] | None, test: list[str] | None, skip_bad: bool, display: _Display
    ) -> None:
        if (train is None) != (test is None):
            raise ConfigError("--train-data and --test-data: expected both or neither")
        self._files = None if train is None or test is None else (train, test)
        self._display = display
        self._skipped = (lambda line: display.line(f"left out: {line}")) if skip_bad else None
        self._loaded: dict[str, Dataset] = {}

    def recipe_of(self, recipe: Recipe) -> Recipe:
        """A recipe with the files that were given in its data's place, if any were."""
        return recipe if self._files is None else recipe.with_files(*self._files)

    def of(self, recipe: Recipe) -> Dataset:
        """The data of a recipe, or the files that were given in its data's place."""
        from offramp.training.data import sources

        recipe = self.recipe_of(recipe)
        key = f"{recipe.seed} {recipe.data.model_dump_json()}"
        if key not in self._loaded:
            self._loaded[key] = sources.load(recipe.data, seed=recipe.seed, skipped=self._skipped)
            data = self._loaded[key]
            self._display.line(
                f"{data.name}: {len(data.train):,} images to train, {len(data.validation):,} to validate, "
                f"{len(data.test):,} to test"
            )
        return self._loaded[key]


def _finished(out: Path, text: str, data: Dataset) -> Bundle | None:
    """The bundle there, if it was made by this text from these data and its record is complete."""
    from offramp.training.record import RECORD, read_record

    try:
        bundle = load_bundle(out)
    except BundleError:
        return None
    provenance = bundle.manifest.provenance
    if provenance.recipe != text or provenance.dataset.sha256 != data.sha256:
        return None
    path = out / RECORD
    return bundle if path.exists() and read_record(path).name == bundle.manifest.name else None


def _report(bundle: Bundle) -> dict[str, object]:
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.path),
        "digest": bundle.digest.hex(),
        "threshold": manifest.threshold,
        "sent_answer": manifest.sent_answer,
        "codec": manifest.codec.model_dump(mode="json", exclude={"table_of_channel"}),
        "figures": manifest.figures.model_dump(mode="json"),
    }


def _table(bundle: Bundle) -> str:
    manifest = bundle.manifest
    figures = manifest.figures
    channels, height, width = manifest.activation.coded_shape
    raw, coded = channels * height * width, figures.payload_bytes_mean
    size = sum(entry.size for entry in manifest.files.values())
    codec = manifest.codec
    shared = [] if isinstance(codec, Raw | Context) else codec.table_of_channel
    rows = [
        ("early exit", f"{figures.accuracy_early:.2%} (float {figures.accuracy_early_float:.2%})"),
        ("final exit", f"{figures.accuracy_final:.2%} (float {figures.accuracy_final_float:.2%})"),
        ("activation", f"{raw:,} B raw, {coded:,.1f} B coded, {coded / raw:.1%}"),
        ("  coded by", codec.kind + (f", {len(set(shared))} tables" if shared else "")),
        ("bits per symbol", f"{coded * 8 / raw:.3f} coded"),
        (
            "  entropy",
            f"{figures.entropy_bits:.3f} over the tensor, {figures.entropy_bits_channel:.3f} in channels",
        ),
    ]
    # A threshold that was chosen later need not be among those measured here.
    for at in figures.thresholds:
        if at.threshold == manifest.threshold:
            rows += [
                (
                    f"at T_c = {at.threshold:.2f}",
                    f"{at.exit_rate:.1%} exit early, {at.accuracy:.2%} right; "
                    f"the others answered by {ANSWERED_BY[manifest.sent_answer]}",
                ),
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
    """A line for each epoch, and within one a bar, or a line every ten seconds where there is no terminal.

    All of it on stderr. shown: or nothing.
    """

    def __init__(self, shown: bool, screen: Screen) -> None:
        self._shown, self._screen = shown, screen
        self._bar: tqdm[NoReturn] | None = None
        self._lines: Bar | None = None
        self._since = time.monotonic()

    def progress(self) -> Progress:
        from offramp.training.progress import Progress

        self._since = time.monotonic()
        if not self._shown:
            return Progress()
        batch = self._batch if sys.stderr.isatty() else self._batch_by_lines
        return Progress(batch=batch, epoch=self._epoch, say=self.line)

    def line(self, text: str) -> None:
        if self._shown:
            self._screen.say(text)

    def _batch(self, stage: str, epoch: int, step: int, steps: int) -> None:
        bar = self._bar
        if bar is None:
            bar = tqdm(total=steps, desc=f"{stage} {epoch}", unit="step", leave=False, file=sys.stderr)
        bar.update(step - bar.n)
        if step == steps:
            bar.close()
        self._bar = None if step == steps else bar

    def _batch_by_lines(self, stage: str, epoch: int, step: int, steps: int) -> None:
        self._lines = self._lines or self._screen.lines(f"{stage} {epoch}")
        self._lines(step, steps)
        if step == steps:
            self._lines = None

    def _epoch(self, epoch: Epoch) -> None:
        figures = "  ".join(
            f"{name} {value:.3f}" if name in ("entropy_bits", "error") else f"{name} {value:.2%}"
            for name, value in epoch.figures.items()
        )
        best = "  best" if epoch.best else ""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        place = f"{epoch.stage} {epoch.number}/{epoch.epochs}"
        self.line(f"{place}  loss {epoch.loss:.4f}  {figures}  {seconds:.1f} s{best}")


if __name__ == "__main__":
    # For `accelerate launch -m` and `torchrun -m`.
    sys.exit(main())
