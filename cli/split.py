"""``offramp split``: a trained classifier and a folder of photos in, a measured pair for two machines out."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from offramp.common.arguments import Parser, number
from offramp.common.errors import ConfigError, ExitCode, printable

if TYPE_CHECKING:
    from offramp.training.split.run import Bar, Done, Job

DESCRIPTION = """\
Split a trained classifier over two machines: its head with an early exit for the device, its tail for the
server, and between them a code of a few bytes that is learned for the tail's answers. Writes a bundle for
edge-device and cloud-server, and a report that compares it with sending pictures.

MODEL is timm:NAME, torchvision:NAME, hf:DIRECTORY_OR_ID, package.module:function (a function of yours that
returns a torch.nn.Module), or vgg19, resnet32, mobilenetv2. timm, torchvision and transformers are yours to
install. Without --weights or --pretrained its weights are random, and are trained here.

The photos are one folder a class, or train and test folders of such; Parquet files with a picture column and
a label column; or a CSV file with the columns file and label. Where there is no test part, parts are made by
--seed. Every photo is decoded before anything else happens.

What happens: the model's own classifier is kept if its classes are the photos', else a new last layer is
fitted and then all weights tuned. What the device's half makes of several versions of each photo is computed
once and kept under DIR/work; on that, encoder, decoder and early exit are trained to give the model's own
answer through its unchanged tail. Both halves are quantized by ONNX Runtime; kinds of operators that do not
bear it stay in float. T_c is chosen on photos that trained nothing, and the report measured on the test part.

A run that was interrupted goes on with the same command, and has its minutes again. One with other settings
repeats the stages that they change, and says so: another --drop or --budget repeats no training.

Sounds (WAV) and tensors (.npy) are split the same way, in class folders or a CSV file: a sound is made a
log-mel spectrogram [1, mels, frames] by the flags below, which is what MODEL takes; a tensor stays as it is.

Not split yet: ONNX files, pictures that are not square or of three channels.
"""
EPILOG = """\
examples:
  offramp split timm:mobilenetv3_large_100 --pretrained --data photos --out my-split
  offramp split my_model:build --weights best.safetensors --data photos --out my-split \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
  offramp split torchvision:resnet50 --weights resnet50.pth --data photos --out my-split --head-macs 0.3
  offramp split mobilenetv2 --data photos/labels.csv --out my-split --head-memory 500kB --minutes 60
  offramp split timm:efficientnet_lite0 --data photos --out my-split --budget 20 --json | jq .verdict

exit status: 0 done, 2 wrong flags or a model that cannot be split, 4 a graph that no bundle may have,
  5 unusable photos or a goal that no T_c meets, 130 interrupted
