"""``python -m research.paper``: the paper's tables and figures, its values beside ours."""

from __future__ import annotations

import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.bench.report_tables import ReportTable, show
from offramp.common.arguments import Parser
from offramp.common.errors import ConfigError, DataError, ExitCode
from research.program import run_program

if TYPE_CHECKING:
    from offramp.training.record import Record

PROGRAM = "python -m research.paper"

COMPUTED = ("table2", "fig1", "fig5")
TRAINED = (
    "table3",
    "table4",
    "table5",
    "fig6",
    "fig7",
    "fig8",
    "fig9",
    "fig10",
    "fig11",
    "others",
    "steps",
    "claims",
)

_DESCRIPTION = """\
Print the paper's tables and figures with our values beside its own; --out writes tables and plots.

table2, fig1 and fig5 follow from the networks alone. The others are made from the records that `offramp
train` leaves beside its bundles: train all variants of runs/cifar10-*.toml into one folder
(runs/cifar10.sh), and name it with --runs. CSR, LZ4 and zstd stand in the tables where a record has them;
--peers codes the test images of the others with them. others is the text of Section V-C on ResNet-32 and
VGG-19; steps is what the paper leaves out, a quantization step as coarse as the exits' answers tolerate;
claims compares what the paper says in words with our figures. baselines measures pictures sent in place of
activations, for one bundle, and leaves its figures beside it, where fig10 finds them.
"""

_EXAMPLES = """\
examples:
  python -m research.paper table2
  python -m research.paper table3 fig10 --runs build/cifar10
  python -m research.paper table3 --runs build/cifar10 --peers
  python -m research.paper all --runs build/cifar10 --out build/cifar10/report
  python -m research.paper baselines --bundle build/cifar10/cifar10-mobilenetv2-exit5-entropy0

exit status: 0 done, 2 wrong flags, 4 unusable bundle, 5 unusable or missing records
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return run_program(PROGRAM, _main, argv)


def _main(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    if "baselines" in arguments.what:
        _measure_baselines(arguments)
    names = [name for name in arguments.what if name != "baselines"]
    if names:
        show(_reports(names, arguments), as_json=arguments.json, out=arguments.out)
    return ExitCode.OK


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    names = (*COMPUTED, *TRAINED, "all", "baselines")
    parser.add_argument("what", nargs="+", choices=names, metavar="WHAT", help=", ".join(names))
    parser.add_argument("--runs", type=Path, metavar="DIR", help="folder of bundles with their records")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="also write NAME.md, NAME.json, NAME.png and NAME.svg here"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument("--peers", action="store_true", help="measure CSR, LZ4 and zstd if records lack them")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="for baselines")
    parser.add_argument(
        "--train-data",
        nargs="+",
        metavar="FILE",
        help="Parquet files in place of the bundle's recipe's",
    )
    parser.add_argument("--test-data", nargs="+", metavar="FILE", help="the same for its test part")
    return parser


def _reports(names: Sequence[str], arguments: Namespace) -> list[ReportTable]:
    from research.paper import computed, figure_10, figures, tables, text
    from research.paper.baselines import read_baselines

    every = "all" in names
    wanted = (*COMPUTED, *TRAINED) if every else tuple(dict.fromkeys(names))
    trained = [name for name in wanted if name in TRAINED]
    runs: Path | None = arguments.runs
    if trained and runs is None and not every:
        raise ConfigError(f"{trained[0]}: needs --runs, a folder of bundles with their records")
    records = [] if runs is None else _records(runs, arguments)
    baselines = [] if runs is None else read_baselines(runs)
    makers: dict[str, Callable[[], ReportTable]] = {
        "table2": computed.table2,
        "fig1": lambda: computed.fig1(records),
        "fig5": computed.fig5,
        "table3": lambda: tables.table3(records),
        "table4": lambda: tables.table4(records),
        "table5": lambda: tables.table5(records),
        "fig6": lambda: figures.fig6(records),
        "fig7": lambda: figures.fig7(records),
        "fig8": lambda: figures.fig8(records),
        "fig9": lambda: figures.fig9(records),
        "fig10": lambda: figure_10.fig10(records, baselines),
        "fig11": lambda: figures.fig11(records),
        "others": lambda: text.others(records),
        "steps": lambda: text.steps(records),
        "claims": lambda: text.claims(records),
    }
    reports = []
    for name in wanted:
        try:
            reports.append(makers[name]())
        except DataError as error:
            if not every:
                raise
            print(f"{PROGRAM}: {name} left out: {error}", file=sys.stderr)
    return reports


def _records(runs: Path, arguments: Namespace) -> list[Record]:
    """The records of a folder, with what --peers adds to them."""
    from offramp.training.data.held_out import load_data
    from offramp.training.record import RECORD, read_record, read_records
    from research.codecs.peers import with_peers

    if not arguments.peers:
        return read_records(runs)
    read_records(runs)  # says what is wrong with the folder or with a record before any bundle runs
    return with_peers(
        {path.parent: read_record(path) for path in sorted([*runs.glob(f"*/{RECORD}"), *runs.glob(RECORD)])},
        lambda bundle: load_data(bundle, arguments.train_data, arguments.test_data).test.images,
    )


def _measure_baselines(arguments: Namespace) -> None:
    from tqdm import tqdm

    from offramp.common.bundle.load import load_bundle
    from offramp.common.inputs.formats import FORMATS
    from offramp.training.data.held_out import load_data
    from research.paper.baselines import BASELINES, measure

    folder: Path | None = arguments.bundle
    if folder is None:
        raise ConfigError("baselines: needs --bundle, whose model the pictures are sent to")
    bundle = load_bundle(folder)
    data = load_data(bundle, arguments.train_data, arguments.test_data)
    with tqdm(total=len(FORMATS), unit="format", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        found = measure(bundle, data.test, formats=FORMATS, tick=bar.update)
    path = folder / BASELINES
    path.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if arguments.json:
        print(found.model_dump_json(indent=1))
        return
    print(f"{found.bundle}, {found.images:,} test images, the whole model on decoded pictures:\n")
    print("| sent | B an image | accuracy % |\n|---|--:|--:|")
    for point in found.pictures:
        print(f"| {point.name} | {point.bytes_mean:,.1f} | {100 * point.accuracy:.2f} |")
    print(f"\nwrote {path}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
