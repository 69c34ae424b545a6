"""Writes the tables of flags, settings, metrics, errors and recipe fields into docs/reference, from the code:

python .ci/docs_tables.py            write them (`make docs-tables`)
python .ci/docs_tables.py --check    say which page is not what the code gives; exit status 1
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from offramp.bench.bench import BENCHMARKS
from offramp.cli.app import COMMANDS
from offramp.cli.follow.metrics import FollowMetrics
from offramp.common import errors
from offramp.common.arguments import Parser
from offramp.common.bundle.load import load_bundle
from offramp.common.settings import Settings, default_of, flag_of, variable_of
from offramp.device.metrics import DeviceMetrics
from offramp.device.settings import DeviceSettings
from offramp.gateway.metrics import GatewayMetrics
from offramp.gateway.settings import GatewaySettings
from offramp.link.wire_bytes import WireBytes
from offramp.server.forward import ForwardMetrics
from offramp.server.metrics import ServerMetrics
from offramp.server.settings import ServerSettings
from offramp.training import recipe, split_recipe
from offramp.training.data import recipe as data_recipe
from offramp.training.models import recipe as models_recipe
from offramp.training.models.networks import BACKBONES
from offramp.training.quantize import recipe as quantize_recipe
from offramp.training.stages import base, branch, code, rate, regularised, stage, tail
from offramp.v1 import inference_pb2 as pb

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
BLOCK = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
SETTINGS: dict[str, type[Settings]] = {
    "edge-device": DeviceSettings,
    "cloud-server": ServerSettings,
    "gateway": GatewaySettings,
}
INFO = ("offramp_build_info", "offramp_bundle_info")

EXITS = {
    "OK": "done: every image answered as it should be, a server drained",
    "BUG": "a bug: please report it with the log",
    "CONFIG": "a flag, a setting or a recipe is wrong",
    "UNAVAILABLE": "the server did not answer for every image that needed it, or no registry answered",
    "BUNDLE": "a bundle is damaged, hostile or unsupported",
    "DATA": "the run ended, but an image could not be read; or a data set cannot be used",
    "PEER": "the server runs another bundle, refuses the token or breaks the protocol",
    "ADDRESS": "an address cannot be bound",
    "INTERRUPTED": "stopped by a signal, or nobody reads the output",
}
REASONS = {
    "CHECKSUM": "the CRC-32 does not match",
    "SEQUENCE": "a number that was used already, or is out of range",
    "CODEC": "an unknown codec id, or a picture where no bundle answers pictures",
    "PAYLOAD": "bytes that do not decode to one activation, or one picture of the right size",
    "OVERLOADED": "the queue is full, or too slow for this frame; `retry_after_ms` says when to come back",
    "INTERNAL": "the batch failed in the tail",
    "EXPIRED": "it waited longer than its device does",
}
STAGE_FIELDS = {
    "epochs": "0 leaves the stage out",
    "learning_rate": "at the start; it falls to 0 along half a cosine",
    "images": "training images that an epoch draws, others each time; all without it",
    "crop": "smallest share of an image's area that the stage sees, blown up to the frame; 1: all of it",
    "weight_decay": "the stage's own; that of `[train]` without it",
}
TAUGHT = {
    "distill": "share of the exit's loss that follows the unsplit model's answers, not the labels",
    "temperature": "of these answers",
}
CUTMIX = {
    "cutmix": "share of images with a part of another one pasted in; the unsplit model answers them",
}
RATE = (
    {
        "rate": "loss of one KB of estimated payload per image",
        "distill_early": "as `distill`, for the early exit",
        "tail": "share of the learning rate for the rest of the server's half; 0: stays as it is",
        "head": "share of it for the device's half; 0: stays as it is",
    }
    | TAUGHT
    | CUTMIX
)
DATA = {
    "validation": "share of the training images that chooses epochs, ranges, tables and threshold",
    "shift": "pixels of random shift in training",
    "flip": "mirror half of the training images",
}
PICTURES = DATA | {
    "image": "the pictures' column",
    "label": "the labels' column, integers 0 … K − 1",
    "size": "side in pixels that pictures are resized to",
    "classes": "names by label, where the data has none",
}
# Section → class of the recipe, what is in it, what each field means.
RECIPE: dict[str, tuple[type[BaseModel], str, dict[str, str]]] = {
    "top level": (
        recipe.Recipe,
        "",
        {
            "name": "of the bundle: lower case letters, digits, dots and dashes",
            "seed": "of everything random",
        },
    ),
    "[data], source = \"imagefolder\"": (
        data_recipe.FolderRecipe,
        "One folder with a sub-folder for each class, to train and to test.",
        {"source": "", "train": "the folder to train on", "test": "the folder that figures are reported on"}
        | PICTURES,
    ),
    "[data], source = \"parquet\"": (
        data_recipe.ParquetRecipe,
        "Parquet files with a picture column (struct of bytes and path) and a label column.",
        {"source": "", "train": "files to train on", "test": "files that figures are reported on"} | PICTURES,
    ),
    "[data], source = \"hub\"": (
        data_recipe.HubRecipe,
        "A data set of the Hugging Face hub.",
        {
            "source": "",
            "name": "of the data set",
            "config": "its configuration, if it has several",
            "revision": "a commit of it",
            "train": "the split to train on",
            "test": "the split that figures are reported on",
        }
        | PICTURES,
    ),
    "[data], source = \"sklearn-digits\"": (
        data_recipe.DigitsRecipe,
        "The handwritten digits of scikit-learn.",
        {"source": "", "test": "share that figures are reported on"} | DATA,
    ),
    "[model]": (
        models_recipe.ModelRecipe,
        "",
        {"backbone": "the network", "exit": "position of the early exit, which is also where it is split"},
    ),
    "[model.bottleneck]": (
        models_recipe.BottleneckRecipe,
        "Makes the split a [rate-trained](../explanation/rate-trained.md) one.",
        {
            "channels": "of the code",
            "stride": "how many times smaller than the activation's sides the code's are",
            "width": "channels of the encoder's first layer",
            "growth": "how many times as wide as the one before each further layer of the encoder is",
            "exit_behind": "the early exit sees the encoder's last layer but one, not the activation",
            "density": "what training charges: static tables for each channel, or the context coder",
        },
    ),
    "[train]": (
        recipe.TrainRecipe,
        "",
        {
            "batch_size": "images a step",
            "momentum": "of SGD",
            "weight_decay": "of all stages without their own",
            "rho": "weights of the exits' losses, the early one first",
        },
    ),
    "every stage, [train.…]": (stage.StageRecipe, "", STAGE_FIELDS),
    "[train.base]": (
        base.BaseRecipe,
        "",
        {"sides": "sides of the images in the first epochs, one each; smaller ones are faster"},
    ),
    "[train.code]": (
        code.CodeRecipe,
        "",
        {
            "rate": "loss of one KB of estimated payload per image",
            "at": "position behind the split whose output has to come out right; the activation without it",
        },
    ),
    "[train.regularised]": (
        regularised.RegularisedRecipe,
        "",
        {
            "entropy": "λ_e of the paper",
            "sparsity": "λ_s of the paper",
            "bins": "of the soft histogram that the entropy is of",
            "webp": "qualities: images as they are or as WebP of one of these, for a whole model",
        }
        | RATE,
    ),
    "[train.branch]": (
        branch.BranchRecipe,
        "",
        {"widths": "channels of a new early exit's 3×3 convolutions; empty: the old one learns on"}
        | TAUGHT
        | CUTMIX,
    ),
    "[train.restart]": (rate.RateRecipe, "", RATE),
    "[train.tail]": (tail.TailRecipe, "", TAUGHT),
    "[quantize]": (
        quantize_recipe.QuantizeRecipe,
        "",
        {
            "calibration": "share of the validation images that calibrates",
            "divergence": "how far the step may move an exit's answers, mean nats; 0: the paper's 8 bits",
        },
    ),
    "[threshold]": (
        recipe.ThresholdRecipe,
        "",
        {"drop": "the default T_c is the lowest that costs at most this of the best validation accuracy"},
    ),
}  # fmt: skip


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def settings(kind: type[Settings]) -> str:
    """A row for each setting of a program."""

    def rows() -> Iterator[Sequence[str]]:
        for name, field in kind.model_fields.items():
            default = (
                "required" if field.is_required() else f"`{text}`" if (text := default_of(field)) else ""
            )
            yield f"`{flag_of(name)}`", f"`{variable_of(name)}`", default, field.description or ""

    return table(("flag", "environment", "default", "what"), rows())


class Found(BaseException):
    """Carries a program's parser out of it."""


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that a command's ``main`` makes."""

    def give(self: Parser, *_: Any, **__: Any) -> Any:
        raise Found(self)

    main: Callable[[list[str]], int] = importlib.import_module(module).main
    try:
        with patch.object(Parser, "parse_args", give):
            main([])
    except Found as found:
        parser: argparse.ArgumentParser = found.args[0]
        return parser
    raise AssertionError(f"{module} reads its arguments otherwise")


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser, or those of its sub-commands."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for each in action.choices.values():
            yield from leaves(each)
    if not below:
        yield parser


