"""``offramp split``: a trained classifier and a folder of photos in, a measured pair for two machines out."""

from __future__ import annotations

import argparse
import json
import logging
from argparse import BooleanOptionalAction, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.common.arguments import Parser
from offramp.common.errors import ConfigError, ExitCode, printable
from offramp.training.display import Screen
from offramp.training.kinds import File, Places, Switch, Wrong
from offramp.training.split.board import Board, text_of
from offramp.training.split_recipe import FIELDS, Field, read_recipe, together

if TYPE_CHECKING:
    from offramp.training.split.run import Done

DESCRIPTION = """\
Split a trained classifier over two machines: its head with an early exit for the device, its tail for the
server, and between them a code of a few bytes that is learned for the tail's answers. Writes a bundle for
edge-device and cloud-server, and a report that compares it with sending pictures.

MODEL is timm:NAME, torchvision:NAME, hf:DIRECTORY_OR_ID, package.module:function (a function of yours that
returns a torch.nn.Module), or vgg19, resnet32, mobilenetv2. timm, torchvision and transformers are yours to
install. Without --weights or --pretrained its weights are random, and are trained here. In place of MODEL
stands RECIPE.toml: a file of these fields, as `offramp init` writes it, and as this command writes it beside
its bundle. Flags win over the recipe.

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

For a chain of more than two machines --cuts names several places: before each lies a part with an exit of its
own, and its code costs the --bytes of its place. Codes are fitted one after the other, the thresholds of all
exits are chosen together; --hop-costs says what a byte costs on each hop.

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
  offramp split mobilenetv2 --data photos --out my-split --profile device.toml
  offramp split mobilenetv2 --data photos --out my-split --side 96 --ram 256k --flash 1m
  offramp init photos && offramp split photos.toml --minutes 60
  offramp split my-split/recipe.toml --drop 2
  offramp split my_model:build --data photos --out my-chain --cuts blocks.3 blocks.8 --bytes 80,30
  offramp split timm:efficientnet_lite0 --data photos --out my-split --budget 20 --json | jq .verdict

exit status: 0 done, 2 wrong flags, recipe or profile, or a model that cannot be split or does not fit, 4 a
  graph that no bundle may have, 5 unusable photos or a goal that no T_c meets, 130 interrupted
"""
ENDS = ".toml"


def main(argv: Sequence[str]) -> int:
    """Run the command; progress goes to stderr, the report to stdout."""
    arguments = _parser().parse_args(argv)
    values = _values(arguments)
    with Screen() as screen:
        try:
            done = _run(values, screen)
        except KeyboardInterrupt:
            screen.say(
                "offramp split: interrupted; the same command goes on, and repeats half a minute at most"
            )
            return ExitCode.INTERRUPTED
    if arguments.json:
        print(json.dumps(done.report.values, indent=1))
    else:
        print("\n".join(_lines(done)))
    board = done.report.values.get("microcontroller")
    if board is not None and not board["fits"]:
        raise ConfigError(
            f"{values['out']}: is written, but its head {text_of(board)}; expected --ram "
            "and --flash to hold it, or an earlier --cut, or fewer --bytes"
        )
    return ExitCode.OK


def _values(arguments: argparse.Namespace) -> dict[str, Any]:
    """All fields: flags over the recipe over defaults. Raises ConfigError."""
    flags = {name: value for name, value in vars(arguments).items() if name not in ("recipe", "json")}
    recipe: Path | None = arguments.recipe
    if str(flags.get("model", "")).endswith(ENDS):
        if recipe is not None:
            raise ConfigError(f"{flags['model']} and --recipe {recipe}: expected one recipe")
        recipe = Path(flags.pop("model"))
    given = {} if recipe is None else read_recipe(recipe)
    values = together(given, flags, "" if recipe is None else str(recipe))
    for name in ("data", "out", "whole", "weights", "profile"):
        if values.get(name) is not None:
            values[name] = Path(values[name])
    out, data = values["out"], values["data"]
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{_origin('out', flags, recipe)} {out}: is a file; expected a folder")
    if not data.exists():
        raise ConfigError(f"{_origin('data', flags, recipe)} {data}: no such folder or file")
    return values


