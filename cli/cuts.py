"""``offramp cuts``: where a classifier can be cut, and what each half of it costs."""

from __future__ import annotations

import argparse
import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.cli.export_c.estimate import needs_of
from offramp.common.arguments import Parser, byte_count
from offramp.common.errors import ConfigError, printable
from offramp.training.split.board import Needs

if TYPE_CHECKING:
    from offramp.training.split.capture import Captured
    from offramp.training.split.cuts import Cut, Cuts
    from offramp.training.split.model import Model

DESCRIPTION = """\
List every place where exactly one tensor crosses a classifier's graph, so that it can be cut there: the
module that ends, the tensor's shape and size at one byte a value, and what the device's half costs.

MODEL is timm:NAME, torchvision:NAME, hf:DIRECTORY_OR_ID, package.module:function (a function of yours that
returns a torch.nn.Module), or vgg19, resnet32, mobilenetv2. timm, torchvision and transformers are yours to
install. Nothing is downloaded but an hf: model's configuration; weights are random without --weights."""

EPILOG = """\
examples:
  offramp cuts mobilenetv2
  offramp cuts timm:efficientnet_lite0 --side 160 --plot cuts.svg
  offramp cuts my_model:build --weights best.safetensors --json | jq .cuts[].name
  offramp cuts mobilenetv2 --side 96 --ram 256k --flash 1m
"""
PLOT_SUFFIXES = (".png", ".svg", ".pdf")
MAX_SIDE = 65_536


def main(argv: Sequence[str]) -> int:
    """Run the command; raises ConfigError for a model that cannot be built or captured."""
    parser = Parser(
        "offramp cuts", description=DESCRIPTION, epilog=EPILOG, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--side", type=_side, metavar="PIXELS", help="of its pictures; its own by default")
    size.add_argument(
        "--shape", type=_shape, metavar="CxH…", help="of one input that is not a square picture, as 1x40x98"
    )
    parser.add_argument("--classes", type=_side, metavar="N", help="number of classes, if not its own")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="safetensors, or torch.save of a state_dict"
    )
    parser.add_argument(
        "--all", action="store_true", help="also cuts that differ in neither size nor multiplications"
    )
    parser.add_argument(
        "--ram", type=byte_count, metavar="BYTES", help="of a microcontroller: mark heads that fit; as 256k"
    )
    parser.add_argument("--flash", type=byte_count, metavar="BYTES", help="the same of its flash; as 1m")
    parser.add_argument("--json", action="store_true", help="every cut as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw bytes and MACs; .png, .svg or .pdf")
    arguments = parser.parse_args(argv)
    if arguments.plot is not None and arguments.plot.suffix not in PLOT_SUFFIXES:
        raise ConfigError(f"--plot {arguments.plot}: expected a file named {', '.join(PLOT_SUFFIXES)}")

    # Only here, so that --help and a wrong flag need no torch.
    from offramp.training.split.capture import capture
    from offramp.training.split.cuts import find_cuts
    from offramp.training.split.model import load_model

    model = load_model(
        arguments.model, weights=arguments.weights, classes=arguments.classes, side=arguments.side
    )
    shape = arguments.shape or model.shape
    captured = capture(model.module, shape, name=printable(model.name))
    found = find_cuts(captured)
    if not found.cuts:
        raise ConfigError(
            f"{printable(model.name)}: nowhere does one tensor cross alone, so it cannot be cut"
        )
    board = None
    if arguments.ram is not None or arguments.flash is not None:
        shown = found.cuts if arguments.all or arguments.json else found.places()
        board = Board(_needs(captured, shown), arguments.ram, arguments.flash)
    if arguments.plot is not None:
        plot(model.name, found, arguments.plot)
    if arguments.json:
        print(json.dumps(as_json(model, shape, captured.classes, found, board), indent=1))
    else:
        print("\n".join(report(model, shape, captured.classes, found, board, every=arguments.all)))
    return 0


def _needs(captured: Captured, cuts: Sequence[Cut]) -> dict[str, Needs | None]:
    """What the head of each cut needs as C."""
    from offramp.training.split.capture import closure

    nodes = {node.name: node for node in captured.graph.graph.nodes}
    found = {}
    for cut in cuts:
        end = nodes[cut.node]
        head = closure(end)
        found[cut.name] = needs_of([node for node in nodes.values() if node in head], end)
    return found


@dataclass(frozen=True)
class Board:
    """A microcontroller's memory and flash, and what the head of each cut needs of them."""

    needs: dict[str, Needs | None]
    ram: int | None
    flash: int | None

    def fits(self, name: str) -> bool:
        """Whether the head of that cut does."""
        needs = self.needs[name]
        return needs is not None and needs.fits(self.ram, self.flash)

    def cells(self, name: str) -> tuple[str, str, str]:
        """Of the table."""
        needs = self.needs[name]
        if needs is None:
            return "–", "–", "not in C"
        return f"{needs.ram_bytes:,}", f"{needs.flash_bytes:,}", "yes" if self.fits(name) else "no"

    def as_json(self, name: str) -> dict[str, Any] | None:
        """None: the head has an operator that is not in C."""
        needs = self.needs[name]
        return None if needs is None else asdict(needs) | {"fits": self.fits(name)}