"""
MAX_SIDE = 4096


def main(argv: Sequence[str]) -> int:
    """Run the command; progress goes to stderr, the report to stdout."""
    arguments = _parser().parse_args(argv)
    if arguments.out.exists() and not arguments.out.is_dir():
        raise ConfigError(f"--out {arguments.out}: is a file; expected a folder")
    if not arguments.data.exists():
        raise ConfigError(f"--data {arguments.data}: no such folder or file")
    if arguments.weights is not None and arguments.pretrained:
        raise ConfigError("--weights and --pretrained: expected one of them")
    display = _Display()
    try:
        done = _run(arguments, display)
    except KeyboardInterrupt:
        display.say("offramp split: interrupted; the same command goes on")
        return ExitCode.INTERRUPTED
    if arguments.json:
        print(json.dumps(done.report.values, indent=1))
    else:
        print("\n".join(_lines(done)))
    return ExitCode.OK


def _run(arguments: argparse.Namespace, display: _Display) -> Done:
    # Only here, so that --help and a wrong flag need no torch.
    from offramp.training.split.run import Display, run

    # The exporter remarks on libraries that are not installed.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    return run(_job(arguments), Display(display.say, display.bar))


def _job(arguments: argparse.Namespace) -> Job:
    from offramp.training.data.photos import Columns
    from offramp.training.data.tensors import Options
    from offramp.training.split.run import Job

    names = [name for name in (arguments.classes or "").split(",") if name]
    drop = arguments.drop
    if drop is None and arguments.budget is None:
        drop = 1.0
    fixed = arguments.steps is not None and arguments.versions is not None and arguments.epochs is not None
    minutes = arguments.minutes
    if minutes is None and not fixed:
        minutes = 30.0
    return Job(
        model=arguments.model,
        data=arguments.data,
        out=arguments.out,
        weights=arguments.weights,
        pretrained=arguments.pretrained,
        side=arguments.side,
        mean=arguments.mean,
        std=arguments.std,
        cut=arguments.cut,
        head_macs=arguments.head_macs,
        head_memory=arguments.head_memory,
        bytes=arguments.bytes,
        drop=drop,
        budget=arguments.budget,
        minutes=minutes,
        seed=arguments.seed,
        classifier=arguments.classifier,
        flip=not arguments.no_flip,
        epochs=arguments.epochs,
        versions=arguments.versions,
        steps=arguments.steps,
        columns=Columns(arguments.image_column, arguments.label_column, names),
        skip_bad=arguments.skip_bad,
        input=arguments.input,
        tensors=Options(
            **{name: getattr(arguments, name) for name in TENSOR_FLAGS},
            mean=arguments.value_mean,
            std=arguments.value_std,
        ),
        rival_minutes=arguments.rival_minutes,
        whole=arguments.whole,
    )


def _parser() -> Parser:
    parser = Parser(
        "offramp split", description=DESCRIPTION, epilog=EPILOG, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="of photos, or a file")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for bundle, report and work")
    parser.add_argument(
        "--whole", type=Path, metavar="DIR",
        help="also the unsplit classifier, as a bundle for cloud-server --pictures",
    )  # fmt: skip
    model = parser.add_argument_group("the model")
    model.add_argument("--weights", type=Path, metavar="FILE", help="safetensors, or torch.save's state_dict")
    model.add_argument(
        "--pretrained", action="store_true", help="its makers' weights, which may be downloaded"
    )
    model.add_argument(
        "--side", type=number(int, 8, MAX_SIDE, f"8 … {MAX_SIDE}"), metavar="PIXELS",
        help="of its pictures; its own by default",
    )  # fmt: skip
    model.add_argument("--mean", type=_levels, metavar="R,G,B", help="of pixels from 0 to 1, if not its own")
    model.add_argument("--std", type=_levels, metavar="R,G,B", help="deviation of pixels, the same way")
    model.add_argument(
        "--classifier", choices=["auto", "keep", "new"], default="auto",
        help="its last layer; auto keeps it if it answers the photos (default: auto)",
    )  # fmt: skip
    where = parser.add_argument_group("where to cut")
    where.add_argument("--cut", metavar="NAME", help="as `offramp cuts` names it")
    where.add_argument(
        "--head-macs", type=number(float, 0.01, 1, "0.01 … 1"), default=0.5, metavar="SHARE",
        help="of the multiply-accumulates for the device, code and early exit included (default: 0.5)",
    )  # fmt: skip
    where.add_argument(
        "--head-memory", type=_size, metavar="SIZE", help="of activations held at once, as 500kB"
    )
    goal = parser.add_argument_group("what for")
    goal.add_argument(
        "--bytes", type=number(float, 4, 100_000, "4 … 100000"), default=60.0, metavar="B",
        help="of a photo that is sent, about (default: 60)",
    )  # fmt: skip
    chosen = goal.add_mutually_exclusive_group()
    chosen.add_argument(
        "--drop", type=number(float, 0, 100, "points from 0 to 100"), metavar="POINTS",
        help="T_c for fewest bytes at most so many points below the pair's best (default: 1)",
    )  # fmt: skip
    chosen.add_argument(
        "--budget", type=number(float, 0, 1e9, "a number of bytes"), metavar="B",
        help="T_c for most accuracy at so many bytes a photo, on average over all photos",
    )  # fmt: skip
    effort = parser.add_argument_group("how long")
    effort.add_argument(
        "--minutes", type=number(float, 0.1, 10_000, "0.1 … 10000"), metavar="M",
        help="for everything (default: 30)",
    )  # fmt: skip
    effort.add_argument(
        "--rival-minutes", type=number(float, 0, 10_000, "0 … 10000"), default=0.0, metavar="M",
        help="more, to tune a copy of the unsplit model on WebP, for a fair comparison (default: 0)",
    )  # fmt: skip
    for name, most, text in (
        ("--epochs", 1000, "of tuning all weights, in place of time"),
        ("--versions", 64, "of each photo whose activations are kept, in place of time"),
        ("--steps", 1_000_000, "of training the code, in place of time"),
    ):
        low = 0 if name == "--epochs" else 1
        effort.add_argument(name, type=number(int, low, most, f"{low} … {most}"), metavar="N", help=text)
    effort.add_argument(
        "--seed",
        type=number(int, 0, 2**31 - 1, "0 … 2147483647"),
        default=0,
        metavar="N",
        help="decides parts, first weights and augmentation (default: 0)",
    )
    data = parser.add_argument_group("the photos")
    data.add_argument("--no-flip", action="store_true", help="a mirrored photo is another class")
    data.add_argument("--skip-bad", action="store_true", help="leave out what cannot be used, and name it")
    data.add_argument("--image-column", default="image", metavar="NAME", help="of Parquet (default: image)")
    data.add_argument("--label-column", default="label", metavar="NAME", help="of Parquet (default: label)")
    data.add_argument("--classes", metavar="A,B,…", help="names by label, or the order of folders")
    _add_tensor_flags(parser)
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    return parser


TENSOR_FLAGS = ("rate", "seconds", "mels", "window", "hop", "fmin", "fmax", "floor", "range")
"""Fields of ``Options``, each with a flag of its name."""


def _add_tensor_flags(parser: Parser) -> None:
    group = parser.add_argument_group("sounds and tensors")
    group.add_argument(
        "--input", choices=["auto", "picture", "wav", "tensor"], default="auto",
        help="what the data are: pictures, WAV files, or .npy files; auto looks (default: auto)",
    )  # fmt: skip
    for name, kind, low, high, text in (
        ("rate", int, 4000, 48_000, "Hz that sounds are resampled to; the files' own by default"),
        ("seconds", float, 0.01, 600, "of each sound, its middle; what 95 %% of the files last by default"),
        ("mels", int, 1, 512, "bands of the spectrogram (default: 40)"),
        ("window", int, 16, 8192, "samples of each of its frames (default: 32 ms)"),
        ("hop", int, 1, 8192, "samples from frame to frame (default: 12.5 ms)"),
        ("fmin", float, 0, 96_000, "Hz where its bands begin (default: 50)"),
        ("fmax", float, 1, 96_000, "Hz where they end (default: half the rate)"),
        ("floor", float, -200, -1, "decibels of what is quieter (default: -80)"),
    ):
        kind = number(kind, low, high, f"{low:g} … {high:g}")
        group.add_argument(f"--{name}", type=kind, metavar="N", help=text)
    group.add_argument(
        "--range", type=_range, metavar="LOW,HIGH", help="of a tensor's values; their own by default"
    )
    for name in ("mean", "std"):
        group.add_argument(
            f"--value-{name}", type=_numbers, metavar="N,…",
            help=f"{name} of the values that the model expects, one or one a channel; their own by default",
        )  # fmt: skip


def _numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(abs(each) < 1e30 for each in values):
        raise argparse.ArgumentTypeError(
            f"'{printable(text, 40)}': expected numbers with commas between them"
        )
    return values


def _range(text: str) -> tuple[float, ...]:
    values = _numbers(text)
    if len(values) != 2 or values[0] >= values[1]:
        raise argparse.ArgumentTypeError(f"'{printable(text, 40)}': expected two numbers, as -1,1")
    return values


def _levels(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) == 1:
        values *= 3
    if len(values) != 3 or not all(0 < each < 10 for each in values):
        raise argparse.ArgumentTypeError(
            f"'{printable(text, 40)}': expected one or three numbers from 0 to 1, as 0.485,0.456,0.406"
        )
    return values


_UNITS = {"": 1, "B": 1, "kB": 1000, "KB": 1000, "MB": 1_000_000, "kiB": 1024, "KiB": 1024, "MiB": 1 << 20}


def _size(text: str) -> int:
    digits = text.rstrip("BkKMi ")
    try:
        value = round(float(digits) * _UNITS[text[len(digits) :].strip()])
    except (ValueError, KeyError, OverflowError):
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{printable(text, 40)}': expected a size, as 500kB or 2MB")
    return value


def _lines(done: Done) -> list[str]:
    values, path = done.report.values, done.built.bundle.path
    accuracy, device = values["accuracy"], values["device"]
    sent, count = values["comparison"]["ours"][-1]["bytes_mean"], values["photos"]["test"]
    early = f"{values['exit_rate']:.1%} answered by the device"
    return [
        done.report.verdict,
        "",
        f"{path}  digest {values['digest'][:16]}; {path / 'report.md'}",
        f"  unsplit           {accuracy['unsplit']:.2%}, in float, of {count:,} test photos",
        f"  at T_c = {values['threshold']:<8g} {accuracy['pair']:.2%}, {early}, "
        f"{values['bytes_mean']:,.1f} B a photo on average",
        f"  early exit alone  {accuracy['early']:.2%}",
        f"  all sent          {accuracy['sent']:.2%}, {sent:,.1f} B a photo",
        f"  device            {device['share_of_macs']:.0%} of the multiply-accumulates, "
        f"{device['head_bytes']:,} B",
        "",
        f"run it: cloud-server --bundle {path} & edge-device --bundle {path} PHOTOS",
    ]


class _Display:
    """On a terminal a bar with the time that is left; elsewhere a line every ten seconds."""

    SECONDS = 10.0

    def say(self, line: str) -> None:
        """One line on stderr, above a bar."""
        tqdm.write(line, file=sys.stderr)

    @contextmanager
    def bar(self, name: str) -> Iterator[Bar]:
        """A bar of one stage."""
        if not sys.stderr.isatty():
            yield self._by_lines(name)
            return
        shown: list[tqdm[NoReturn]] = []

        def move(done: int, total: int, text: str = "") -> None:
            if not shown:
                shown.append(tqdm(total=total, desc=name, leave=False, file=sys.stderr, dynamic_ncols=True))
            bar = shown[0]
            bar.total = total
            if text:
                bar.set_postfix_str(text, refresh=False)
            bar.update(done - bar.n)

        try:
            yield move
        finally:
            for bar in shown:
                bar.close()

    def _by_lines(self, name: str, clock: Callable[[], float] = time.monotonic) -> Bar:
        began = last = clock()
        first: int | None = None

        def move(done: int, total: int, text: str = "") -> None:
            nonlocal last, first, began
            now = clock()
            if first is None:
                # How fast it is shows from here on.
                first, began, last = done, now, now
            if done >= total or now - last < self.SECONDS:
                return
            last = now
            left = (now - began) * (total - done) / max(1, done - first)
            more = f", {text}" if text else ""
            self.say(f"{name}: {done:,} of {total:,}{more}; {left:,.0f} s left")

        return move