def commands() -> str:
    """A section for each command of ``offramp``."""
    parts = []
    for name, command in COMMANDS.items():
        modules = [module for module, _ in BENCHMARKS.values()] if name == "bench" else [command.module]
        extras = f"Extra `[{command.extra}]`."
        parts.append(f"## offramp {name}\n\n{command.text[0].upper()}{command.text[1:]}. {extras}\n")
        for parser in (each for module in modules for each in leaves(parser_of(module))):
            if parser.prog != f"offramp {name}":
                text = BENCHMARKS[parser.prog.split()[-1]][1] if name == "bench" else parser.description or ""
                parts.append(f"### {parser.prog}\n\n{text[0].upper()}{text[1:].rstrip('.')}.\n")
            parts.append(table(("argument", "default", "what"), arguments(parser)))
            if parser.epilog:
                parts.append(f"```\n{parser.epilog.strip()}\n```\n")
    return "\n".join(parts)


def arguments(parser: argparse.ArgumentParser) -> Iterator[Sequence[str]]:
    """A row for each argument but --help."""
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = (
            ", ".join(f"`{flag}`" for flag in action.option_strings) or f"`{action.metavar or action.dest}`"
        )
        text = (action.help or "").replace("%%", "%")
        known = re.search(r"default: ([^);]+)", text)
        default = known[1] if known else "required" if action.required and action.option_strings else ""
        if (
            not known
            and isinstance(action.default, int | float | str | Path)
            and action.default not in ("", False, argparse.SUPPRESS)
        ):
            shown = str(action.default)
            default = "`" + shown.replace(f"{ROOT}/", "") + "`"
        yield name, default, re.sub(r" ?\(default: [^)]*\)|; default: .*$|^default: .*$", "", text)