def _side(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= value <= MAX_SIDE:
        raise argparse.ArgumentTypeError(
            f"'{printable(text, 40)}': expected a whole number from 1 to {MAX_SIDE:,}"
        )
    return value


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(_side(part) for part in text.replace("×", "x").split("x"))
    except argparse.ArgumentTypeError:
        shape = ()
    if not 1 <= len(shape) <= 5:
        raise argparse.ArgumentTypeError(
            f"'{printable(text, 40)}': expected numbers with x between, as 1x40x98"
        )
    return shape


def as_json(
    model: Model, shape: tuple[int, ...], classes: int, found: Cuts, board: Board | None = None
) -> dict[str, Any]:
    """All of it, for programs; every cut, whether worth a choice or not."""
    worth = {cut.name for cut in found.places()}
    return {
        "model": model.name,
        "input": list(shape),
        "classes": classes,
        "macs": found.whole.macs,
        "weights": found.whole.weights,
        "preprocessing": None if model.preprocessing is None else asdict(model.preprocessing),
        "notes": list(model.notes),
        "cuts": [
            asdict(cut)
            | {"worth_a_choice": cut.name in worth}
            | ({} if board is None else {"microcontroller": board.as_json(cut.name)})
            for cut in found.cuts
        ],
        "crossed": [asdict(place) for place in found.crossed],
    }


def report(
    model: Model, shape: tuple[int, ...], classes: int, found: Cuts, board: Board | None, *, every: bool
) -> list[str]:
    """The table and what a reader needs with it, in lines."""
    whole, expects = found.whole, model.preprocessing
    sides = "×".join(map(str, shape))
    lines = [
        f"{printable(model.name)}: input {sides}, {classes:,} classes, {_millions(whole.macs)} M MACs, "
        f"{_millions(whole.weights)} M weights",
        *map(printable, model.notes),
    ]
    if expects is not None:
        mean, std = (", ".join(f"{each:.4g}" for each in values) for values in (expects.mean, expects.std))
        lines.append(
            f"expects (pixel / 255 - mean) / std with mean {mean}, std {std}; {expects.interpolation}, "
            f"centre crop of {expects.crop:.4g}  [{printable(expects.source)}]"
        )
    shown = found.cuts if every else found.places()
    lines += ["", *_table(shown, whole.macs, board), ""]
    lines.append(
        f"{len(shown)} of {len(found.cuts)} cuts. 'crosses' and 'bytes' are what is sent at one byte a value,"
        " not coded; 'holds' is the most bytes of activations that the device has at once."
    )
    if board is not None:
        lines.append(
            "'RAM' and 'flash' are of the head alone as C in integers, a row at a time: a bundle's code, "
            "exit and coder add to it, as do layers that offramp split leaves in float; its --ram and "
            "--flash count them."
        )
    if len(shown) < len(found.cuts):
        lines.append("The others differ from these in neither size nor multiplications: --all.")
    several = [place for place in found.crossed if place.tensors > 1]
    if several:
        first = several[0]
        lines.append(
            f"Inside blocks several tensors cross, so {len(several)} modules do not end at a cut, such as "
            f"{printable(first.name)} ({first.tensors} tensors)."
        )
    return lines


def _table(cuts: Sequence[Cut], macs: int, board: Board | None) -> list[str]:
    head: tuple[str, ...] = (
        *("cut after", "crosses", "bytes", "head MACs", ""),
        *("head weights", "tail weights", "holds"),
    )
    if board is not None:
        head = (*head, "RAM", "flash", "fits")
    rows = [
        (
            printable(cut.name, 60),
            "×".join(map(str, cut.shape)),
            f"{cut.int8_bytes:,}",
            f"{_millions(cut.head.macs)} M",
            f"{cut.head.macs / macs if macs else 0:.0%}",
            f"{cut.head.weights:,}",
            f"{cut.tail.weights:,}",
            f"{cut.peak_bytes:,}",
            *(() if board is None else board.cells(cut.name)),
        )
        for cut in cuts
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def _millions(number: int) -> str:
    return f"{number / 1e6:.4g}" if number < 1e9 else f"{number / 1e6:,.0f}"


def plot(name: str, found: Cuts, path: Path) -> None:
    """Draw the bytes that cross, the bytes that the device holds, and the head's share of the MACs.

    Raises:
        ConfigError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    cuts = found.places()
    x = range(len(cuts))
    # Without these an SVG holds random names and the time.
    with matplotlib.rc_context({"svg.hashsalt": "offramp", "font.size": 8}):
        figure = Figure(figsize=(max(6.0, 0.22 * len(cuts) + 2), 5), layout="constrained")
        axes = figure.subplots()
        axes.plot(x, [cut.int8_bytes for cut in cuts], "o-", color="C0", markersize=4, label="crosses")
        axes.plot(x, [cut.peak_bytes for cut in cuts], "--", color="C0", linewidth=1, label="held at once")
        axes.set(yscale="log", ylabel="bytes at one byte a value", title=name)
        axes.set_xticks(list(x), [cut.name for cut in cuts], rotation=90)
        axes.grid(alpha=0.3)
        share = axes.twinx()
        total = found.whole.macs or 1
        share.step(
            x, [100 * cut.head.macs / total for cut in cuts], where="mid", color="C1", label="head's MACs"
        )
        share.set(ylabel="head's MACs, % of the whole", ylim=(0, 100))
        figure.legend(loc="outside lower center", ncols=3)
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
        try:
            figure.savefig(path, metadata=metadata)
        except OSError as error:
            raise ConfigError(f"--plot {path}: cannot be written: {error.strerror}") from None