def _origin(name: str, flags: dict[str, Any], recipe: Path | None) -> str:
    return f"--{name}" if name in flags or recipe is None else f"{recipe}: split.{name}"


def _run(values: dict[str, Any], screen: Screen) -> Done:
    # Only here, so that --help and a wrong flag need no torch.
    screen.say("starting")
    from offramp.training.split.run import Display, Job, run

    # The exporter remarks on libraries that are not installed.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    return run(Job.of(values, board=_board(values)), Display(screen.say, screen.bar))


def _board(values: dict[str, Any]) -> Board | None:
    """The microcontroller, with the planner of `offramp export-c`; None: none was asked for."""
    from offramp.cli.export_c.estimate import needs_at
    from offramp.cli.export_c.program import make_program

    if values["ram"] is None and values["flash"] is None:
        return None

    return Board(values["ram"], values["flash"], needs_at, lambda bundle: make_program(bundle).needs)


def _parser() -> Parser:
    parser = Parser(
        "offramp split", description=DESCRIPTION, epilog=EPILOG, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default=argparse.SUPPRESS, help="the classifier, or RECIPE.toml"
    )
    groups: dict[str, Any] = {"": parser}
    for field in FIELDS[1:]:
        if field.group not in groups:
            groups[field.group] = parser.add_argument_group(field.group)
        add_flag(groups[field.group], field)
    parser.add_argument(
        "--recipe", type=Path, metavar="FILE", help="the same as RECIPE.toml in MODEL's place"
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    return parser


def add_flag(parser: argparse._ActionsContainer, field: Field) -> None:
    """A field's flag; one that is not given is not in what is parsed."""
    default = field.shown
    if not default and field.default not in (None, (), True, False):
        default = str(field.default) if isinstance(field.default, str) else f"{field.default:g}"
    text = field.text + (f" (default: {default})" if default else "")
    if isinstance(field.kind, Switch):
        parser.add_argument(field.flag, action=BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        return

    def read(value: str) -> Any:
        try:
            return field.kind.from_text(value)
        except Wrong:
            raise argparse.ArgumentTypeError(
                f"'{printable(value, 40)}': expected {field.kind.expected}"
            ) from None

    if isinstance(field.kind, Places):
        parser.add_argument(
            field.flag, nargs="+", action=_Tuple, default=argparse.SUPPRESS, metavar=field.metavar, help=text
        )
        return
    kind = Path if isinstance(field.kind, File) else read
    parser.add_argument(field.flag, type=kind, default=argparse.SUPPRESS, metavar=field.metavar, help=text)


class _Tuple(argparse.Action):
    """Several values as a tuple, as a recipe's list becomes."""

    def __call__(self, _: Any, namespace: argparse.Namespace, values: Any, __: str | None = None) -> None:
        setattr(namespace, self.dest, tuple(values))


def _lines(done: Done) -> list[str]:
    values, path = done.report.values, done.built.bundle.path
    accuracy, device = values["accuracy"], values["device"]
    sent, count = values["comparison"]["ours"][-1]["bytes_mean"], values["photos"]["test"]
    early = f"{values['exit_rate']:.1%} answered by the device"
    parts = [
        f"  part {number:<13}{each['answered']:.1%} answered, {each['right']:.2%} of all rightly, alone "
        f"{each['accuracy']:.2%}; sends {each['sent_bytes_mean']:,.1f} B a photo on average"
        for number, each in enumerate(values.get("parts", ()), start=1)
    ]
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
        *(
            [f"  microcontroller   {text_of(values['microcontroller'])}"]
            if "microcontroller" in values
            else ()
        ),
        *parts,
        "",
        f"run it: cloud-server --bundle {path} & {'' if not parts else 'edge-server between & '}"
        f"edge-device --bundle {path} PHOTOS",
    ]