def metrics(program: str) -> str:
    """A row for each metric of a program, with its labels."""
    if program == "edge-device":
        device = DeviceMetrics(load_bundle(ROOT / "models" / "digits-mobilenetv2-exit12"))
        device.link.watch_wire(lambda: WireBytes(0, 0))
        device.add_parts(3)
        registry = device.registry
    elif program == "gateway":
        gateway = GatewayMetrics()
        gateway.link.watch_wire(lambda: WireBytes(0, 0))
        registry = gateway.registry
    elif program == "follow":
        registry = FollowMetrics().registry
    else:
        server = ServerMetrics()
        server.watch_connections(0)
        ForwardMetrics(server.registry).link.watch_wire(lambda: WireBytes(0, 0))
        registry = server.registry

    def rows() -> Iterator[Sequence[str]]:
        labelled = {
            getattr(collector, "_name"): getattr(collector, "_labelnames")  # noqa: B009 - of no public type
            for collector in registry._collector_to_names
            if hasattr(collector, "_labelnames")
        }
        for family in registry.collect():
            if family.name in INFO:
                continue
            # Other collectors, such as Tallies, show their labels in their samples alone.
            labels = labelled.get(family.name) or sorted(
                {label for sample in family.samples for label in sample.labels} - {"le"}
            )
            name = family.name + ("_total" if family.type == "counter" else "")
            yield (
                f"`{name}" + ("{" + ",".join(labels) + "}" if labels else "") + "`",
                family.type,
                family.documentation,
            )

    return table(("metric", "type", "what"), rows())


def exit_status() -> str:
    """A row for each exit status."""
    return table(("status", "what"), ((str(int(code)), EXITS[code.name]) for code in errors.ExitCode))


def classes() -> str:
    """A row for each error, below its parent."""

    def rows(kind: type[errors.OfframpError], depth: int) -> Iterator[Sequence[str]]:
        first = (kind.__doc__ or "").strip().splitlines()[0]
        yield "· " * depth + f"`{kind.__name__}`", str(int(kind.exit_code)), f"`{kind.grpc_status}`", first
        for child in below(kind):
            yield from rows(child, depth + 1)

    def below(kind: type[errors.OfframpError]) -> list[type[errors.OfframpError]]:
        return [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]

    drawn = (row for child in below(errors.OfframpError) for row in rows(child, 0))
    return table(("class", "exit status", "gRPC status", "what"), drawn)


def reasons() -> str:
    """A row for each reason of a refused frame."""
    names = [value.name for value in pb.FrameError.Reason.DESCRIPTOR.values[1:]]
    return table(("reason", "what"), ((f"`{n}`", REASONS[n.removeprefix("REASON_")]) for n in names))


def kind_of(field: FieldInfo) -> str:
    """A field's type as a reader of TOML calls it."""
    names = {int: "integer", float: "number", str: "text", bool: "true or false"}

    def name(kind: Any) -> str:
        origin = typing.get_origin(kind)
        if origin is typing.Annotated:
            return name(typing.get_args(kind)[0])
        if origin is typing.Literal:
            return " or ".join(f"`{value!r}`".replace("'", '"') for value in typing.get_args(kind))
        if origin in (types.UnionType, typing.Union):
            return " or ".join(name(each) for each in typing.get_args(kind) if each is not type(None))
        if origin is list:
            return f"list of {name(typing.get_args(kind)[0])}"
        return names[kind]

    return name(field.annotation)


def is_section(field: FieldInfo) -> bool:
    """Whether it is a table of its own."""
    kinds = [field.annotation, *typing.get_args(field.annotation)]
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)


def shown(default: object) -> str:
    """A default as TOML has it; nothing for None."""
    return "" if default is None else f"`{json.dumps(default)}`"


def fields() -> str:
    """A table for each section of a recipe."""
    parts = []
    for section, (model, text, meanings) in RECIPE.items():
        own = dict(model.model_fields)
        if model is not stage.StageRecipe and issubclass(model, stage.StageRecipe):
            own = {name: field for name, field in own.items() if name not in STAGE_FIELDS}
        rows = [
            (
                f"`{name}`",
                kind_of(field),
                "—"
                if field.is_required()
                else f"`{field.get_default(call_default_factory=True)!r}`".replace("'", '"').replace(
                    "None", "none"
                ),
                meanings[name],
            )
            for name, field in own.items()
            if name != "source" and not is_section(field)
        ]
        if missing := set(meanings) - set(own):
            raise AssertionError(f"{section}: has no {', '.join(sorted(missing))}")
        parts.append(f"### {section}\n" + (f"\n{text}\n" if text else ""))
        parts.append(table(("field", "type", "default", "what"), iter(rows)))
    backbones = ", ".join(f"`{name}`" for name in sorted(BACKBONES))
    return "\n".join(parts).replace("the network |", f"the network: {backbones} |")


def split_fields() -> str:
    """A row for each field of `offramp split`."""
    return table(("field", "flag", "takes", "default", "what"), iter(split_recipe.table_rows()))


def made(name: str) -> str:
    """The content of a generated block."""
    what, _, program = name.partition(" ")
    if what == "settings":
        return settings(SETTINGS[program])
    if what == "metrics":
        return metrics(program)
    plain = {
        "commands": commands,
        "exit-status": exit_status,
        "errors": classes,
        "reasons": reasons,
        "recipe": fields,
        "split": split_fields,
    }
    return plain[what]()


def pages() -> Iterator[tuple[Path, str, str]]:
    """Each page with generated blocks: as it is, and as the code gives it."""
    for path in sorted(REFERENCE.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if "<!-- generated: " in text:
            yield path, text, BLOCK.sub(lambda match: match[1] + made(match[2]) + match[3], text)


def main(argv: Sequence[str]) -> int:
    """Write the tables, or compare them."""
    changed = [(path, new) for path, old, new in pages() if old != new]
    for path, new in changed:
        if "--check" in argv:
            print(f"{path.relative_to(ROOT)}: tables are not what the code gives; make docs-tables")
        else:
            path.write_text(new, encoding="utf-8")
    return int("--check" in argv and bool(changed))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
